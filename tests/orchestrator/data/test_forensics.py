"""`data diff` of two copies of a data set, and `data audit` of evaluation pictures in training."""

import copy
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from orchestrator.cli import main
from orchestrator.data.forensics import audit
from tests.support.stores import write_store


def command(capsys, *arguments):
    """Return the exit code of a command and what it printed."""
    with pytest.raises(SystemExit) as left:
        main([str(one) for one in arguments])
    said = capsys.readouterr()
    return left.value.code, said.out + said.err


def rle(left, right, side=10):
    """A mask of the columns from left to right of a picture of side x side."""
    mask = np.zeros((side, side), np.uint8, order="F")
    mask[:, left:right] = 1
    return coco_mask.encode(mask)["counts"].decode()


def jpeg(picture, quality=90):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def row(image_id, split, refs, picture=None, name="a.jpg", dataset="toy"):
    """A picture's row of shards; refs is {ref_id: (mask, {sent_id: text})}."""
    picture = picture or Image.new("RGB", (10, 10))
    return {
        "image_id": image_id,
        "file_name": name,
        "height": picture.height,
        "width": picture.width,
        "dataset": dataset,
        "split_by": "unc",
        "jpeg": jpeg(picture),
        "objects": [{"ann_id": r, "rle": mask, "category": "x"} for r, (mask, _) in refs.items()],
        "refs": [
            {
                "ref_id": ref_id,
                "ann_id": ref_id,
                "split": split,
                "sentences": [
                    {"sent_id": k, "sent": text, "tokens": text.split()} for k, text in s.items()
                ],
            }
            for ref_id, (_, s) in refs.items()
        ],
    }


# ---- data diff


@pytest.fixture
def copies(tmp_path):
    """Two copies with one difference of each kind, and an evaluation on the first.

    Its IoUs are 1.0 for sentence 10, 0.5 for 20, 0.0 for 30 and for 40, 1.0 for 50 and 60.
    """
    one = [
        row(1, "val", {1: (rle(0, 4), {10: "left"}), 2: (rle(4, 8), {20: "right one"})}),
        row(2, "val", {3: (rle(0, 4), {30: "a cat", 31: "cat"}), 4: (rle(4, 8), {40: "dog"})}),
        row(3, "val", {5: (rle(0, 5), {50: "bird"}), 6: (rle(5, 9), {60: "fish"})}),
    ]
    other = copy.deepcopy(one)
    del other[0]["refs"][1]  # ref 2 is missing
    other[1]["objects"][0]["rle"] = rle(0, 8)  # ref 3: IoU 0.5
    other[1]["refs"][1]["split"] = "test"
    other[2]["refs"][0]["sentences"][0]["sent"] = "the bird"
    other[2]["refs"][1]["sentences"].append({"sent_id": 61, "sent": "a fish", "tokens": []})
    other.append(row(4, "val", {7: (rle(0, 2), {70: "new", 71: "newer"})}))
    a = write_store(tmp_path / "a", one, files=1)
    b = write_store(tmp_path / "b", other, files=2)
    run = tmp_path / "run"
    run.mkdir()
    named = {"dataset": "toy", "split_by": "unc", "fingerprint": "0123456789abcdef"}
    about = {"protocol": "original", "splits": ["val"], "data": named, "image_size": None}
    scores = dict.fromkeys(("mIoU", "oIoU", *(f"P@0.{x}" for x in range(5, 10))), 0.5)
    (run / "about.json").write_text(json.dumps(about))
    (run / "metrics.json").write_text(json.dumps({"val": scores | {"n": 7}}))
    counts = {10: (40, 40), 20: (40, 80), 30: (0, 40), 31: (0, 40), 40: (0, 50)}
    counts |= {50: (50, 50), 60: (30, 40)}
    lines = [
        {
            "split": "val",
            "corruption": "",
            "severity": 0,
            "image_id": 1,
            "ref_id": sent_id // 10,
            "sent_id": sent_id,
            "gt_pixels": 40,
            "intersection": i,
            "union": u,
        }
        for sent_id, (i, u) in counts.items()
    ]
    fog = lines[0] | {"corruption": "fog", "severity": 3, "intersection": 0}
    (run / "per_sentence.jsonl").write_text("".join(json.dumps(x) + "\n" for x in [*lines, fog]))
    return a.path, b.path, run


def test_each_kind_of_difference_is_found_once(copies, capsys):
    a, b, _ = copies
    code, text = command(capsys, "data", "diff", a, b, "--json")
    found = json.loads(text.splitlines()[-1])
    assert code == 0 and found["counts"] == {
        "missing": 1,
        "added": 1,
        "other picture": 0,
        "other split": 1,
        "other mask": 1,
        "other sentences": 2,
    }
    by_ref = {ref["ref_id"]: ref for ref in found["refs"]}
    assert list(by_ref) == [2, 3, 4, 5, 6, 7]
    assert by_ref[3]["mask_iou"] == 0.5 and by_ref[4]["split"] == ["val", "test"]
    assert by_ref[5]["sentences"] == {"50": ["bird", "the bird"]}
    assert by_ref[6]["sentences"] == {"61": [None, "a fish"]} and by_ref[6]["unchanged"] == 1
    assert "ref 5 of picture 3: other sentences; sentence 50: 'bird' -> 'the bird'" in text
    assert "other mask             1 of 6 refs" in text
    code, text = command(capsys, "data", "diff", a, a)
    assert code == 0 and text.strip() == "no difference in 6 refs"


