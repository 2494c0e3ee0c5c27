"""Test gRefCOCO, whose sentences name several objects or none, from its JSON to its metrics."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aml.data import dataset, decode, refer, refer_counts, rle
from aml.errors import UserError
from aml.inference import segmenter
from aml.metrics import THRESHOLDS, Sums, called_empty, score_masks
from aml.training.scoring import score_batch
from orchestrator.evaluation import baselines, command
from tests.conftest import SIZE
from tests.orchestrator.evaluation.test_evaluate import read_rows
from tests.support.stores import save_model, write_store


def sentence(number, text):
    return {"sent_id": number, "sent": text, "raw": text.upper(), "tokens": text.split()}


def grefs(rows):
    """Return refs for each picture of the rows: its first object, its first two, nothing.

    The pictures are of train and val in turn.
    """
    for k, row in enumerate(rows):
        ids = [o["ann_id"] for o in row["objects"]]
        named = [[ids[0]], ids[:2], [-1], -1 if k % 2 else ids[1]]
        for j, ann_id in enumerate(named):
            texts = [
                sentence(100 * k + 10 * j, "the thing"),
                sentence(100 * k + 10 * j + 1, "both of them"),
            ]
            about = {
                "file_name": "no_file.jpg",
                "category_id": [1] * 2,
                "image_id": row["image_id"],
                "split": ("val", "train")[k % 2],
            }
            yield {
                "ref_id": 10 * k + j,
                "ann_id": ann_id,
                "sentences": texts,
                "sent_ids": [t["sent_id"] for t in texts],
            } | about


@pytest.fixture
def folder(scenes, rows, tmp_path):
    """Write the generated annotations in gRefCOCO's format, on eight pictures."""
    (tmp_path / "grefcoco").mkdir()
    shutil.copy(scenes / "refcoco" / "instances.json", tmp_path / "grefcoco")
    (tmp_path / "grefcoco" / "grefs(unc).json").write_text(json.dumps(list(grefs(rows[:8]))))
    return tmp_path


def read(folder, scenes):
    return refer.read_refer(folder, scenes / "images", "grefcoco", "unc")


def edit(folder, name, change):
    path = folder / "grefcoco" / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ---- reading -------------------------------------------------------------------------------------


def test_refs_name_several_objects_or_none(folder, scenes, rows):
    found = read(folder, scenes)
    assert [row["image_id"] for row in found] == [row["image_id"] for row in rows[:8]]
    for k, row in enumerate(found):
        ids = [o["ann_id"] for o in row["objects"]]
        assert [refer_counts.targets_of(ref) for ref in row["refs"]] == [
            ids[:1],
            ids[:2],
            [],
            [] if k % 2 else [ids[1]],
        ]
        assert [ref["no_target"] for ref in row["refs"]] == [False, False, True, bool(k % 2)]
    counts = refer_counts.split_counts(found)
    assert counts == {
        "train": {"refs": 16, "sentences": 32, "images": 4, "no_target": 16},
        "val": {"refs": 16, "sentences": 32, "images": 4, "no_target": 8},
    }


def test_the_mask_is_the_union_of_what_is_named(folder, scenes):
    row = read(folder, scenes)[0]
    size = row["height"], row["width"]
    masks = [decode.rasterise(rle.referent(row, ref), *size).astype(bool) for ref in row["refs"]]
    objects = [decode.rasterise(o["rle"], *size).astype(bool) for o in row["objects"]]
    assert np.array_equal(masks[0], objects[0]) and np.array_equal(
        masks[1], objects[0] | objects[1]
    )
    assert masks[2].shape == size and not masks[2].any()


def test_a_crowd_among_several_objects_is_left_out_and_a_crowd_alone_is_kept(folder, scenes, rows):
    first, second = (o["ann_id"] for o in rows[0]["objects"][:2])
    edit(
        folder,
        "instances.json",
        lambda d: [a.update(iscrowd=1) for a in d["annotations"] if a["id"] == second],
    )
    row = read(folder, scenes)[0]
    assert [refer_counts.targets_of(ref) for ref in row["refs"]] == [[first], [first], [], [second]]


@pytest.mark.parametrize(
    ("ann_id", "says"),
    [([-1, 3], r"ref 0 names annotations \[-1, 3\]; it must be some annotation ids, or \[-1\]"),
     ([], r"names annotations \[\]"), (["a"], "must be some annotation ids"),
     ([10**9], r"ref 0 of grefcoco \(unc\) names annotation 1000000000, which instances.json lac")],
)  # fmt: skip
def test_what_no_ref_can_name_is_refused(folder, scenes, ann_id, says):
    edit(folder, "grefs(unc).json", lambda refs: refs[0].update(ann_id=ann_id))
    with pytest.raises(UserError, match=says):
        read(folder, scenes)


