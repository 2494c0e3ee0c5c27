"""Read a user's own data, a table as JSON lines or CSV with one sentence a line, into rows.

Columns of the table:

- image: a JPEG, PNG, WebP, BMP or TIFF file of 8 bits a channel, relative to the images folder
  (default: the folder of the table);
- expression: the sentence;
- mask: a PNG file relative to the table's folder (every pixel but 0 belongs to the referent),
  polygons [[x, y, x, y, ...], ...], or COCO's RLE {"size": [height, width], "counts": ...}; empty
  or null for an expression that names nothing in the picture;
- split: train, val, test or any other name;
- image_id: optional whole number; by default COCO's id where the file is named as COCO names it,
  else a hash of the file;
- ref_id: optional whole number that lines of one referent share; by default lines of one image,
  split and mask are one referent.

Rows are those of `refer`, with the name of the table's file as data set and split_by `table`.
"""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aml.data.refer_counts import sentence_problem
from aml.data.rle import read_mask
from aml.errors import UserError
from aml.reading import (
    ID,
    MAX_PIXELS,
    describe,
    file_problem,
    is_id,
    open_picture,
    orientation,
    parse_json,
    read_picture,
    read_text,
    split_problem,
)

COLUMNS = ("image", "expression", "mask", "split")

SPLIT_BY = "table"

SHOWN = 20
"""Bad lines that are named at most."""

COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.(?:jpg|png)", re.IGNORECASE)

MAX_BYTES = 1 << 28
"""Largest table in bytes."""

MAX_COLUMNS = 100
"""Columns of a CSV file at most."""

MAX_UNSHOWN = 1000
"""Bad lines beyond those, after which the rest is not read."""

CELL_LETTERS = 1 << 24
"""Letters of a cell or of a line of JSON at most; csv's own limit is below a detailed polygon."""

LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n|\Z)")

NUMBER = re.compile(r" *[0-9]{1,19} *")

WANTED = {
    "image": "give the name of a picture, and the folder that it is in by --images",
    "expression": 'it must be some text that says what to look for, as "the left dog"',
    "split": "name one split, as train, val or test",
}
"""What to do about a bad cell."""


def read_table(path: Path, images: Path | None = None, max_pixels: int = MAX_PIXELS) -> list[dict]:
    """Read a table into rows without their JPEG.

    Args:
        path: the table, a .csv, .jsonl or .ndjson file.
        images: folder of the images; by default the folder of the table.
        max_pixels: height times width of a picture at most.

    Returns:
        One row an image, in the order of image_id; `path` names its file.

    Raises:
        UserError: the file is no such table, or has bad lines; the message then has one sentence
            for each of them, with its number and what was wanted.
    """
    path = Path(path)
    folder = Path(images or path.parent).absolute()
    found: dict[str, _Image] = {}
    problems: list[str] = []
    unshown = 0
    for line, entry in _entries(path):
        try:
            _add(found, line, _checked(entry), folder, path, max_pixels)
        except UserError as problem:
            if len(problems) < SHOWN:
                problems.append(f"{path} line {line}: {problem}")
            else:
                unshown += 1
            if unshown == MAX_UNSHOWN:
                break
    if problems:
        more = [f"and {unshown} more lines"] if unshown else []
        if unshown == MAX_UNSHOWN:
            more = [f"and {unshown} more lines and maybe others: the rest was not read"]
        raise UserError("\n".join(problems + more))
    rows = {file: image.row for file, image in found.items()}
    if not rows:
        raise UserError(
            f"{path} holds no line; give one for each expression, with {', '.join(COLUMNS)}"
        )
    _number(rows.values())
    ids: dict[int, str] = {}
    for file, row in rows.items():
        if ids.setdefault(row["image_id"], file) != file:
            raise UserError(
                f"{path}: {ids[row['image_id']]} and {file} both have image_id {row['image_id']}; "
                "give each image one of its own"
            )
    return sorted(rows.values(), key=lambda row: row["image_id"])


