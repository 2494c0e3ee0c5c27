"""Test the data path's benchmark: both ways of reading give the same samples.

The command prints its ratios as JSON on the last line.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from aml.data.dataset import Items
from aml.data.decode import decode_image, rasterise
from aml.data.refer import read_refer
from aml.data.rle import referent
from orchestrator.benchmarks import (
    data_scale,
    generated_pictures,
    picture_profile,
    published_loader,
)
from tests.conftest import SIZE


def test_the_published_way_gives_the_same_samples(scenes, blocks, make_model):
    """The benchmark compares the two ways at the same work.

    Generated masks have no holes and no overlaps, so polygons and RLE agree.
    """
    model = make_model()
    peer = published_loader.PublishedDataset(scenes, model, SIZE)
    ours = Items(blocks, "train", size=SIZE, unit="sentence")
    assert len(peer) == len(ours)
    by_sentence = {
        (ref["ref_id"], s["sent_id"]): k
        for k, (ref, s) in enumerate((r, s) for r in sentences(peer) for s in r["sentences"])
    }
    batch = ours.batch(np.arange(0, len(ours), 11), model)
    for k, key in enumerate(zip(batch.ref_id.tolist(), batch.sent_id.tolist(), strict=True)):
        image, mask, tokens, token_mask = peer[by_sentence[key]]
        assert (image == batch.image[k]).all() and (mask == batch.mask[k]).all()
        assert (tokens == batch.tokens[k]).all() and (token_mask == batch.token_mask[k]).all()


def sentences(peer):
    """Return the refs in the order of the published data set's items, each once."""
    return list({id(ref): ref for ref, _ in peer.items}.values())


def test_rates_leave_out_the_start(monkeypatch):
    clock = iter([5.0, 9.0])  # the first batch, the end
    monkeypatch.setattr(published_loader.time, "perf_counter", lambda: next(clock))
    assert published_loader.time_batches(iter([8, 8, 8, 8]), 2.0, samples=16) == (3.0, 16, 4.0)


def test_enlarged_pictures_have_the_size_of_their_annotations(tmp_path):
    generated_pictures.make_pictures(tmp_path, 12, 1)
    rows = read_refer(tmp_path, tmp_path / "images", "refcoco", "unc")
    for row in rows:
        jpeg = Path(row["path"]).read_bytes()
        assert (
            decode_image(jpeg, "").shape[:2] == (row["height"], row["width"])
            and max(row["height"], row["width"]) == generated_pictures.SIDE
        )
        assert all(
            rasterise(referent(row, ref), row["height"], row["width"]).any() for ref in row["refs"]
        )
    assert 60e3 < sum(Path(row["path"]).stat().st_size for row in rows) / len(rows) < 300e3


def test_the_shares_of_a_picture_s_time_add_up():
    found = picture_profile.time_shares(
        {
            "decode JPEG": 3.0,
            "resize picture": 4.0,
            "mask from RLE": 0.5,
            "resize mask": 1.0,
            "another": 9.0,
        },
        refs=2.0,
    )
    assert found == {"JPEG": 0.3, "resize": 0.4, "masks": 0.3}


def test_the_command_prints_its_ratios(ray_session):
    code, text = ray_session(["bench", "data", "--images", "16", "--size", "64", "--samples", "64"])
    assert code == 0, text
    found = json.loads(text.splitlines()[-1])
    for name in ("first_epoch", "later_epochs", "window"):
        per_core = found["peer_samples_s"] / found["cores"]
        assert found[f"{name}_ratio"] == pytest.approx(
            found[f"{name}_samples_s_core"] / per_core, rel=0.01, abs=1e-3
        )
    assert (
        found["items"] > 32
        and found["window_held_mb"] > 0
        and found["s3_read_mb_s"] > 0
        and "decode JPEG" in found["profile_ms"]
    )
    assert found["conversion_mb"] > 100 and found["ray_start_s"] > 0 and "Ray starts in" in text


def test_readers_are_measured_over_images_sizes_and_processes(ray_session):
    how = ["--images", "8", "--images", "40", "--size", "32", "--readers", "1", "--side", "128"]
    code, text = ray_session(["bench", "readers", *how, "--samples", "32"])
    assert code == 0, text
    found = json.loads(text.splitlines()[-1])
    assert [(r["images"], r["size"], r["readers"]) for r in found["rows"]] == [
        (8, 32, 1),
        (40, 32, 1),
    ]
    assert all(row["cpu_ms"] > 0 and row["samples_s"] > 0 for row in found["rows"])
    assert "| 40 | 32 | 1 |" in text
    code, text = ray_session(["bench", "readers", "--side", "64"])
    assert code == 2 and "8 images of 128 px or more" in text


def test_repeated_pictures_have_ids_of_their_own(scenes):
    rows = read_refer(scenes, scenes / "images", "refcoco", "unc")
    many = data_scale.repeated(rows, 3 * len(rows) - 1)
    assert len({row["image_id"] for row in many}) == len(many) == 3 * len(rows) - 1
    refs = [ref for row in many for ref in row["refs"]]
    sentences = [s["sent_id"] for ref in refs for s in ref["sentences"]]
    assert len({ref["ref_id"] for ref in refs}) == len(refs)
    assert len(set(sentences)) == len(sentences)
    assert many[len(rows)]["path"] == rows[0]["path"] and many[: len(rows)] == rows
