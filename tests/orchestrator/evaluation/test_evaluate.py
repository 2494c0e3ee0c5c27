"""Compare an evaluation with numbers computed by hand and recomputed from its rows."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from aml.data import POSITION_WORDS
from aml.data.decode import fit_mask, rasterise
from aml.data.refer import read_refer
from aml.data.refer_counts import vocabulary
from aml.errors import UserError
from aml.inference import segmenter as segmenter_module
from aml.metrics import THRESHOLDS
from orchestrator.evaluation import breakdown, command, robustness, worker
from orchestrator.storage import filesystem
from tests.support.hearing import hear
from tests.support.stores import hand_row, save_model, write_store

SIZE = 32
COLUMNS = [
    "dataset",
    "split_by",
    "split",
    "image_id",
    "ref_id",
    "sent_id",
    "intersection",
    "union",
    "pred_pixels",
    "gt_pixels",
]
COLUMNS += ["no_target", "protocol", "corruption", "severity"]
REAL = (
    Path(os.environ.get("AMLRIS_REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))
    / "mini_refer"
)


def sentences_of(rows, *splits):
    return sorted(
        (row["image_id"], ref["ref_id"], s["sent_id"])
        for row in rows
        for ref in row["refs"]
        if ref["split"] in splits
        for s in ref["sentences"]
    )


def read_rows(out):
    return [json.loads(line) for line in (out / "per_sentence.jsonl").read_text().splitlines()]


def recompute(rows):
    """Return the scores of the rows, computed in plain arithmetic."""
    iou = [r["intersection"] / r["union"] if r["union"] else 0.0 for r in rows]
    hits = {
        f"P@0.{x // 10}": sum(100 * r["intersection"] >= x * r["union"] > 0 for r in rows)
        / len(rows)
        for x in THRESHOLDS
    }
    intersection = sum(r["intersection"] for r in rows)
    union = sum(r["union"] for r in rows)
    return {"mIoU": sum(iou) / len(rows), "oIoU": intersection / union, **hits, "n": len(rows)}


def evaluate(checkpoint, shards, splits, **rest):
    return command.evaluate_checkpoint(
        command.EvaluationRequest(checkpoint, shards, splits, **rest)
    )


def answer(monkeypatch, logits):
    """Replace the logits of every Segmenter by logits(images, sentences), one image a sentence."""

    def iter_logits(self, images, sentences, image_indices, batch):
        return iter([logits(images[image_indices], sentences)])

    monkeypatch.setattr(segmenter_module.Segmenter, "iter_logits", iter_logits)


# ---- evaluate


@pytest.mark.parametrize("protocol", ["square", "original"])
def test_metrics_follow_from_the_rows_and_every_sentence_is_there_once(data, tmp_path, protocol):
    how = {"protocol": protocol, "corruptions": [("fog", 3)], "batch": 7}
    got = evaluate(data.checkpoint, data.store, ["val", "testA"], out=tmp_path, **how)
    rows = read_rows(tmp_path)
    assert got == json.loads((tmp_path / "metrics.json").read_text())
    assert list(got) == ["val", "val/fog:3", "testA", "testA/fog:3"]
    for key, scores in got.items():
        split, _, view = key.partition("/")
        name, severity = ("fog", 3) if view else ("clean", 0)
        mine = [
            r
            for r in rows
            if (r["split"], r["corruption"], r["severity"]) == (split, name, severity)
        ]
        assert sorted((r["image_id"], r["ref_id"], r["sent_id"]) for r in mine) == sentences_of(
            data.rows, split
        )
        expected = recompute(mine)
        # I/U is summed in units of 2^-32.
        assert scores["mIoU"] == pytest.approx(expected.pop("mIoU"), abs=1e-9)
        assert {k: v for k, v in scores.items() if k != "mIoU"} == expected
    assert all(list(r) == COLUMNS for r in rows)
    assert all(
        r["pred_pixels"] + r["gt_pixels"] == r["intersection"] + r["union"]
        and r["protocol"] == protocol
        for r in rows
    )
    assert any(0 < r["intersection"] < r["union"] for r in rows)
    assert [r["image_id"] for r in rows] == sorted(r["image_id"] for r in rows)
    assert json.loads((tmp_path / "about.json").read_text())["protocol"] == protocol


def test_counts_are_the_same_integers_on_any_number_of_cores(data, tmp_path):
    """At 112 px the rounding of an operation does depend on how many cores share it."""
    checkpoint_ = save_model(tmp_path / "model", vocabulary(data.rows), size=112)
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        evaluate(
            checkpoint_,
            data.store,
            ["val", "testA"],
            batch=2,
            out=tmp_path / str(threads),
        )
        found.append(
            (torch.get_num_threads(), (tmp_path / str(threads) / "per_sentence.jsonl").read_bytes())
        )
        torch.set_num_threads(before)
    assert [threads for threads, _ in found] == [1, 3], "left as it was"
    assert found[0][1] == found[1][1]
    segmenter = segmenter_module.Segmenter.load(checkpoint_)
    images = np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3), dtype=np.uint8)
    with worker.single_threaded_torch(), ThreadPoolExecutor(3) as pool:
        alone, *others = pool.map(lambda _: segmenter.logits(images, ["red square"] * 4), range(6))
    assert all(torch.equal(z, alone) for z in others)


def test_side_by_side_keeps_order_draws_little_ahead_and_passes_errors_on():
    drawn = []
    found = worker.map_in_threads(
        lambda n: 10 // n, (drawn.append(n) or n for n in (1, 2, 5, 0, 3, 4, 6, 7)), 2
    )
    assert [next(found), next(found), next(found)] == [10, 5, 2] and len(drawn) <= 5
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_workers_have_a_core_or_a_gpu_each_or_are_refused():
    assert worker.worker_resources(2, {"CPU": 9, "GPU": 0}) == {"num_cpus": 4, "num_gpus": 0}
    assert worker.worker_resources(4, {"CPU": 64, "GPU": 8}) == {
        "num_cpus": worker.GPU_THREADS,
        "num_gpus": 1,
    }
    for have in ({"CPU": 2, "GPU": 0}, {"CPU": 64, "GPU": 2}):
        with pytest.raises(UserError, match="3 workers need 3 .PU.*ask for fewer"):
            worker.worker_resources(3, have)


def test_two_workers_count_the_same_integers_as_one(data, tmp_path, ray_session):
    """Compare all output files of the command with one and with two workers.

    A picture that a worker cannot decode ends the command with one sentence about it.
    """
    found = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        how = [
            "--data",
            data.store.path,
            "--splits",
            "val,testA",
            "--corrupt",
            "noise:2",
            "--batch",
            "3",
            "--workers",
            workers,
            "--out",
            str(out),
        ]
        code, text = ray_session(["evaluate", str(data.checkpoint), *how])
        assert code == 0, text
        found.append(
            [
                (out / name).read_bytes()
                for name in (
                    "per_sentence.jsonl",
                    "sentences.jsonl",
                    "breakdown.json",
                    "metrics.json",
                )
            ]
        )
        assert json.loads((out / "about.json").read_text())["workers"] == int(workers)
    assert found[0] == found[1]
    rows = [
        row | {"jpeg": Path(row["path"]).read_bytes()[: 100 if row is data.rows[-1] else None]}
        for row in data.rows
    ]
    broken = write_store(tmp_path / "broken", rows)
    splits = ",".join(sorted({ref["split"] for ref in rows[-1]["refs"]}))
    code, text = ray_session(
        [
            "evaluate",
            str(data.checkpoint),
            "--data",
            broken.path,
            "--splits",
            splits,
            "--workers",
            "2",
            "--out",
            str(tmp_path / "no"),
        ]
    )
    assert code == 2 and f"{rows[-1]['file_name']} cannot be read" in text


@pytest.mark.parametrize("splits", [["val", "val"], ["val", ""], []])
def test_splits_are_named_once_each(data, tmp_path, splits):
    with pytest.raises(UserError, match=r"twice; name each split once|has no split ''"):
        evaluate(data.checkpoint, data.store, splits, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_test_means_test_a_and_test_b_where_no_split_is_called_so(data, tmp_path):
    got = evaluate(
        data.checkpoint,
        data.store,
        ["test", "val", "testA"],
        out=tmp_path / "unc",
    )
    assert list(got) == ["testA", "testB", "val"]
    rows = [
        row
        | {
            "refs": [
                ref | {"split": {"testA": "test"}.get(ref["split"], ref["split"])}
                for ref in row["refs"]
            ]
        }
        for row in data.rows
    ]
    got = evaluate(
        data.checkpoint,
        write_store(tmp_path / "umd", rows),
        ["test"],
        out=tmp_path / "out",
    )
    assert list(got) == ["test"]


def test_the_breakdown_follows_from_the_rows(data, tmp_path):
    for protocol in ("square", "original"):
        out = tmp_path / protocol
        evaluate(
            data.checkpoint,
            data.store,
            ["val", "testA"],
            protocol=protocol,
            corruptions=[("fog", 3)],
            out=out,
        )
        facts = {
            (f["split"], f["sent_id"]): f
            for f in map(json.loads, (out / "sentences.jsonl").read_text().splitlines())
        }
        clean = [r for r in read_rows(out) if r["corruption"] == "clean"]
        assert len(facts) == len(clean)
        known = {}
        place = re.compile(rf"\b({'|'.join(POSITION_WORDS)})\b")
        for row in data.rows:
            rles = {
                o["ann_id"]: coco.decode(
                    {"size": [row["height"], row["width"]], "counts": o["rle"]}
                )
                for o in row["objects"]
            }
            kinds = {o["ann_id"]: o["category"] for o in row["objects"]}
            for ref in row["refs"]:
                area = int(rles[ref["ann_id"]].sum())
                same = sum(k == kinds[ref["ann_id"]] for k in kinds.values())
                size = "small" if area < 1024 else "medium" if area <= 9216 else "large"
                for s in ref["sentences"]:
                    n = len(s["sent"].split())
                    length = (
                        "1-2 words"
                        if n < 3
                        else "3-5 words"
                        if n < 6
                        else "6-10 words"
                        if n < 11
                        else "11 words or more"
                    )
                    with_ = {True: "with", False: "without"}
                    known[ref["split"], s["sent_id"]] = (
                        {
                            "size": size,
                            "length": length,
                            "position": with_[bool(place.search(s["sent"]))],
                            "distractor": with_[same > 1],
                        },
                        area,
                    )
        found = json.loads((out / "breakdown.json").read_text())
        for split in ("val", "testA"):
            mine = [r for r in clean if r["split"] == split]
            assert set(found[split]) == {"size", "length", "position", "distractor"}
            for kind, groups in found[split].items():
                expected = {known[split, r["sent_id"]][0][kind] for r in mine}
                assert set(groups) == expected
                for group, scores in groups.items():
                    exact = recompute(
                        [r for r in mine if known[split, r["sent_id"]][0][kind] == group]
                    )
                    assert scores["mIoU"] == pytest.approx(exact.pop("mIoU"), abs=1e-9)
                    assert {k: v for k, v in scores.items() if k != "mIoU"} == exact
        assert all(facts[key]["area"] == known[key][1] for key in facts)
    assert len(json.loads((out / "breakdown.json").read_text())["val"]["position"]) == 2


def test_sizes_are_cocos_and_a_missing_category_tells_nothing_of_distractors():
    line = {"words": 2, "position": False, "distractor": None}
    assert [breakdown.groups_of(line | {"area": a})["size"] for a in (1023, 1024, 9216, 9217)] == [
        "small",
        "medium",
        "medium",
        "large",
    ]
    assert "distractor" not in breakdown.groups_of(line | {"area": 1})
    row = {"image_id": 1, "objects": [{"ann_id": 1}, {"ann_id": 2}]}
    fact = breakdown.describe_sentence(
        row,
        {"ann_id": 1, "ref_id": 5, "split": "val"},
        {"sent_id": 7, "sent": "Man on the LEFT."},
        9,
    )
    assert (fact["words"], fact["position"], fact["distractor"]) == (4, True, None)


def test_robustness_follows_from_the_rows_and_stands_against_a_baseline(data, tmp_path):
    views = [("fog", 1), ("fog", 5), ("noise", 2)]
    other = save_model(tmp_path / "other", vocabulary(data.rows))
    for name, model, more in (
        ("base", other, {}),
        ("out", data.checkpoint, {"baseline": tmp_path / "base"}),
    ):
        evaluate(
            model,
            data.store,
            ["val"],
            corruptions=views,
            out=tmp_path / name,
            **more,
        )
    rows = read_rows(tmp_path / "out")

    def score(name, severity, key):
        return recompute([r for r in rows if (r["corruption"], r["severity"]) == (name, severity)])[
            key
        ]

    found = json.loads((tmp_path / "out" / "robustness.json").read_text())["val"]
    assert list(found) == ["fog", "noise", "mean"] and found["fog"]["severities"] == [1, 5]
    for key in ("mIoU", "oIoU"):
        fog = (score("fog", 1, key) + score("fog", 5, key)) / 2
        noise = score("noise", 2, key)
        clean = score("clean", 0, key)
        for name, value in (("fog", fog), ("noise", noise), ("mean", (fog + noise) / 2)):
            line = found[name]
            assert line[key] == pytest.approx(value, abs=1e-9)
            assert line[f"drop_{key}"] == pytest.approx(1 - value / clean, abs=1e-7)
            assert line[f"over_baseline_{key}"] == pytest.approx(0, abs=1e-12), (
                "the baseline is the same model"
            )
    alone = json.loads((tmp_path / "base" / "robustness.json").read_text())["val"]
    assert "over_baseline_mIoU" not in alone["fog"] and alone["fog"]["mIoU"] == found["fog"]["mIoU"]


def test_robustness_against_a_baseline_by_hand():
    def of(clean, one, five):
        scores = {"val": clean, "val/fog:1": one, "val/fog:5": five, "val/fog:0": clean}
        return {key: {"mIoU": value, "oIoU": value / 2} for key, value in scores.items()}

    found = robustness.measure_robustness(of(0.8, 0.6, 0.4), of(0.5, 0.3, 0.1))["val"]
    for line in (found["fog"], found["mean"]):
        assert line["mIoU"] == pytest.approx(0.5) and line["drop_mIoU"] == pytest.approx(0.375)
        assert line["over_baseline_mIoU"] == pytest.approx(0.3)
        assert line["relative_drop_mIoU"] == pytest.approx(1.0)
    text = "\n".join(robustness.robustness_lines({"val": found}))
    assert (
        "fog        severities 1,5" in text
        and "mIoU 50.00  drop 37.5%" in text
        and "+30.00 points, loses x1.00 of its loss" in text
    )
    nothing = robustness.measure_robustness(of(0.0, 0.0, 0.0), of(0.5, 0.5, 0.5))["val"]["fog"]
    assert nothing["drop_mIoU"] is None and nothing["relative_drop_mIoU"] is None
    assert robustness.measure_robustness({"val": {"mIoU": 1.0, "oIoU": 1.0}}) == {}


def test_a_baseline_that_measured_something_else_is_refused_before_anything_runs(data, tmp_path):
    evaluate(
        data.checkpoint,
        data.store,
        ["val"],
        corruptions=[("fog", 1)],
        out=tmp_path / "base",
    )
    how = {"out": tmp_path / "out", "baseline": tmp_path / "base"}
    for more, said in (
        ({"corruptions": [("fog", 2)]}, "holds no val/fog:2"),
        (
            {"corruptions": [("fog", 1)], "protocol": "original"},
            "the protocol is original and square",
        ),
        ({}, "no corruption was asked for"),
        ({"corruptions": [("fog", 1)], "baseline": tmp_path}, "is no finished evaluation"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate(data.checkpoint, data.store, ["val"], **how | more)
    assert not (tmp_path / "out").exists()


def test_true_pixels_are_counted_at_the_size_of_the_protocol(data, tmp_path):
    truth = {}
    for row in data.rows:
        rles = {o["ann_id"]: o["rle"] for o in row["objects"]}
        for ref in row["refs"]:
            full = rasterise(rles[ref["ann_id"]], row["height"], row["width"])
            truth[ref["ref_id"]] = {
                "original": int(full.sum()),
                "square": int(fit_mask(full, SIZE, "square").sum()),
            }
    for protocol in ("square", "original"):
        evaluate(
            data.checkpoint,
            data.store,
            ["val"],
            protocol=protocol,
            out=tmp_path / protocol,
        )
        assert all(
            r["gt_pixels"] == truth[r["ref_id"]][protocol] for r in read_rows(tmp_path / protocol)
        )


def test_corruption_of_severity_0_is_the_clean_picture_and_a_strong_one_is_not(data, tmp_path):
    got = evaluate(
        data.checkpoint,
        data.store,
        ["val"],
        corruptions=[("noise", 0), ("noise", 5)],
        out=tmp_path,
    )
    # Both are in one batch, and other kernels may compute other places of a batch: a pixel at the
    # threshold may move.
    assert got["val/noise:0"] == pytest.approx(got["val"], rel=0, abs=1e-3)
    by = {
        s: [
            (r["sent_id"], r["pred_pixels"])
            for r in read_rows(tmp_path)
            if (r["corruption"], r["severity"]) == s
        ]
        for s in (("clean", 0), ("noise", 5))
    }
    assert sorted(by["clean", 0]) != sorted(by["noise", 5])


def test_a_corruption_depends_on_the_picture_alone_and_other_splits_stay_out(
    data, tmp_path, monkeypatch
):
    """Score two black pictures, which after noise differ only by the draws of their image_id.

    A ref of another split on the picture is not counted.
    """
    half = np.zeros((20, 20), bool)
    half[:10] = True
    rows = [hand_row([half], [(1, ["a", "b"])], number) for number in (7, 8)]
    rows[0]["refs"].append(
        {
            "ref_id": 99,
            "ann_id": 1,
            "split": "train",
            "sentences": [{"sent_id": 99, "sent": "c", "raw": "c"}],
        }
    )
    seen = []
    answer(
        monkeypatch,
        lambda images, sentences: (
            seen.extend(zip(images, sentences, strict=True)) or torch.ones(len(images), 8, 8)
        ),
    )
    evaluate(
        data.checkpoint,
        write_store(tmp_path / "s", rows),
        ["val"],
        corruptions=[("noise", 5)],
        out=tmp_path / "out",
    )
    assert [
        (r["image_id"], r["corruption"], r["sent_id"] % 10) for r in read_rows(tmp_path / "out")
    ] == [(number, name, k) for number in (7, 8) for name in ("clean", "noise") for k in (0, 1)]
    pictures = [image for image, _ in seen]
    assert [sentence for _, sentence in seen] == ["a", "b"] * 4
    assert (pictures[2] == pictures[3]).all() and (pictures[0] == pictures[4]).all()
    assert (pictures[2] != pictures[6]).any() and (pictures[2] != pictures[0]).any()


def test_a_perfect_prediction_at_an_odd_size_scores_1_in_the_original_protocol(
    tmp_path, data, monkeypatch
):
    """Predict a rectangle exactly: its edges lie on pixels of the network image.

    Bilinear resizing must bring it back to the pixel.
    """
    height = 3 * SIZE - 1
    width = 5 * SIZE + 1
    truth = np.zeros((height, width), bool)
    truth[: height // 2] = True
    store = write_store(tmp_path / "odd", [hand_row([truth], [(1, ["the top"])])], files=1)
    # Bilinear resizing keeps a logit that is linear in y, away from the border.
    rows = torch.arange(SIZE) + 0.5
    logits = (SIZE / 2 * (2 * (height // 2) / height) - rows)[:, None].expand(SIZE, SIZE)
    answer(monkeypatch, lambda images, sentences: logits.expand(len(images), -1, -1))
    got = evaluate(
        data.checkpoint,
        store,
        ["val"],
        protocol="original",
        out=tmp_path / "original",
    )
    assert got["val"] == {
        "mIoU": 1.0,
        "oIoU": 1.0,
        **{f"P@0.{x // 10}": 1.0 for x in THRESHOLDS},
        "n": 1,
    }
    (row,) = read_rows(tmp_path / "original")
    assert row["pred_pixels"] == row["gt_pixels"] == height // 2 * width
    evaluate(data.checkpoint, store, ["val"], out=tmp_path / "square")
    (row,) = read_rows(tmp_path / "square")
    assert row["gt_pixels"] == SIZE // 2 * SIZE and row["union"] <= SIZE * SIZE


def test_a_letterboxed_prediction_comes_back_without_its_bars(tmp_path, data, monkeypatch):
    folder = save_model(tmp_path / "boxed", vocabulary(data.rows), fit="letterbox")
    truth = np.ones((33, 77), bool)
    store = write_store(tmp_path / "odd", [hand_row([truth], [(1, ["all"])])], files=1)
    answer(monkeypatch, lambda images, sentences: torch.ones(len(images), SIZE // 4, SIZE // 4))
    got = evaluate(folder, store, ["val"], protocol="original", out=tmp_path / "out")
    assert got["val"]["mIoU"] == 1.0
    evaluate(folder, store, ["val"], out=tmp_path / "square")
    (row,) = read_rows(tmp_path / "square")
    assert (row["union"], row["intersection"]) == (SIZE * SIZE, round(33 / 77 * SIZE) * SIZE)


def test_an_empty_prediction_of_an_empty_truth_counts_0(tmp_path, data, monkeypatch):
    store = write_store(
        tmp_path / "none", [hand_row([np.zeros((40, 30), bool)], [(1, ["nothing"])])], files=1
    )
    answer(monkeypatch, lambda images, sentences: torch.full((len(images), 8, 8), -1.0))
    got = evaluate(data.checkpoint, store, ["val"], out=tmp_path / "out")
    assert got["val"]["mIoU"] == got["val"]["oIoU"] == got["val"]["P@0.5"] == 0
    assert got["val"]["n"] == 1


def test_shards_that_lack_a_sentence_are_refused(tmp_path, data):
    store = write_store(tmp_path / "short", data.rows)
    marker = tmp_path / "short" / "_COMPLETE.json"
    manifest = json.loads(marker.read_text())
    manifest["splits"]["val"]["sentences"] += 1
    marker.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="copy it again"):
        evaluate(data.checkpoint, store, ["val"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"splits": ["tset"]}, "no split 'tset'; it has .*testA"),
        ({"splits": []}, "no split ''"),
        ({"protocol": "orignal"}, "use square"),
        ({"corruptions": [("smoke", 3)]}, "smoke.*not known"),
        ({"batch": 0}, "at least 1"),
        ({"workers": 0}, "at least 1"),
        ({"precision": "bf61"}, "known: fp32, bf16"),
        ({"checkpoint": Path("nowhere")}, "not a checkpoint folder"),
        ({"shards": filesystem.Filesystem("nowhere")}, "no complete shards"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(data, tmp_path, change, says):
    given = {
        "checkpoint": data.checkpoint,
        "shards": data.store,
        "splits": ["val"],
        "out": tmp_path / "out",
    } | change
    with pytest.raises(UserError, match=says) as error:
        evaluate(**given)
    assert "\n" not in str(error.value)


def test_real_refcoco(tmp_path):
    if not REAL.is_dir():
        pytest.skip(
            f"no real data at {REAL}; set AMLRIS_REAL_DATA to a folder that holds mini_refer"
        )
    rows = read_refer(REAL, REAL / "images", "refcoco", "unc")
    store = write_store(tmp_path / "shards", rows)
    said = hear([])
    got = evaluate(
        save_model(tmp_path / "model", vocabulary(rows)[:20]),
        store,
        ["val"],
        protocol="original",
        out=tmp_path / "out",
    )
    truth = {
        entry["ref_id"]: entry["mask_pixels"]
        for entry in json.loads((REAL / "expected.json").read_text())
    }
    found = read_rows(tmp_path / "out")
    assert sorted((r["image_id"], r["ref_id"], r["sent_id"]) for r in found) == sentences_of(
        rows, "val"
    ) and got["val"]["n"] == len(found)
    assert all(r["gt_pixels"] == truth[r["ref_id"]] for r in found)
    assert any("not in the checkpoint's vocabulary" in line for line in said)
