"""Rank the alignments of one checkpoint: every source and score that it offers, an oracle first."""

from pathlib import Path

import pytest
import torch

from aml.data.refer_counts import vocabulary
from aml.errors import UserError
from orchestrator.evaluation import alignment_ranking
from tests.support.hearing import hear
from tests.support.stores import save_model, write_store


@pytest.fixture(scope="module")
def store(rows, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("rank") / "shards", rows)


def test_every_source_and_score_at_every_scale_the_best_first(rows, store, tmp_path):
    folder = save_model(tmp_path / "model", vocabulary(rows), size=64)
    found = alignment_ranking.rank_alignments(
        folder, store, split="val", limit=None, scales=[1.0, 0.5], tau=0.4, rho=0.5, batch=7
    )
    assert len(found) == 2 * 9 and {(r["source"], r["score"]) for r in found} == set(
        alignment_ranking.source_score_pairs(("encoder", "joint", "prediction"))
    )
    assert [r["auroc"] for r in found] == sorted((r["auroc"] for r in found), reverse=True)
    for row in found:
        assert (
            row["n"] == 30
            and 0 <= row.get("others", 1) <= 3
            and 0 <= row["auroc"] <= 1
            and row.get("hidden", 0) < 0.35
        ), row
    assert "AUROC" in alignment_ranking.ranking_line(
        found[0]
    ) and "leak" in alignment_ranking.ranking_line(found[0])


def test_few_sentences_give_the_scale_of_softmax_scores_too(rows, store, tmp_path):
    folder = save_model(tmp_path / "model", vocabulary(rows), size=64)
    said = hear([])
    found = alignment_ranking.rank_alignments(
        folder, store, split="val", limit=20, scales=[0.5], tau=0.4, rho=0.5
    )
    softmax = [row for row in found if "softmax" in row["score"]]
    assert len(softmax) == 4
    for row in softmax:  # one batch holds them all, and the automatic scale takes eight
        assert row["hidden"] == pytest.approx(0.2, abs=0.05) and "lift" in row, row
    assert said[0].startswith("9 alignments on 20 sentences") and said[-1].startswith("9 of 9: ")
    with pytest.raises(UserError, match="no sentence of split testC"):
        alignment_ranking.rank_alignments(
            folder, store, split="testC", limit=20, scales=[0.5], tau=0.4, rho=0.5
        )


class Oracle(torch.nn.Module):
    """A model that finds bright pixels.

    On pictures that are bright where the referent is it is always right.
    """

    name = "oracle"
    sources = ("prediction",)
    image_multiple = 1
    fuses = False

    def normalise(self, image):
        return image.float() / 255 - 0.5

    def tokenise(self, sentences):
        return torch.ones(len(sentences), 2, dtype=torch.int64), torch.ones(
            len(sentences), 2, dtype=torch.bool
        )

    def forward(self, x, tokens, token_mask):
        return 8 * x[:, 0]


def test_a_perfect_alignment_spares_the_referent_and_gives_it_away(rows, store, monkeypatch):
    from orchestrator.data import shards

    def painted(store, places):
        """Yield rows with one ref, whose picture is white where that referent is."""
        import io

        from PIL import Image

        from aml.data.decode import rasterise

        for row in shards_read(store, places):
            (ref, *_) = [r for r in row["refs"] if r["split"] == "val"]
            rle = next(o["rle"] for o in row["objects"] if o["ann_id"] == ref["ann_id"])
            out = io.BytesIO()
            Image.fromarray(
                255 * rasterise(rle, row["height"], row["width"]).astype("uint8")
            ).convert("RGB").save(out, "JPEG", quality=95)
            yield row | {"jpeg": out.getvalue(), "refs": [ref]}

    shards_read = shards.read_rows
    monkeypatch.setattr(shards, "read_rows", painted)
    monkeypatch.setattr(
        alignment_ranking,
        "load_model",
        lambda folder: (Oracle(), {"image_size": 64, "fit": "square", "threshold": 0.5}),
    )
    (row,) = alignment_ranking.rank_alignments(
        Path("any"), store, split="val", limit=None, scales=[1.0], tau=0.4, rho=0.5
    )
    assert (
        row["auroc"] > 0.97
        and row["lift"] < 0.02
        and row["mask_auroc"] > 0.55
        and row["hidden"] == pytest.approx(0.2, abs=0.02)
    )


def test_what_else_a_sentence_could_mean(rows, store):
    from aml.data import batches, dataset, decode as decode_module
    from orchestrator.data import shards as shards_module

    blocks = [
        decode_module.rows_of_block(
            [
                decode_module.decode_row(row, 64, "square")
                for row in shards_module.read_rows(
                    store, shards_module.picture_places(store, ["val"])
                )
            ]
        )
    ]
    items = dataset.Items(blocks, "val", size=64, unit="sentence")
    batch = next(batches.eval_batches(items, Oracle(), batch=8))
    beside = alignment_ranking.other_referents(items, batch)
    assert beside.any() and not (beside & batch.mask).any()
    by_ref = {int(r): m for r, m in zip(batch.ref_id, batch.mask, strict=True)}
    for image, ref, seen in zip(batch.image_id, batch.ref_id, beside, strict=True):
        for other, mask in by_ref.items():
            if other != int(ref) and image == batch.image_id[batch.ref_id == other][0]:
                assert seen[mask & ~by_ref[int(ref)]].all(), (
                    "every other referent of the picture is in it"
                )