def test_damaged_and_missing_files_are_named(folder, scenes):
    edit(folder, "grefs(unc).json", lambda refs: refs[5].update(sentences=[]))
    with pytest.raises(UserError, match="ref 11 has no sentence"):
        read(folder, scenes)
    path = folder / "grefcoco" / "grefs(unc).json"
    for content, says in (("[{", "is not valid JSON"), ('{"a": 1}', "is not REFER's list")):
        path.write_text(content)
        with pytest.raises(UserError, match=says):
            read(folder, scenes)
    path.unlink()
    with pytest.raises(UserError, match=r"no folder in it holds .*grefs\(SPLIT_BY\)\.json"):
        read(folder, scenes)


# ---- metrics -------------------------------------------------------------------------------------


def reference(predictions, truths, absent):
    """Compute the metrics from their definitions in floats, one sentence at a time."""
    ious, both, either, empty = [], 0, 0, []
    for p, t, nothing in zip(predictions, truths, absent, strict=True):
        empty.append(p.sum() * 480 * 480 / p.size < 50)
        i, u = (0 if empty[-1] else (p & t).sum()), (0 if nothing and empty[-1] else (p | t).sum())
        ious.append(float(nothing and empty[-1]) if u == 0 else i / u)
        both += i
        either += u
    hits = {
        f"P@0.{x // 10}": np.mean(
            [iou * 100 >= x for iou, nothing in zip(ious, absent, strict=True) if not nothing]
        )
        for x in THRESHOLDS
    }
    of = {
        nothing: np.mean([e == nothing for e, a in zip(empty, absent, strict=True) if a == nothing])
        for nothing in (True, False)
    }
    found = {"mIoU": np.mean(ious), "oIoU": both / either, **hits, "n": len(ious)}
    return found | {
        "gIoU": found["mIoU"],
        "cIoU": found["oIoU"],
        "N-acc": of[True],
        "T-acc": of[False],
    }


def test_scores_equal_the_definitions_over_any_batches():
    rng = np.random.default_rng(0)
    truths = rng.random((90, 80, 80)) < rng.random((90, 1, 1))
    predictions = truths ^ (rng.random((90, 80, 80)) < 0.4 * rng.random((90, 1, 1)))
    absent = rng.random(90) < 0.4
    truths[absent] = False
    # 0 to 3 pixels, since a prediction is called empty below 50 * 80 * 80 / 480 / 480 = 1.4 pixels
    for k in range(0, 90, 3):
        predictions[k] = False
        predictions[k].flat[rng.permutation(6400)[: k % 4]] = True
    p, t, a = (torch.from_numpy(x) for x in (predictions, truths, absent))
    parts = [
        score_masks(*some, no_target=nothing)
        for *some, nothing in zip(p.split(7), t.split(7), a.split(7), strict=True)
    ]
    assert [Sums.from_tensor(s.to_tensor()) for s in parts] == parts
    expected = reference(predictions, truths, absent)
    assert 0 < expected["N-acc"] < 1 and 0 < expected["T-acc"] < 1
    assert sum(parts, Sums()).scores() == pytest.approx(expected, abs=1e-8)


def test_fewer_than_50_pixels_at_480_are_called_empty_and_others_by_area():
    assert called_empty(49, 480 * 480) and not called_empty(50, 480 * 480)
    assert called_empty(12, 240 * 240) and not called_empty(13, 240 * 240)
    assert called_empty(torch.tensor([199, 200]), 960 * 960).tolist() == [True, False]


def test_by_hand():
    """Score four sentences on 480 x 480 pixels by hand.

    They are a target whose prediction is called empty, a target found, and two sentences without a
    target: one whose prediction is called empty, one answered with 100 pixels.
    """
    truths, predictions = torch.zeros(2, 4, 480, 480, dtype=torch.bool)
    truths[:2, 0, :160] = True
    predictions[0, 0, :49] = predictions[1, 0, :80] = predictions[2, 5, :49] = predictions[
        3, 5, :100
    ] = True
    scores = score_masks(
        predictions, truths, no_target=torch.tensor([False, False, True, True])
    ).scores()
    assert scores["gIoU"] == scores["mIoU"] == (0 + 0.5 + 1 + 0) / 4 and scores["n"] == 4
    assert scores["cIoU"] == 80 / (160 + 160 + 0 + 100)
    assert (scores["P@0.5"], scores["P@0.6"], scores["N-acc"], scores["T-acc"]) == (
        0.5,
        0,
        0.5,
        0.5,
    )
    plain = score_masks(
        predictions[:2], truths[:2]
    ).scores()  # no such expressions in the split: the rule is not applied
    assert plain["oIoU"] == (49 + 80) / 320 and "N-acc" not in plain


# ---- through shards to scores


@pytest.fixture
def store(folder, scenes, tmp_path):
    return write_store(tmp_path / "shards", read(folder, scenes))