def test_a_ref_on_another_picture_is_no_missing_one(copies, capsys, tmp_path):
    a, _, _ = copies
    moved = [
        row(1, "val", {1: (rle(0, 4), {10: "left"}), 2: (rle(4, 8), {20: "right one"})}),
        row(9, "val", {3: (rle(0, 4), {30: "a cat", 31: "cat"}), 4: (rle(4, 8), {40: "dog"})}),
        row(3, "val", {5: (rle(0, 5), {50: "bird"}), 6: (rle(5, 9), {60: "fish"})}),
    ]
    other = write_store(tmp_path / "moved", moved, files=1)
    found = json.loads(command(capsys, "data", "diff", a, other.path, "--json")[1].splitlines()[-1])
    assert {ref["ref_id"]: ref["kinds"] for ref in found["refs"]} == {
        3: ["other picture"],
        4: ["other picture"],
    }


def test_the_effect_on_a_score_is_that_of_the_sentences_left(copies, capsys):
    """By hand: 20 and 40 fall away, 30, 31 and 50 change, and 10 (1.0) and 60 (0.75) are left."""
    a, b, run = copies
    code, text = command(capsys, "data", "diff", a, b, "--run", run, "--json")
    effect = json.loads(text.splitlines()[-1])["run"]["val"]
    assert code == 0 and (effect["n"], effect["fall_away"], effect["change"]) == (7, 2, 3)
    assert (effect["left"], effect["new"]) == (2, 3), "61 of ref 6, and 70 and 71 of ref 7"
    assert effect["mIoU"] == pytest.approx([(1 + 0.5 + 1 + 0.75) / 7, 0.875])
    assert effect["oIoU"] == pytest.approx([160 / 340, 70 / 80])
    assert "mIoU 46.43 -> 87.50 (+41.07)" in text
    about = json.loads((run / "about.json").read_text())
    about["data"]["fingerprint"] = "fedcba9876543210"
    (run / "about.json").write_text(json.dumps(about))
    code, text = command(capsys, "data", "diff", a, b, "--run", run)
    assert code == 2 and "name first the copy that it was evaluated on" in text


# ---- data audit


@pytest.fixture(scope="module")
def photographs(real_data):
    """Different photographs of COCO by their names."""
    files = {file.name: file for file in sorted(real_data.rglob("*.jpg"))}
    pictures = {}
    for name, file in list(files.items())[:25]:
        with Image.open(file) as opened:
            pictures[name] = opened.convert("RGB")
    return pictures


def test_copies_of_real_pictures_differ_by_less_than_the_threshold_and_others_by_more(photographs):
    whole = {name: audit.picture_bits(picture) for name, picture in photographs.items()}

    def bits(a, b):
        return int(np.bitwise_count(a ^ b).sum())

    for name, picture in photographs.items():
        width, height = picture.size
        copied = [
            Image.open(io.BytesIO(jpeg(picture, 30))),
            picture.resize((448, 448)),
            Image.open(io.BytesIO(jpeg(picture.resize((128, 128 * height // width)), 75))),
            picture.convert("L").convert("RGB"),
        ]
        assert max(bits(whole[name], audit.picture_bits(one)) for one in copied) <= 16
    names = list(whole)
    others = [bits(whole[a], whole[b]) for i, a in enumerate(names) for b in names[:i]]
    assert min(others) >= 80 > 2 * audit.MOST_BITS


def test_an_audit_finds_copies_under_any_name_over_several_folders(photographs, tmp_path, capsys):
    (first, second, third, fourth, *others) = list(photographs.values())[:8]

    def full(picture):
        counts = coco_mask.encode(np.ones(picture.size[::-1], np.uint8, order="F"))["counts"]
        return {1: (counts.decode(), {1: "all"})}

    def made(number, split, picture, name):
        return row(number, split, full(picture), picture, name)

    evaluation = [
        made(1, "val", first, "COCO_1.jpg"),
        made(2, "testA", second, "COCO_2.jpg"),
        made(3, "testB", third, "COCO_3.jpg"),
        made(4, "train", fourth, "COCO_4.jpg"),
    ]
    small = second.resize((200, 150))
    again = Image.open(io.BytesIO(jpeg(first, 40)))
    training = [
        made(1, "train", first, "same.jpg"),
        made(102, "train", small, "renamed.jpg"),
        made(103, "train", again, "again.jpg"),
        made(3, "train", others[0], "number_taken.jpg"),
        *(made(200 + i, "train", other, f"{i}.jpg") for i, other in enumerate(others[1:])),
    ]
    a = write_store(tmp_path / "a", evaluation)
    b = write_store(tmp_path / "b", training)
    code, text = command(capsys, "data", "audit", a.path, b.path, "--json")
    found = json.loads(text.splitlines()[-1])
    assert code == 0, text
    assert {key: found[key] for key in ("train", "evaluation", "by_id", "by_picture")} == {
        "train": 8,
        "evaluation": 3,
        "by_id": 2,
        "by_picture": 3,
    }
    named = {
        one["train"]["file_name"]: one["by_picture"] and one["by_picture"]["file_name"]
        for one in found["found"]
    }
    assert named == {
        "same.jpg": "COCO_1.jpg",
        "renamed.jpg": "COCO_2.jpg",
        "again.jpg": "COCO_1.jpg",
        "number_taken.jpg": None,
    }
    assert found["by_picture_alone"] == 2 and "the same image_id, but another picture" in text
    for arguments, said in (
        ([b.path], "has a split whose name begins with val, test, dev, eval"),
        ([a.path, "--train-split", "none"], "has the split 'none'; name the training split"),
        ([a.path, "--bits", "200"], "--bits is 200; give 0 to 127"),
    ):
        code, text = command(capsys, "data", "audit", *arguments)
        assert code == 2 and said in text, text
