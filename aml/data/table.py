"""Read a user's own data, a table as JSON lines or CSV with one sentence a line, into rows.

Columns of the table:

- image: a JPEG or PNG file, relative to the images folder (default: the folder of the table);
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
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from aml.data.rle import BadMask, leads_out, read_mask
from aml.errors import UserError

COLUMNS = ("image", "expression", "mask", "split")

SPLIT_BY = "table"

SHOWN = 20
"""Bad lines that are named at most."""

COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.(?:jpg|png)", re.IGNORECASE)

ORIENTATION = 0x0112
"""EXIF's tag for how a picture is to be turned when it is shown."""


class _BadLine(Exception):
    """One line of the table is wrong; the text says how."""


def read_table(path: Path, images: Path | None = None) -> list[dict]:
    """Read a table into rows without their JPEG.

    Args:
        path: the table, a .csv, .jsonl or .ndjson file.
        images: folder of the images; by default the folder of the table.

    Returns:
        One row an image, in the order of image_id; `path` names its file.

    Raises:
        UserError: the file is no such table, or has bad lines; the message then has one sentence
            for each of them, with its number and what was wanted.
    """
    path = Path(path)
    folder = Path(images or path.parent).absolute()
    rows: dict[str, dict] = {}
    problems: list[str] = []
    for line, entry in _entries(path):
        try:
            _add(rows, line, _checked(entry), folder, path)
        except _BadLine as problem:
            problems.append(f"{path} line {line}: {problem}")
    if problems:
        more = [f"and {len(problems) - SHOWN} more lines"] if len(problems) > SHOWN else []
        raise UserError("\n".join(problems[:SHOWN] + more))
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
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give the path of a table"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    yield from _csv(path, text) if kind == ".csv" else _json_lines(text)


def _csv(path: Path, text: str) -> Iterator[tuple[int, dict | str]]:
    """Yield (line number, cells or what is wrong) of CSV text."""
    csv.field_size_limit(1 << 30)  # a detailed polygon is longer than the default of 128 KiB
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    header = reader.fieldnames or ()
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise UserError(
            f"{path} line 1: the header lacks {', '.join(missing)}; it needs {', '.join(COLUMNS)} "
            "(and may have image_id, ref_id)"
        )
    try:
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
    for line, part in enumerate(text.split("\n"), 1):
        if not part.strip():
            continue
        try:
            entry = json.loads(part)
        except ValueError as error:
            yield line, f"it is not valid JSON ({error}); give one object a line"
            continue
        if not isinstance(entry, dict):
            entry = f"it is {type(entry).__name__}, not an object with {', '.join(COLUMNS)}"
        yield line, entry


def _checked(entry: dict | str) -> dict:
    """Return the cells, checked as far as is possible without the picture."""
    if isinstance(entry, str):
        raise _BadLine(entry)
    missing = [column for column in COLUMNS if column not in entry]
    if missing:
        raise _BadLine(f"it lacks {', '.join(missing)}; give {', '.join(COLUMNS)}")
    for column in ("image", "expression", "split"):
        if not isinstance(entry[column], str) or not entry[column].strip():
            raise _BadLine(f"{column} is {entry[column]!r}; it must be some text")
    if leads_out(entry["image"]):
        raise _BadLine(
            f"image is {entry['image']!r}, which leads out of the images folder; give a name "
            "inside of it, and that folder by --images"
        )
    if "," in entry["split"]:
        raise _BadLine(f"split is {entry['split']!r}; name one split, without a comma")
    return entry | {column: _whole(column, entry.get(column)) for column in ("image_id", "ref_id")}


def _whole(column: str, value: Any) -> int | None:
    """Return an optional cell as a whole number, None where it is empty."""
    if value in (None, ""):
        return None
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,18}", text):
        raise _BadLine(
            f"{column} is {value!r}; it must be a whole number of 0 or more, or be left out"
        )
    return int(text)


def _add(rows: dict[str, dict], line: int, entry: dict, folder: Path, table: Path) -> None:
    """Add the sentence of a line to the row of its image, which is made if it is missing.

    Args:
        rows: {image file: row}.
        line: number of the line, which becomes the sent_id.
        entry: the checked cells.
        folder: the images folder.
        table: path of the table.
    """
    file = entry["image"]
    row = rows.get(file) or _row(entry, folder / file, table)
    if entry["image_id"] not in (None, row["image_id"]):
        raise _BadLine(
            f"image_id is {entry['image_id']}, but {file} had {row['image_id']} before; give one "
            "image one image_id"
        )
    try:
        rle = read_mask(entry["mask"], table.parent, row["height"], row["width"])
    except BadMask as problem:
        raise _BadLine(str(problem)) from None
    ref = _ref(row, entry, rle)
    ref["sentences"].append(
        {"sent_id": line, "sent": entry["expression"].strip(), "raw": entry["expression"]}
    )
    rows[file] = row


def _row(entry: dict, file: Path, table: Path) -> dict:
    """Return the row of an image, without refs.

    Args:
        entry: the checked cells of the first line of the image.
        file: the image.
        table: path of the table.
    """
    try:
        content = file.read_bytes()
        with Image.open(file) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ORIENTATION, 1)
    except OSError as error:  # Pillow's UnidentifiedImageError is one, too
        raise _BadLine(
            f"image {file} cannot be read ({error.strerror or 'it is no picture'}); give a JPEG or "
            "PNG file"
        ) from None
    if turned != 1:
        raise _BadLine(
            f"image {file} is to be turned when shown (EXIF orientation {turned}), so its mask is "
            "uncertain; save it upright"
        )
    return {
        "dataset": table.stem,
        "split_by": SPLIT_BY,
        "image_id": _image_id(entry["image_id"], file.name, content),
        "file_name": entry["image"],
        "height": height,
        "width": width,
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


def _ref(row: dict, entry: dict, rle: str | None) -> dict:
    """Return the ref of a line in the row of its image, which is made if it is missing.

    Args:
        row: the row. Its objects are the different masks of its lines.
        entry: the checked cells of the line.
        rle: the mask; None for an expression that names nothing.
    """
    rles = {o["rle"]: o["ann_id"] for o in row["objects"]}
    if rle is not None and rle not in rles:
        row["objects"].append({"ann_id": len(rles) + 1, "category": "referent", "rle": rle})
    targets = [] if rle is None else [rles.get(rle, len(rles) + 1)]
    split = entry["split"].strip()
    for ref in row["refs"]:
        same = (ref["split"], ref["ann_ids"]) == (split, targets)
        if entry["ref_id"] is not None and ref["ref_id"] == entry["ref_id"] and not same:
            raise _BadLine(
                f"ref_id {entry['ref_id']} had another mask or split before; give one referent one "
                "mask and one split"
            )
        if same and entry["ref_id"] == ref["ref_id"]:
            return ref
    row["refs"].append(
        {
            "ref_id": entry["ref_id"],
            "ann_ids": targets,
            "no_target": not targets,
            "split": split,
            "sentences": [],
        }
    )
    return row["refs"][-1]


def _number(rows: Iterable[dict]) -> None:
    """Number the refs without a ref_id.

    Such a ref gets the sent_id of its first sentence, plus the largest ref_id that was given.
    """
    refs = [ref for row in rows for ref in row["refs"]]
    largest = max((ref["ref_id"] for ref in refs if ref["ref_id"] is not None), default=0)
    for ref in refs:
        if ref["ref_id"] is None:
            ref["ref_id"] = largest + ref["sentences"][0]["sent_id"]
