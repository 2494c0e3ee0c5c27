"""Test users' tables: every kind of mask, their rows, and one message for each bad line."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from aml.data import refer_counts, rle as rle_module
from aml.data.decode import rasterise
from aml.data.table import read_table
from aml.errors import UserError

HEIGHT, WIDTH = 30, 40


@pytest.fixture
def folder(tmp_path):
    """Make two pictures of 40 x 30 and a mask file of the left half of the first."""
    for k, name in enumerate(("a.jpg", "b.png")):
        Image.new("RGB", (WIDTH, HEIGHT), (k * 90, 10, 10)).save(tmp_path / name)
    half = np.zeros((HEIGHT, WIDTH), np.uint8)
    half[:, :20] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    return tmp_path


def square(left=0, top=0, side=10):
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def rle(mask, compressed=True):
    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()}


def line(**cells):
    return {
        "image": "a.jpg",
        "expression": "the left half",
        "mask": "half.png",
        "split": "train",
    } | cells


def write(folder, *lines, name="mine.jsonl"):
    path = folder / name
    if name.endswith(".csv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    else:
        path.write_text(
            "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
        )
    return path


def areas(rows):
    return [
        int(rasterise(rle_module.referent(row, ref), row["height"], row["width"]).sum())
        for row in rows
        for ref in row["refs"]
    ]


TOP = np.zeros((HEIGHT, WIDTH), bool)
TOP[:5] = True
MASKS = {
    "a PNG": ("half.png", 20 * 30),
    "polygons": ([square(), square(5, 5)], 100 + 100 - 25),
    "one polygon": (square(), 100),
    "an RLE": (rle(TOP), 5 * 40),
    "an RLE as a list": ({"size": [HEIGHT, WIDTH], "counts": [30, 30, 1140]}, 30),
    "nothing": (None, 0),
}


@pytest.mark.parametrize("kind", ["mine.jsonl", "mine.csv"])
@pytest.mark.parametrize("mask", MASKS)
def test_every_kind_of_mask_in_both_kinds_of_table(folder, kind, mask):
    given, pixels = MASKS[mask]
    cell = (
        given
        if kind.endswith("jsonl") or isinstance(given, str)
        else ""
        if given is None
        else json.dumps(given)
    )
    (row,) = read_table(write(folder, line(mask=cell), name=kind))
    assert areas([row]) == [pixels] and (row["height"], row["width"]) == (HEIGHT, WIDTH)
    assert (row["dataset"], row["split_by"], row["refs"][0]["no_target"]) == (
        "mine",
        "table",
        given is None,
    )


def test_mask_files_of_other_modes(folder):
    half = np.asarray(Image.open(folder / "half.png"))
    pictures = {
        "bits.png": Image.fromarray(half).convert("1"),
        "colour.png": Image.fromarray(np.stack([half * 0, half, half * 0], 2)),
        "opaque.png": Image.fromarray(np.stack([half, half, half, np.full_like(half, 255)], 2)),
        "deep.png": Image.fromarray(half.astype(np.uint16) * 200),
        "palette.png": Image.fromarray(half // 255).convert("P"),
    }
    for name, picture in pictures.items():
        picture.save(folder / name)
        assert areas(read_table(write(folder, line(mask=name)))) == [600], name


def test_lines_of_one_image_split_and_mask_or_of_one_ref_id_are_one_referent(folder):
    path = write(
        folder,
        line(),
        line(expression=" The dark side ", mask="half.png"),
        line(mask=square()),
        line(split="val"),
        line(image="b.png", mask=None, expression="a zebra"),
        line(image="b.png", mask=square(), ref_id=7),
        line(image="b.png", mask=square(), ref_id=8),
        line(image="b.png", mask=square(), ref_id=7, expression="again"),
    )
    rows = {row["file_name"]: row for row in read_table(path)}
    said = {
        name: [
            (r["ref_id"], r["split"], [s["sent_id"] for s in r["sentences"]]) for r in row["refs"]
        ]
        for name, row in rows.items()
    }
    assert said["a.jpg"] == [(8 + 1, "train", [1, 2]), (8 + 3, "train", [3]), (8 + 4, "val", [4])]
    assert said["b.png"] == [(8 + 5, "train", [5]), (7, "train", [6, 8]), (8, "train", [7])]
    assert rows["a.jpg"]["refs"][0]["sentences"][1] == {
        "sent_id": 2,
        "sent": "The dark side",
        "raw": " The dark side ",
    }
    assert refer_counts.split_counts(list(rows.values()))["train"] == {
        "refs": 5,
        "sentences": 7,
        "images": 2,
        "no_target": 1,
    }
    assert len(rows["a.jpg"]["objects"]) == 2 and len(rows["b.png"]["objects"]) == 1


def test_image_ids_are_given_or_coco_s_or_of_the_content(folder):
    coco_name = "COCO_train2014_000000581857.jpg"
    for copy in (coco_name, "000000000009.jpg", "twin.jpg"):
        (folder / copy).write_bytes((folder / "a.jpg").read_bytes())
    (folder / "twin.jpg").write_bytes((folder / "b.png").read_bytes())
    images = (coco_name, "000000000009.jpg", "a.jpg", "b.png")
    rows = {
        r["file_name"]: r["image_id"]
        for r in read_table(write(folder, *(line(image=i, mask=square()) for i in images)))
    }
    assert (
        rows[coco_name] == 581857
        and rows["000000000009.jpg"] == 9
        and rows["a.jpg"] != rows["b.png"] > 10**9
    )
    assert list(rows.values()) == sorted(rows.values()) and max(rows.values()) < 2**63
    (row,) = read_table(write(folder, line(image_id=12)))
    assert row["image_id"] == 12
    with pytest.raises(
        UserError,
        match=r"b\.png and twin\.jpg both have image_id \d+; give each image one of its own",
    ):
        read_table(
            write(folder, line(image="b.png", mask=square()), line(image="twin.jpg", mask=square()))
        )


BAD = [
    ({"image": "z.jpg"}, "image .*z.jpg cannot be read .it is missing.; give a JPEG, PNG"),
    ({"image": "mine.jsonl"}, "it is no picture"),
    ({"image": "../a.jpg"}, "leads out of the images folder"),
    ({"image": "/etc/passwd"}, "leads out of the images folder"),
    ({"mask": "../../half.png"}, "leads out of the table's folder"),
    ({"expression": "  "}, "expression is '  ', which holds no word; it must be some text"),
    ({"split": None}, "split is None"),
    ({"split": "val,test"}, "name one split"),
    ({"image_id": -4}, "image_id is -4; it must be a whole number"),
    ({"ref_id": 1.5}, "ref_id is 1.5; it must be a whole number"),
    ({"mask": "none.png"}, r"mask .*none\.png cannot be read .*give a PNG file"),
    ({"mask": "small.png"}, "is 4 x 3, but its image is 40 x 30"),
    ({"mask": [[1, 2, 3, 4]]}, "covers no pixel .* at least three points"),
    ({"mask": [[1, 2, 3, 4, 5, 6, 7]]}, "at least three points"),
    ({"mask": [[1, 2, 3, 4, "5", 6]]}, "at least three points"),
    ({"mask": [square(100, 100)]}, "covers no pixel of the picture; leave it empty"),
    ({"mask": {"size": [3, 4], "counts": "04"}}, r"is for \[3, 4\], but its image is \[30, 40\]"),
    ({"mask": {"size": [HEIGHT, WIDTH], "counts": [5, 5]}}, "do not add up to 1200 pixels"),
    ({"mask": {"size": [HEIGHT, WIDTH], "counts": "51"}}, "RLE is damaged"),
    ({"mask": {"size": [HEIGHT, WIDTH], "counts": "PPPP"}}, "RLE is damaged"),
    ({"mask": {"size": [HEIGHT, WIDTH]}}, "has counts None"),
    ({"mask": True}, "mask is True; give polygons"),
    ({"mask": "[[1, 2"}, "mask is not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("cells", "says"), BAD)
def test_a_bad_line_is_named_with_what_was_wanted(folder, cells, says):
    Image.new("L", (4, 3), 1).save(folder / "small.png")
    path = write(folder, line(), line(**cells))
    with pytest.raises(UserError, match=rf"^{path} line 2: .*{says}") as error:
        read_table(path)
    assert "\n" not in str(error.value)


def test_every_bad_line_gets_its_sentence(folder):
    path = write(
        folder,
        line(ref_id=1),
        "{",
        line(ref_id=1, mask=square()),
        "[1]",
        line(image_id=3),
        '{"image": "a.jpg"}',
        "",
        line(),
    )
    with pytest.raises(UserError) as error:
        read_table(path)
    said = str(error.value).splitlines()
    assert [text.partition(":")[0] for text in said] == [
        f"{path} line {n}" for n in (2, 3, 4, 5, 6)
    ]
    wanted = (
        "not valid JSON",
        "ref_id 1 had another mask or split",
        "it is list, not an object",
        "image_id is 3, but a.jpg had",
        "it lacks expression, mask",
    )
    assert all(words in text for words, text in zip(wanted, said, strict=True))
    many = write(folder, *["{"] * 50)
    with pytest.raises(UserError, match="and 30 more lines"):
        read_table(many)


def test_a_turned_picture_is_refused(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "turned.jpg", exif=exif)
    with pytest.raises(UserError, match="EXIF orientation 6.*save it upright"):
        read_table(write(folder, line(image="turned.jpg")))


def test_files_that_are_no_table(folder):
    for name, content, says in (
        ("t.xlsx", b"", "no table by its name"),
        ("t.csv", b"image,expression\n", "line 1: the header lacks mask, split"),
        (
            "t.csv",
            b"image,expression,mask,split\na.jpg,left, man,half.png,val\n",
            "line 2: it has not the 4 cells of the header",
        ),
        (
            "t.csv",
            b'image,expression,mask,split\na.jpg,"left"x,half.png,val\n',
            "line 2: it is not valid CSV",
        ),
        ("t.jsonl", b"", "holds no line"),
        ("t.jsonl", b"\xff\xfe", "is not UTF-8 text"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=says):
            read_table(folder / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_table(folder / "none.jsonl")


def test_a_spreadsheet_s_csv_with_a_byte_order_mark(folder):
    path = write(folder, line(expression='the "left", dark one'), name="t.csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_table(path)[0]["refs"][0]["sentences"][0]["sent"] == 'the "left", dark one'


# ---- through the command -------------------------------------------------------------------------


@pytest.fixture
def coco_table(real_data, tmp_path):
    """Write a table of real objects, crowds among them; return it and {annotation: its mask}.

    The expression of each line is the category of the object.
    """
    instances = json.loads((real_data / "coco128" / "instances_train2017.json").read_text())
    names = {c["id"]: c["name"] for c in instances["categories"]}
    files = {i["id"]: i for i in instances["images"]}
    some = [a for a in instances["annotations"] if not a["iscrowd"]][:60] + [
        a for a in instances["annotations"] if a["iscrowd"]
    ]
    lines = [
        {
            "image": files[a["image_id"]]["file_name"],
            "expression": names[a["category_id"]],
            "mask": a["segmentation"],
            "split": "val",
            "ref_id": a["id"],
        }
        for a in some
    ]
    masks = {
        a["id"]: rle_module.to_rle(
            a["segmentation"], files[a["image_id"]]["height"], files[a["image_id"]]["width"]
        )
        for a in some
    }
    return (
        write(tmp_path, *lines, name="coco.jsonl"),
        real_data / "coco128" / "images",
        masks,
        {a["image_id"] for a in some},
    )


def test_real_coco_pictures_as_a_table(coco_table):
    path, images, masks, ids = coco_table
    rows = read_table(path, images)
    assert [row["image_id"] for row in rows] == sorted(ids)
    assert {
        ref["ref_id"]: rle_module.referent(row, ref) for row in rows for ref in row["refs"]
    } == masks


def test_real_coco_pictures_go_through_the_command(coco_table, ray_session, tmp_path):
    from orchestrator.data import shards as shards_module
    from orchestrator.storage import filesystem

    (path, images, masks, ids), out = coco_table, tmp_path / "out"
    code, text = ray_session(
        ["shard", "--table", str(path), "--images", str(images), "--out", str(out), "--json"]
    )
    assert code == 0, text
    assert json.loads(text.splitlines()[-1])["splits"] == {
        "val": {"refs": len(masks), "sentences": len(masks), "images": len(ids)}
    }
    store = filesystem.Filesystem(out)
    rows = list(
        shards_module.read_rows(store, shards_module.picture_places(store, ["val"]), jpeg=False)
    )
    assert {
        ref["ref_id"]: rle_module.referent(row, ref) for row in rows for ref in row["refs"]
    } == masks


def test_the_command_names_a_bad_table(folder, capsys):
    from orchestrator.cli.app import main

    path = write(folder, line(mask="none.png"))
    for arguments, says in (
        (["--table", str(path), "--out", str(folder / "out")], "line 1: mask"),
        (["--table", str(path)], "shard needs"),
        (["--table", str(path), "--refer-root", str(folder), "--out", "x"], "shard needs"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["shard", *arguments])
        assert left.value.code == 2 and says in capsys.readouterr().err