def peek_table(path: Path, pictures: int) -> tuple[Counter[str], list[str]]:
    """Return how many lines each split of a table has, and the names of its first pictures.

    Nothing but the columns is checked.

    Args:
        path: the table, a .csv, .jsonl or .ndjson file.
        pictures: how many names are wanted.

    Raises:
        UserError: the file is no such table.
    """
    splits: Counter[str] = Counter()
    names: dict[str, None] = {}
    for _, entry in _entries(path):
        if isinstance(entry, str) or not set(COLUMNS) <= entry.keys():
            raise UserError(f"{path} is no table; it needs {', '.join(COLUMNS)} on every line")
        splits[str(entry["split"])] += 1
        if len(names) < pictures:
            names[str(entry["image"])] = None
    return splits, list(names)


def _entries(path: Path) -> Iterator[tuple[int, dict | str]]:
    """Yield (line number, cells) of a table.

    A str in place of the cells says what is wrong with the line.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl", ".ndjson"):
        raise UserError(
            f"{path} is no table by its name; give a .csv file with a header, or a .jsonl file "
            "with one JSON object a line"
        )
    text = read_text(path, "a table", MAX_BYTES)
    yield from _csv(path, text) if kind == ".csv" else _json_lines(text)


def _csv(path: Path, text: str) -> Iterator[tuple[int, dict | str]]:
    """Yield (line number, cells or what is wrong) of CSV text."""
    csv.field_size_limit(CELL_LETTERS)
    reader = csv.DictReader(_lines(text), strict=True)
    try:
        header = reader.fieldnames or ()
        missing = [column for column in COLUMNS if column not in header]
        if missing or len(set(header)) < len(header) or len(header) > MAX_COLUMNS:
            problem = (
                f"lacks {', '.join(missing)}"
                if missing
                else (f"has a column twice, or more than {MAX_COLUMNS}")
            )
            raise UserError(
                f"{path} line 1: the header {problem}; it needs {', '.join(COLUMNS)} (and may have "
                "image_id, ref_id)"
            )
        for entry in reader:
            if None in entry or None in entry.values():
                problem = f"it has not the {len(header)} cells of the header"
                yield reader.line_num, f"{problem}; quote cells that hold commas"
            else:
                yield reader.line_num, entry
    except csv.Error as error:
        yield (
            reader.line_num + 1,
            f"it is not valid CSV ({error}); quote cells that hold commas or quotes, doubling the "
            "quotes",
        )


def _json_lines(text: str) -> Iterator[tuple[int, dict | str]]:
    """Yield (line number, cells or what is wrong) of JSON lines."""
    for line, part in enumerate(_lines(text), 1):
        if not part.strip():
            continue
        if len(part) > CELL_LETTERS:
            yield line, f"it has {len(part)} letters, and {CELL_LETTERS} are the most"
            continue
        try:
            entry = parse_json(part.rstrip("\r\n"), "it", advice="give one object a line")
        except UserError as problem:
            yield line, str(problem)
            continue
        if not isinstance(entry, dict):
            entry = f"it is {type(entry).__name__}, not an object with {', '.join(COLUMNS)}"
        yield line, entry


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a text with their ends, one in memory at a time."""
    return (found[0] for found in LINE.finditer(text) if found[0])


def _checked(entry: dict | str) -> dict:
    """Return the cells, checked as far as is possible without the picture."""
    if isinstance(entry, str):
        raise UserError(entry)
    missing = [column for column in COLUMNS if column not in entry]
    if missing:
        raise UserError(f"it lacks {', '.join(missing)}; give {', '.join(COLUMNS)}")
    judged = {
        "image": file_problem(entry["image"], "the images folder"),
        "expression": sentence_problem(entry["expression"]),
        "split": split_problem(entry["split"]),
    }
    for column, problem in judged.items():
        if problem:
            raise UserError(f"{column} {problem}; {WANTED[column]}")
    return entry | {column: _whole(column, entry.get(column)) for column in ("image_id", "ref_id")}