def test_batches_say_which_expressions_name_nothing(folder, scenes, make_model):
    decoded = [
        decode.decode_row(row | {"jpeg": Path(row["path"]).read_bytes()}, SIZE)
        for row in read(folder, scenes)
    ]
    items, model = (
        dataset.Items([decode.rows_of_block(decoded)], "val", size=SIZE, unit="sentence"),
        make_model(),
    )
    batch = items.batch(np.arange(len(items)), model)
    assert batch.generalised and batch.no_target.sum() == 8
    assert torch.equal(batch.no_target, ~batch.mask.flatten(1).any(1))
    logits = torch.where(batch.mask, 1.0, -1.0)
    assert score_batch(logits, batch, 0.5).scores() == reference(
        batch.mask.numpy(), batch.mask.numpy(), batch.no_target.numpy()
    )
    assert score_batch(-logits, batch, 0.5).scores()["N-acc"] == 0


@pytest.mark.parametrize("protocol", ["square", "original"])
def test_scores_follow_from_the_rows(store, rows, tmp_path, protocol, monkeypatch):
    """Score a model that predicts nothing, 40 pixels or all pixels of 32 x 32, by the picture.

    One pixel of 32 x 32 is more than 50 of 480 x 480, so 40 pixels are not called empty.
    """

    def iter_logits(self, images, sentences, image_indices, batch):
        out = torch.full((len(sentences), 32, 32), -9.0)
        for k, picture in enumerate(image_indices):
            out[k].flatten()[: (0, 40, 1024)[int(images[picture].sum()) % 3]] = 9.0
        return iter([out])

    monkeypatch.setattr(segmenter.Segmenter, "iter_logits", iter_logits)
    request = command.EvaluationRequest(
        save_model(tmp_path / "model", refer_counts.vocabulary(rows)),
        store,
        ["val"],
        protocol=protocol,
        out=tmp_path / "out",
    )
    got = command.evaluate_checkpoint(request)["val"]
    found = read_rows(tmp_path / "out")
    nothing, something = ([r for r in found if r["no_target"] == flag] for flag in (True, False))
    assert len(nothing) == 8 and len(something) == 24 and all(r["gt_pixels"] == 0 for r in nothing)
    assert got["N-acc"] == np.mean([r["called_empty"] for r in nothing])
    assert got["T-acc"] == np.mean([not r["called_empty"] for r in something])
    assert all(r["union"] == (0 if r["called_empty"] else r["pred_pixels"]) for r in nothing)
    assert all(r["intersection"] == 0 for r in found if r["called_empty"])
    ious = [r["intersection"] / r["union"] if r["union"] else float(r["no_target"]) for r in found]
    assert got["gIoU"] == pytest.approx(np.mean(ious), abs=1e-9)
    assert got["cIoU"] == sum(r["intersection"] for r in found) / sum(r["union"] for r in found)
    assert got["P@0.5"] == np.mean([2 * r["intersection"] >= r["union"] for r in something])


def test_baselines_count_sentences_without_a_target(store, rows, tmp_path):
    from orchestrator.data import shards as shards_module

    decoded = [
        decode.decode_row(row, 32)
        for row in shards_module.read_rows(store, shards_module.picture_places(store, ["val"]))
    ]
    items = dataset.Items([decode.rows_of_block(decoded)], "val", size=32, unit="sentence")
    got = baselines.score_baselines(
        save_model(tmp_path / "model", refer_counts.vocabulary(rows)), items
    )
    assert got["n"] == got["random_object"]["n"] == 32
    assert got["wrong_sentence"]["n"] == 24, "sentences that name something have another referent"
    # A sentence without a target counts 0: an object is never an empty prediction.
    assert 0 < got["random_object"]["mIoU"] < 24 / 32


def test_the_command_converts_it(folder, scenes, ray_session, tmp_path):
    from orchestrator.data import shards as shards_module
    from orchestrator.storage import filesystem

    out = tmp_path / "out"
    arguments = [
        "--refer-root",
        str(folder),
        "--images",
        str(scenes / "images"),
        "--dataset",
        "grefcoco",
        "--out",
        str(out),
        "--json",
    ]
    code, text = ray_session(["shard", *arguments])
    assert code == 0, text
    assert (
        "8 sentences without a target" in text
        and json.loads(text.splitlines()[-1])["splits"]["val"]["no_target"] == 8
    )
    store, rows = filesystem.Filesystem(out), read(folder, scenes)
    assert list(
        shards_module.read_rows(
            store, shards_module.picture_places(store, ["train", "val"]), jpeg=False
        )
    ) == [{k: v for k, v in r.items() if k != "path"} for r in rows]
    assert shards_module.verify_shards(store)["splits"] == refer_counts.split_counts(rows)
