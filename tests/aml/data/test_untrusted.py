"""Test that masks, tables and REFER files of strangers give rows or one sentence."""

import json
import pickle
import resource

import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from PIL import Image

from aml.data import rasterise, referent, table
from aml.data.refer import read_refer
from aml.data.rle import to_rle
from aml.data.table import read_table
from aml.errors import UserError
from tests.support.fuzzing import SCALARS, damaged, outcome, replaced

HEIGHT, WIDTH = 12, 14
SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]
COUNTS = [14, 5, 7, 5, HEIGHT * WIDTH - 31]
COMPRESSED = to_rle({"size": [HEIGHT, WIDTH], "counts": COUNTS}, HEIGHT, WIDTH)
MASKS = (
    [SQUARE, [1.5, 1, 3, 3]],
    {"size": [HEIGHT, WIDTH], "counts": COUNTS},
    {"size": [HEIGHT, WIDTH], "counts": COMPRESSED},
)
LINE = {"image": "a.png", "expression": "left dog", "mask": MASKS[0], "split": "val", "ref_id": 3}
REFS = [
    {
        **{"ref_id": i, "ann_id": 5 + i, "image_id": 1, "split": "val", "file_name": "x_1.jpg"},
        "sentences": [{"sent_id": i, "sent": "left dog", "raw": "Left dog", "tokens": ["left"]}],
    }
    for i in (0, 1)
]
INSTANCES = {
    "images": [{"id": 1, "height": HEIGHT, "width": WIDTH, "file_name": "a.png"}],
    "annotations": [
        {"id": 5 + i, "image_id": 1, "category_id": 2, "segmentation": mask, "iscrowd": 0}
        for i, mask in enumerate(MASKS)
    ],
    "categories": [{"id": 2, "name": "dog"}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("untrusted")
    Image.new("RGB", (WIDTH, HEIGHT)).save(made / "a.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:5] = 1
    Image.fromarray(mask).save(made / "mask.png")
    (made / "refcoco").mkdir()
    (made / "grefcoco").mkdir()
    return made


def check_rows(rows):
    """Hold rows against what the other packages rely on: they become JSON, and masks decode."""
    json.dumps(rows).encode()
    for row in rows:
        assert 0 <= row["image_id"] < 2**63
        for ref in row["refs"]:
            assert 0 <= ref["ref_id"] < 2**63 and ref["sentences"]
            mask = rasterise(referent(row, ref), row["height"], row["width"])
            assert mask.any() or ref["no_target"]


# ---- masks ---------------------------------------------------------------------------------------


BAD_MASKS = {
    "a corner far away": ([[0, 0, 1e9, 0, 5, 5]], "no more than 4 sides beyond"),
    "a corner at infinity": ([[0, 0, float("inf"), 0, 5, 5]], "no more than 4 sides beyond"),
    "a corner that is no number": ([[float("nan")] * 6], "no more than 4 sides beyond"),
    "corners of nothing": ([[None] * 6], "it must be x, y"),
    "a corner of 400 digits": ([[0, 0, 10**400, 0, 5, 5]], "no more than 4 sides beyond"),
    "many polygons": ([SQUARE] * 3000, "3000 polygons"),
    "long edges": ([[0, 0, 60, 60] * 50_000], "edges of 6000000 pixels"),
    "another size": ({"size": [9, 9], "counts": [81]}, r"is for \[9, 9\]"),
    "runs that stop early": ({"size": [HEIGHT, WIDTH], "counts": "4P"}, "RLE is damaged"),
    "runs beyond the picture": ({"size": [HEIGHT, WIDTH], "counts": "X5P1"}, "RLE is damaged"),
    "a run of many groups": ({"size": [HEIGHT, WIDTH], "counts": "P" * 999}, "RLE is damaged"),
    "runs below nothing": ({"size": [HEIGHT, WIDTH], "counts": [200, -32]}, "do not add up"),
    "no runs": ({"size": [HEIGHT, WIDTH], "counts": ""}, "RLE is damaged"),
    "a run that is true": ({"size": [1, 1], "counts": [True]}, "is for|do not add up"),
    "no mask": (5, "give polygons or an RLE"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_MASKS)
def test_a_mask_is_refused_before_it_is_drawn(what):
    mask, says = BAD_MASKS[what]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=says):
        to_rle(mask, HEIGHT, WIDTH)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_counts_of_shards_are_checked_before_they_are_decoded():
    for counts in ("", "P" * 20, "X5P1", COMPRESSED[:-1], "é"):
        with pytest.raises(UserError, match="the shards are damaged .*RLE is damaged"):
            rasterise(counts, HEIGHT, WIDTH)


@pytest.mark.parametrize("read", ["table", "refer"])
def test_parts_of_two_corners_are_left_out_by_both_readers(folder, read):
    """Read the same mask from a table and from instances.json."""
    readers = {"table": read_lines, "refer": lambda f, line: read_files(f, line["mask"])}
    (whole,) = readers[read](folder, LINE | {"mask": [SQUARE]})
    (parted,) = readers[read](folder, LINE | {"mask": [SQUARE, [1, 1, 3, 3]]})
    assert parted["objects"][0]["rle"] == whole["objects"][0]["rle"]
    with pytest.raises(UserError, match="covers no pixel"):
        readers[read](folder, LINE | {"mask": [[1, 1, 3, 3]]})


@pytest.mark.fuzz
@given(st.sampled_from(MASKS).flatmap(replaced))
@example([[0, 0, 1e300, 0, 5, 5]])
def test_any_mask_is_drawn_or_refused(mask):
    found = outcome(to_rle, mask, HEIGHT, WIDTH)
    if isinstance(found, str):
        assert rasterise(found, HEIGHT, WIDTH).max() <= 1


@pytest.mark.fuzz
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_any_text_of_counts_is_decoded_whole_or_refused(text):
    found = outcome(to_rle, {"size": [3, 4], "counts": text}, 3, 4)
    if isinstance(found, str):
        mask = rasterise(found, 3, 4)
        assert mask.shape == (3, 4) and to_rle({"size": [3, 4], "counts": found}, 3, 4) == found


# ---- tables --------------------------------------------------------------------------------------


def read_lines(folder, *lines):
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return read_table(folder / "t.jsonl")


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"image": "a\0.png"}, "with a NUL character"),
        ({"image": "a" * 2000}, "has 2000 letters"),
        ({"image": "a\n.png"}, "with a control character"),
        ({"image": "refcoco"}, "it is a folder"),
        ({"expression": "..."}, "holds no word"),
        ({"expression": "a\0b"}, "with a NUL character"),
        ({"expression": "a\ud800b"}, "half of a character"),
        ({"expression": "dog " * 2000}, "has 8000 letters"),
        ({"ref_id": 7.0}, "ref_id is 7.0; it must be a whole number"),
        ({"ref_id": True}, "ref_id is True; it must be"),
        ({"image_id": 2**63}, "image_id is 9223372036854775808; it must be"),
        ({"split": "a\nb"}, "it must be one name"),
        ({"mask": "a.png"}, None),
        ({"mask": "../a.png"}, "leads out of the table's folder"),
    ],
)
def test_a_cell_that_cannot_be_used_is_named(folder, cells, says):
    with pytest.raises(UserError, match=says and f"t.jsonl line 1: .*{says}"):
        read_lines(folder, LINE | cells)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"image,expression,mask,split,image\n", "line 1: the header has a column twice"),
        (b"image,expression,mask,split" + b",x" * 200 + b"\n", "line 1: the header has a column"),
        (b"image,expression,mask,split\na.png,a\0b,,val\n", "line 2: .*with a NUL character"),
        (b"x" * 2000, "line 1: it is not valid CSV .field larger than field limit"),
        (b"image,expression,mask,split\na.png," + b"x" * 2000, "line 2: it is not valid CSV"),
    ],
)
def test_csv_that_cannot_be_used_is_named(folder, monkeypatch, content, says):
    monkeypatch.setattr(table, "CELL_LETTERS", 1000)
    (folder / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=f"t.csv {says}"):
        read_table(folder / "t.csv")