def _whole(column: str, value: Any) -> int | None:
    """Return an optional cell as a whole number, None where it is empty."""
    if value in (None, ""):
        return None
    number = int(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value
    if not is_id(number):
        raise UserError(f"{column} is {describe(value)}; it must be {ID}, or be left out")
    return number


@dataclass
class _Image:
    """Row of an image, with what finds its objects and refs among any number of them."""

    row: dict
    objects: dict[str, int] = field(default_factory=dict)
    """{RLE: ann_id}"""
    refs: dict[tuple, dict] = field(default_factory=dict)
    """{(ref_id or None, split, annotations): ref}"""
    given: dict[int, tuple] = field(default_factory=dict)
    """{ref_id that was given: (split, annotations)}"""


def _add(
    images: dict[str, _Image], line: int, entry: dict, folder: Path, table: Path, max_pixels: int
) -> None:
    """Add the sentence of a line to the row of its image, which is made if it is missing.

    Args:
        images: {image file: its row}.
        line: number of the line, which becomes the sent_id.
        entry: the checked cells.
        folder: the images folder.
        table: path of the table.
        max_pixels: height times width of a picture at most.
    """
    file = entry["image"]
    image = images.get(file) or _Image(_row(entry, folder / file, table, max_pixels))
    row = image.row
    if entry["image_id"] not in (None, row["image_id"]):
        raise UserError(
            f"image_id is {entry['image_id']}, but {file} had {row['image_id']} before; give one "
            "image one image_id"
        )
    rle = read_mask(entry["mask"], table.parent, row["height"], row["width"])
    ref = _ref(image, entry, rle)
    ref["sentences"].append(
        {"sent_id": line, "sent": entry["expression"].strip(), "raw": entry["expression"]}
    )
    images[file] = image


def _row(entry: dict, file: Path, table: Path, max_pixels: int) -> dict:
    """Return the row of an image, without refs.

    Args:
        entry: the checked cells of the first line of the image.
        file: the image.
        table: path of the table.
        max_pixels: height times width of a picture at most.
    """
    content = read_picture(file, f"image {file}")
    picture = open_picture(content, f"image {file}", max_pixels)
    turned = orientation(picture, f"image {file}")
    if turned != 1:
        raise UserError(
            f"image {file} is to be turned when shown (EXIF orientation {turned}), so its mask is "
            "uncertain; save it upright"
        )
    return {
        "dataset": table.stem,
        "split_by": SPLIT_BY,
        "image_id": _image_id(entry["image_id"], file.name, content),
        "file_name": entry["image"],
        "height": picture.height,
        "width": picture.width,
        "objects": [],
        "refs": [],
        "path": str(file),
    }


def _image_id(given: int | None, name: str, content: bytes) -> int:
    """Return the given id, else COCO's id in the name, else 63 bits of a hash of the content."""
    if given is not None:
        return given
    known = COCO_NAME.fullmatch(name)
    if known:
        return int(known[1])
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def _ref(image: _Image, entry: dict, rle: str | None) -> dict:
    """Return the ref of a line in the row of its image, which is made if it is missing.

    Args:
        image: the row. Its objects are the different masks of its lines.
        entry: the checked cells of the line.
        rle: the mask; None for an expression that names nothing.
    """
    targets = [] if rle is None else [image.objects.get(rle, len(image.objects) + 1)]
    ref_id = entry["ref_id"]
    named = entry["split"].strip(), tuple(targets)
    if ref_id is not None and image.given.setdefault(ref_id, named) != named:
        raise UserError(
            f"ref_id {ref_id} had another mask or split before; give one referent one mask and one "
            "split"
        )
    if rle is not None and rle not in image.objects:
        image.objects[rle] = targets[0]
        image.row["objects"].append({"ann_id": targets[0], "category": "referent", "rle": rle})
    if (ref_id, *named) not in image.refs:
        ref = {
            "ref_id": ref_id,
            "ann_ids": targets,
            "no_target": not targets,
            "split": named[0],
            "sentences": [],
        }
        image.refs[ref_id, *named] = ref
        image.row["refs"].append(ref)
    return image.refs[ref_id, *named]


def _number(rows: Iterable[dict]) -> None:
    """Number the refs without a ref_id.

    Such a ref gets the sent_id of its first sentence, plus the largest ref_id that was given.
    """
    refs = [ref for row in rows for ref in row["refs"]]
    largest = max((ref["ref_id"] for ref in refs if ref["ref_id"] is not None), default=0)
    for ref in refs:
        if ref["ref_id"] is None:
            ref["ref_id"] = largest + ref["sentences"][0]["sent_id"]
