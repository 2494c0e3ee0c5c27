"""Test REFER files: real ones are read exactly, damaged and malicious ones refused by name."""

import hashlib
import json
import os
import pickle
import shutil

import numpy as np
import pytest
from pycocotools import mask as coco

from aml.data import refer, refer_counts, rle as rle_module
from aml.data.decode import rasterise
from aml.errors import UserError


@pytest.fixture
def folder(scenes, tmp_path):
    """Copy the generated annotations, which a test may change; the pictures are not copied."""
    shutil.copytree(scenes / "refcoco", tmp_path / "refcoco")
    return tmp_path


def edit_instances(folder, change):
    path = folder / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    change(instances)
    path.write_text(json.dumps(instances))


def read(folder, scenes, dataset="refcoco", split_by="unc"):
    return refer.read_refer(folder, scenes / "images", dataset, split_by)


# ---- the pickle ----------------------------------------------------------------------------------


class Touch:
    """Create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_that_runs_a_command_is_refused_named_and_not_run(
    folder, scenes, protocol, tmp_path
):
    trace = tmp_path / "was-run"
    bad = pickle.dumps([{"ref_id": 1, "payload": Touch(trace)}], protocol)
    (folder / "refcoco" / "refs(unc).p").write_bytes(bad)
    with pytest.raises(
        UserError, match=rf"refs\(unc\)\.p.*{os.system.__module__}\.system.*nothing of it was run"
    ):
        read(folder, scenes)
    assert not trace.exists()
    pickle.loads(bad)
    assert trace.exists(), "the pickle would have run its command"


def test_a_pickle_of_the_extension_registry_and_of_builtins_is_refused(tmp_path):
    path = tmp_path / "refs.p"
    for value in (eval, np.zeros(3), {1, 2}.__class__):
        path.write_bytes(pickle.dumps([value]))
        with pytest.raises(UserError, match="the pickle names"):
            refer.load_refs(path)


@pytest.mark.parametrize(
    "content, words",
    [(b"", "cannot be read as a refs pickle"),
     (b"not a pickle", "instruction b'n', which makes no plain data"),
     (pickle.dumps([{}])[:-2], "cannot be read"), (pickle.dumps({"a": 1}), "is not REFER's list"),
     (pickle.dumps([{"ref_id": 1}]), "is not REFER's list")],
)  # fmt: skip
def test_a_damaged_or_other_pickle(tmp_path, content, words):
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(UserError, match=words):
        refer.load_refs(tmp_path / "refs.p")


def test_a_python_2_pickle_with_non_ascii_text(tmp_path):
    """Read protocol 2 as Python 2 wrote it.

    Texts are byte strings (U: short string), one of them in UTF-8, one of them in Latin-1.
    """

    def text(raw: bytes) -> bytes:
        return b"U" + bytes([len(raw)]) + raw

    def number(n: int) -> bytes:
        return b"J" + n.to_bytes(4, "little")

    sentences = [b"caf\xc3\xa9 sign", b"caf\xe9 sign"]
    body = b"".join(
        b"}(" + text(b"sent_id") + number(i) + text(b"sent") + text(s) + b"u"
        for i, s in enumerate(sentences)
    )
    ref = (
        b"}("
        + b"".join(text(k) + number(7) for k in (b"ref_id", b"ann_id", b"image_id"))
        + text(b"split")
        + text(b"val")
    )
    (tmp_path / "refs.p").write_bytes(
        b"\x80\x02](" + ref + text(b"sentences") + b"](" + body + b"e" + b"u" + b"e."
    )
    (found,) = refer.load_refs(tmp_path / "refs.p")
    assert found["ref_id"] == 7 and found["split"] == "val"
    assert [s["sent"] for s in found["sentences"]] == ["café sign", "caf\ufffd sign"]


# ---- what else may be wrong ----------------------------------------------------------------------


def test_missing_files_are_named(folder, scenes):
    os.rename(folder / "refcoco" / "instances.json", folder / "away.json")
    with pytest.raises(UserError, match=r"instances\.json cannot be read .it is missing."):
        read(folder, scenes)
    os.remove(folder / "refcoco" / "refs(unc).p")
    with pytest.raises(UserError, match="no data set 'refcoco': no folder in it holds refs"):
        read(folder, scenes)


def test_a_missing_picture_is_named_and_counted(folder, scenes, rows, tmp_path):
    some = tmp_path / "images" / "train2014"
    shutil.copytree(scenes / "images" / "train2014", some)
    for row in rows[3:5]:
        os.remove(some / row["file_name"])
    with pytest.raises(
        UserError, match=rf"2 of {len(rows)} images are not under .*first is {rows[3]['file_name']}"
    ):
        refer.read_refer(folder, tmp_path / "images", "refcoco", "unc")


def test_unknown_dataset_and_split_by(folder, scenes):
    shutil.copytree(folder / "refcoco", folder / "rrsisd")
    shutil.copy(folder / "rrsisd/refs(unc).p", folder / "rrsisd/refs(own).p")
    with pytest.raises(
        UserError,
        match=r"no data set 'rrsis': folders with refs are refcoco \(unc\), rrsisd \(own, unc\)",
    ):
        read(folder, scenes, "rrsis")
    with pytest.raises(UserError, match="no split_by 'umd'; .*rrsisd has own, unc"):
        read(folder, scenes, "rrsisd", "umd")
    with pytest.raises(UserError, match=r"give --refer-root .* and --dataset rrsisd"):
        read(folder / "rrsisd", scenes, "rrsisd")
    with pytest.raises(UserError, match="dataset is '../rrsisd', which leads out"):
        read(folder, scenes, "../rrsisd")


def test_a_ref_without_its_annotation_or_image(folder, scenes, rows):
    lost = rows[0]["refs"][0]
    edit_instances(
        folder,
        lambda d: d.update(annotations=[a for a in d["annotations"] if a["id"] != lost["ann_id"]]),
    )
    with pytest.raises(
        UserError,
        match=rf"ref {lost['ref_id']} of refcoco \(unc\) names annotation {lost['ann_id']}",
    ):
        read(folder, scenes)
    edit_instances(
        folder,
        lambda d: d.update(images=[i for i in d["images"] if i["id"] != rows[2]["image_id"]]),
    )
    with pytest.raises(UserError, match=rf"lacks image {rows[2]['image_id']} \(1 in all\)"):
        read(folder, scenes)


@pytest.mark.parametrize(
    "content, words",
    [("{", "is not valid JSON"), ('{"images": []}', "lacks annotations")],
)
def test_damaged_instances(folder, scenes, content, words):
    (folder / "refcoco" / "instances.json").write_text(content)
    with pytest.raises(UserError, match=words):
        read(folder, scenes)


def edit_refs(folder, change):
    path = folder / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    change(refs)
    path.write_bytes(pickle.dumps(refs))


BAD_REFS = {
    "a ref's id that is text": (
        lambda refs: refs[3].update(ref_id="7"),
        "ref '7' has ref_id '7', and it must be a whole number",
    ),
    "no split": (
        lambda refs: refs[3].update(split=None),
        "has a split that is None, no text",
    ),
    "two splits in one": (
        lambda refs: refs[3].update(split="val,train"),
        "has a split that is 'val,train', and it must be one name",
    ),
    "no sentences": (
        lambda refs: [ref.update(sentences=[]) for ref in refs[3:5]],
        r"has no sentence, but \[\]; each ref needs .* \(2 such refs in all\)",
    ),
    "a sentence that is no text": (
        lambda refs: refs[3]["sentences"][0].update(sent=None),
        "a sentence without sent_id or sent .text.: sent is None",
    ),
    "a ref twice": (
        lambda refs: refs.append(refs[3]),
        r"has sentence \d+ twice, and ids must be unique",
    ),
}


@pytest.mark.parametrize("what", BAD_REFS)
def test_a_ref_that_is_not_as_refer_writes_it_is_named(folder, scenes, what):
    change, says = BAD_REFS[what]
    edit_refs(folder, change)
    with pytest.raises(UserError, match=says) as error:
        read(folder, scenes)
    assert "refs(unc).p" in str(error.value) and "\n" not in str(error.value)


def test_sentences_without_a_word_are_refused_and_left_out_where_that_is_asked(folder, scenes):
    whole = read(folder, scenes)

    def change(refs):
        refs[0]["sentences"].append({"sent_id": 10**9, "sent": "...", "raw": "..."})
        refs[1]["sentences"] = [{"sent_id": 10**9 + 1, "sent": "", "raw": "?"}]
        refs[2]["sentences"] = []

    edit_refs(folder, change)
    with pytest.raises(UserError, match=r"3 such refs in all.*--skip-unreadable to leave such"):
        read(folder, scenes)
    found = refer.Findings()
    rows = refer.read_refer(
        folder, scenes / "images", "refcoco", "unc", skip_unusable=True, findings=found
    )
    assert sum(len(row["refs"]) for row in rows) == sum(len(row["refs"]) for row in whole) - 2
    sentences = [s["sent"] for row in rows for ref in row["refs"] for s in ref["sentences"]]
    assert "..." not in sentences and "" not in sentences
    assert found.to_dict()["left_out"] == {
        "sentences without a word": 2,
        "refs without a sentence": 2,
    }


def run_lengths(annotation, record, *, size=None, counts=None):
    whole = [record["height"], record["width"]]
    annotation["segmentation"] = {
        "size": size or whole,
        "counts": [whole[0] * whole[1]] if counts is None else counts,
    }


BAD_INSTANCES = {
    "an image twice": (lambda d: d["images"].append(dict(d["images"][0])), r"has image \d+ twice"),
    "an annotation twice": (
        lambda d: d["annotations"].append(dict(d["annotations"][0])),
        r"has annotation \d+ twice",
    ),
    "an image without a size": (
        lambda d: d["images"][0].pop("height"),
        "is None x 64, and height and width must be pixels",
    ),
    "an image of no pixels": (
        lambda d: d["images"][0].update(height=0),
        "is 0 x 64, and height and width must be pixels",
    ),
    "a file outside the images": (
        lambda d: d["images"][0].update(file_name="../../secret.jpg"),
        "leads out of the images folder",
    ),
    "a file of the system": (
        lambda d: d["images"][0].update(file_name="/etc/passwd"),
        "leads out of the images folder",
    ),
    "an annotation without a mask": (
        lambda d: d["annotations"][0].pop("segmentation"),
        "cannot be drawn .mask is None; give polygons or an RLE",
    ),
    "half a point": (
        lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        "a polygon of mask is .1, 2, 3, 4, ....; it must be x, y, x, y",
    ),
    "points that are no numbers": (
        lambda d: d["annotations"][0].update(segmentation=[["a", "b", "c", "d", "e", "f"]]),
        "cannot be drawn",
    ),
    "a mask of another size": (
        lambda d: run_lengths(d["annotations"][0], d["images"][0], size=[3, 4]),
        r"RLE is for \[3, 4\], but its image is \[58, 64\]",
    ),
    "too few run lengths": (
        lambda d: run_lengths(d["annotations"][0], d["images"][0], counts=[5, 5]),
        "do not add up to 3712 pixels",
    ),
    "damaged counts": (
        lambda d: run_lengths(d["annotations"][0], d["images"][0], counts="PPPP"),
        "cannot be drawn .*RLE",
    ),
}


@pytest.mark.parametrize("what", BAD_INSTANCES)
def test_annotations_that_are_not_coco_s_are_named(folder, scenes, what):
    change, says = BAD_INSTANCES[what]
    edit_instances(folder, change)
    with pytest.raises(UserError, match=says) as error:
        read(folder, scenes)
    assert str(error.value).count("instances.json") == 1 and "\n" not in str(error.value)


def test_boxes_are_not_read(folder, scenes, rows):
    edit_instances(folder, lambda d: [a.update(bbox=[-5, -5, -1, 0]) for a in d["annotations"]])
    assert read(folder, scenes) == rows


# ---- masks ---------------------------------------------------------------------------------------


def test_overlapping_parts_of_an_object_are_united():
    square = [2, 2, 8, 2, 8, 8, 2, 8]
    shifted = [5, 5, 11, 5, 11, 11, 5, 11]
    mask = rasterise(rle_module.to_rle([square, shifted], 12, 14), 12, 14)
    assert mask.shape == (12, 14) and mask.max() == 1
    assert mask.sum() == 36 + 36 - 9


def test_a_part_of_two_points_is_no_part():
    square = [2, 2, 8, 2, 8, 8, 2, 8]
    assert rle_module.to_rle([[1, 1, 3, 3], square], 12, 14) == rle_module.to_rle([square], 12, 14)
    assert rasterise(rle_module.to_rle([[1, 1, 3, 3]], 12, 14), 12, 14).sum() == 0


def test_run_lengths_as_a_list_and_compressed():
    mask = np.zeros((5, 4), np.uint8)
    mask[1:3, 1] = 1  # column-major runs: 6 zeros, 2 ones, 12 zeros
    as_list = rle_module.to_rle({"size": [5, 4], "counts": [6, 2, 12]}, 5, 4)
    assert np.array_equal(rasterise(as_list, 5, 4), mask)
    compressed = coco.encode(np.asfortranarray(mask))
    assert rle_module.to_rle(compressed, 5, 4) == as_list
    assert (
        rle_module.to_rle({"size": [5, 4], "counts": compressed["counts"].decode()}, 5, 4)
        == as_list
    )


# ---- rows ----------------------------------------------------------------------------------------


def test_rows_hold_every_ref_once_in_the_order_of_images(scenes, rows):
    refs = pickle.loads((scenes / "refcoco" / "refs(unc).p").read_bytes())
    assert [row["image_id"] for row in rows] == sorted({r["image_id"] for r in refs})
    flat = {ref["ref_id"]: (row, ref) for row in rows for ref in row["refs"]}
    assert len(flat) == len(refs)
    for given in refs:
        row, ref = flat[given["ref_id"]]
        assert (row["image_id"], ref["ann_id"], ref["split"]) == (
            given["image_id"],
            given["ann_id"],
            given["split"],
        )
        assert ref["sentences"] == [
            {k: s[k] for k in ("sent_id", "sent", "raw")} for s in given["sentences"]
        ]
        assert ref["ann_id"] in [o["ann_id"] for o in row["objects"]]


def test_words_and_vocabulary():
    assert refer_counts.split_words('The  "Red" ball, (left)!') == ["the", "red", "ball", "left"]

    def row(split, *sentences):
        return {
            "image_id": 1,
            "refs": [{"split": split, "sentences": [{"sent": s} for s in sentences]}],
        }

    rows = [row("train", "red ball", "red box"), row("val", "green green green")]
    assert refer_counts.vocabulary(rows) == ["red", "ball", "box"]
    assert refer_counts.vocabulary(rows[1:]) == ["green"]


@pytest.mark.parametrize(
    ("dataset", "split_by"),
    [
        ("refcoco", "unc"),
        ("refcoco", "google"),
        ("refcoco+", "unc"),
        ("refcocog", "umd"),
        ("refcocog", "google"),
    ],
)
def test_counts_are_held_against_the_published_ones(dataset, split_by):
    published = refer_counts.PUBLISHED[dataset, split_by]
    counts = {
        split: {"refs": r, "sentences": s or 7, "images": i}
        for split, (r, s, i) in published.items()
    }
    assert (
        refer_counts.against_published(dataset, split_by, counts)
        == f"counts are those of the published {dataset} ({split_by})"
    )
    counts["val"]["refs"] -= 3
    counts["spare"] = counts.pop("train")
    said = refer_counts.against_published(dataset, split_by, counts)
    assert (
        f"val {published['val'][0] - 3} refs, not {published['val'][0]}" in said
        and f"train 0 refs, not {published['train'][0]}" in said
    )
    assert f"spare {published['train'][0]} refs, not 0" in said and "\n" not in said


def test_published_counts_add_up_to_the_published_totals():
    totals = {
        key: tuple(sum(counts) for counts in zip(*splits.values(), strict=True))
        for key, splits in refer_counts.PUBLISHED.items()
        if key[1] != "google"
    }
    assert totals["refcoco", "unc"] == (50_000, 142_210, 19_994) and totals["refcoco+", "unc"] == (
        49_856,
        141_564,
        19_992,
    )
    assert totals["refcocog", "umd"] == (49_822, 95_010, 25_799)
    assert (
        refer_counts.against_published(
            "mine", "table", {"val": {"refs": 1, "sentences": 1, "images": 1}}
        )
        is None
    )


# ---- real data -----------------------------------------------------------------------------------


def test_real_refcoco_masks_are_exact(real_data):
    root = real_data / "mini_refer"
    rows = refer.read_refer(root, root / "images", "refcoco", "unc")
    found = {ref["ref_id"]: (row, ref) for row in rows for ref in row["refs"]}
    expected = json.loads((root / "expected.json").read_text())
    assert set(found) == {e["ref_id"] for e in expected}
    for e in expected:
        row, ref = found[e["ref_id"]]
        assert (row["image_id"], ref["ann_id"], ref["split"]) == (
            e["image_id"],
            e["ann_id"],
            e["split"],
        )
        rle = {o["ann_id"]: o["rle"] for o in row["objects"]}[ref["ann_id"]]
        mask = rasterise(rle, row["height"], row["width"])
        assert mask.sum() == e["mask_pixels"]
        assert hashlib.sha256(np.ascontiguousarray(mask).tobytes()).hexdigest() == e["mask_sha256"]


def test_real_refcoco_splits(real_data):
    root = real_data / "mini_refer"
    counts = refer_counts.split_counts(
        refer.read_refer(root, root / "images" / "train2014", "refcoco", "unc")
    )
    assert {split: c["refs"] for split, c in counts.items()} == {"val": 6, "testA": 4, "testB": 6}
    assert (
        sum(c["sentences"] for c in counts.values()) == 49
        and sum(c["images"] for c in counts.values()) == 6
    )


def test_real_annotations_of_every_kind_have_their_area(real_data):
    instances = json.loads((real_data / "coco128" / "instances_train2017.json").read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in instances["images"]}
    crowds = [a for a in instances["annotations"] if a["iscrowd"]]
    polygons = [a for a in instances["annotations"] if not a["iscrowd"] and a["area"] > 2000][:60]
    assert crowds and polygons

    def area(annotation):
        size = sizes[annotation["image_id"]]
        return int(rasterise(rle_module.to_rle(annotation["segmentation"], *size), *size).sum())

    assert [area(a) for a in crowds] == [
        sum(a["segmentation"]["counts"][1::2]) for a in crowds
    ]  # their `area` is another one
    assert [area(a) for a in polygons] == pytest.approx([a["area"] for a in polygons], rel=0.02)