@pytest.mark.fuzz
@given(replaced(LINE), st.sampled_from([*MASKS, "mask.png", None]))
def test_any_line_gives_a_row_or_a_sentence(folder, line, mask):
    if isinstance(line, dict) and line.get("mask") == LINE["mask"]:
        line["mask"] = mask
    try:
        text = json.dumps([line])[1:-1]
    except TypeError:  # bytes
        return
    (folder / "t.jsonl").write_text(text)
    found = outcome(read_table, folder / "t.jsonl")
    if isinstance(found, list):
        check_rows(found)


@pytest.mark.fuzz
@given(
    damaged(
        b'image,expression,mask,split,image_id\r\na.png,"left ""dog""",mask.png,val,7\r\n'
        b'a.png,right dog,"[[2,2,8,2,8,8,2,8]]",val,\r\n'
    )
)
def test_a_damaged_csv_gives_rows_or_a_sentence(folder, content):
    (folder / "t.csv").write_bytes(content)
    found = outcome(read_table, folder / "t.csv")
    if isinstance(found, list):
        check_rows(found)


# ---- REFER's files -------------------------------------------------------------------------------


def write_files(folder, refs, instances, dataset="refcoco"):
    if dataset == "refcoco":
        (folder / dataset / "refs(unc).p").write_bytes(pickle.dumps(refs))
    else:
        (folder / dataset / "grefs(unc).json").write_text(json.dumps(refs))
    (folder / dataset / "instances.json").write_text(json.dumps(instances))


def read_files(folder, mask):
    annotation = INSTANCES["annotations"][0] | {"segmentation": mask}
    write_files(folder, REFS[:1], INSTANCES | {"annotations": [annotation]})
    return read_refer(folder, folder, "refcoco", "unc")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ann_id": {"a": 1}}, r"ref 0 has ann_id \{'a': 1\}, and it must be a whole number"),
        ({"ann_id": 7.0}, "ref 0 has ann_id 7.0"),
        ({"ref_id": -1}, "ref -1 has ref_id -1"),
        ({"image_id": 2**63}, "ref 0 has image_id 9223372036854775808"),
        ({"sentences": 5}, "ref 0 has no sentence, but 5"),
        ({"sentences": [5]}, "ref 0 has a sentence without sent_id .*: 5"),
        ({"split": "a\nb"}, "ref 0 has a split that is"),
    ],
)
def test_a_ref_that_cannot_be_used_is_named(folder, change, says):
    write_files(folder, [REFS[0] | change, REFS[1]], INSTANCES)
    with pytest.raises(UserError, match=rf"refs\(unc\)\.p: {says}"):
        read_refer(folder, folder, "refcoco", "unc")


@pytest.mark.parametrize(
    ("change", "says"),
    [({"sent": ""}, "sent is '', which holds no word"), ({"sent": "..."}, "holds no word"),
     ({"sent": "a\ud800"}, "half of a character"), ({"raw": b"x"}, "raw is b'x', no text"),
     ({"raw": "x" * 9999}, "raw has 9999 letters"), ({"sent_id": 1.0}, "without sent_id")],
)  # fmt: skip
def test_a_sentence_that_cannot_be_used_is_named(folder, change, says):
    write_files(folder, [REFS[0] | {"sentences": [REFS[0]["sentences"][0] | change]}], INSTANCES)
    with pytest.raises(UserError, match=rf"refs\(unc\)\.p: ref 0 has a sentence .*{says}"):
        read_refer(folder, folder, "refcoco", "unc")


@pytest.mark.parametrize(
    ("key", "change", "says"),
    [
        ("images", {"height": 100_000, "width": 100_000}, "100 megapixels are the most.*--max-me"),
        ("images", {"height": True}, "height and width must be pixels"),
        ("images", {"file_name": "a\0"}, "with a NUL character"),
        ("images", {"id": 1.0}, "image 1.0 has id 1.0"),
        ("annotations", {"category_id": None}, "annotation 5 has category_id None"),
        ("annotations", {"image_id": [1]}, r"annotation 5 has image_id \[1\]"),
        ("annotations", {"iscrowd": "no"}, "iscrowd 'no', and it is 0 or 1"),
        ("categories", {"name": [1]}, r"category 2 has a name that is \[1\], no text"),
    ],
)
def test_an_entry_of_coco_s_that_cannot_be_used_is_named(folder, key, change, says):
    write_files(folder, REFS[:1], INSTANCES | {key: [INSTANCES[key][0] | change]})
    with pytest.raises(UserError, match=rf"instances\.json: .*{says}"):
        read_refer(folder, folder, "refcoco", "unc")


@pytest.mark.fuzz
@given(replaced(REFS), st.sampled_from(["refcoco", "grefcoco"]))
def test_any_refs_give_rows_or_a_sentence(folder, refs, dataset):
    try:
        write_files(folder, refs, INSTANCES, dataset)
    except TypeError:  # bytes in JSON
        return
    found = outcome(read_refer, folder, folder, dataset, "unc")
    if isinstance(found, list):
        check_rows(found)


@pytest.mark.fuzz
@given(replaced(INSTANCES, SCALARS.filter(lambda value: not isinstance(value, bytes))))
def test_any_instances_give_rows_or_a_sentence(folder, instances):
    write_files(folder, REFS, instances)
    found = outcome(read_refer, folder, folder, "refcoco", "unc")
    if isinstance(found, list):
        check_rows(found)


@pytest.mark.fuzz
@given(damaged(pickle.dumps(REFS, 2)), damaged(json.dumps(INSTANCES).encode()), st.booleans())
def test_damaged_files_give_rows_or_a_sentence(folder, refs, instances, first):
    write_files(folder, REFS, INSTANCES)
    name, content = ("refs(unc).p", refs) if first else ("instances.json", instances)
    (folder / "refcoco" / name).write_bytes(content)
    found = outcome(read_refer, folder, folder, "refcoco", "unc")
    if isinstance(found, list):
        check_rows(found)
