"""People's own data to rows: a table of image, expression, mask and split, as JSON-lines or CSV, one sentence a line.

    image        a JPEG or PNG file, relative to the images folder (default: the table's own)
    expression   the sentence
    mask         a PNG file relative to the table's folder (anything not 0 is the referent), polygons [[x, y, x, y, ...], ...], COCO's RLE
                 {"size": [height, width], "counts": ...}; empty or null for an expression that names nothing in the picture
    split        train, val, test or any other name
    image_id     optional whole number; default: COCO's own where the file is named as COCO names it, else a hash of the file
    ref_id       optional whole number: lines of one referent share it; default: lines of one image, split and mask are one referent

Rows are those of aml.refer, with data set `<name of the table's file>` and split_by `table`.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from aml.data.rle import decoded_whole, leads_out, to_rle
from aml.errors import UserError

COLUMNS = ("image", "expression", "mask", "split")

SPLIT_BY = "table"

SHOWN = 20

"""Bad lines are named up to so many."""

COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.(?:jpg|png)", re.IGNORECASE)

ORIENTATION = 0x0112

"""EXIF's tag for how a picture is to be turned."""


class _Bad(Exception):
    """What is wrong with one line."""


def read_table(path: Path, images: Path | None = None) -> list[dict]:
    """Rows without their JPEG, one an image, in the order of image_id; `path` names the file.

    UserError: a file that is no such table; otherwise one sentence for each bad line with its number and what was wanted.
    """
    path = Path(path)
    folder, rows, problems = Path(images or path.parent).absolute(), {}, []
    for line, entry in _entries(path):
        try:
            _add(rows, line, _plain(entry), folder, path)
        except _Bad as problem:
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
                f"{path}: {ids[row['image_id']]} and {file} both have image_id {row['image_id']}; give each image one of its own"
            )
    return sorted(rows.values(), key=lambda row: row["image_id"])


def _entries(path: Path) -> Iterator[tuple[int, dict | str]]:
    """(line number, its cells) of a table; text instead of cells says what is wrong with the line."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl", ".ndjson"):
        raise UserError(
            f"{path} is no table by its name; give a .csv file with a header, or a .jsonl file with one JSON object a line"
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
    csv.field_size_limit(1 << 30)  # a detailed polygon is longer than the 128 KiB it admits
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise UserError(
            f"{path} line 1: the header lacks {', '.join(missing)}; it needs {', '.join(COLUMNS)} (and may have image_id, ref_id)"
        )
    try:
        for entry in reader:
            wrong = None in entry or None in entry.values()
            yield (
                reader.line_num,
                f"it has not the {len(reader.fieldnames)} cells of the header; quote cells that hold commas"
                if wrong
                else entry,
            )
    except csv.Error as error:
        yield (
            reader.line_num + 1,
            f"it is not valid CSV ({error}); quote cells that hold commas or quotes, doubling the quotes",
        )


def _json_lines(text: str) -> Iterator[tuple[int, dict | str]]:
    for line, part in enumerate(text.split("\n"), 1):
        if not part.strip():
            continue
        try:
            entry = json.loads(part)
        except ValueError as error:
            yield line, f"it is not valid JSON ({error}); give one object a line"
        else:
            yield (
                line,
                entry
                if isinstance(entry, dict)
                else f"it is {type(entry).__name__}, not an object with {', '.join(COLUMNS)}",
            )


def _plain(entry: dict | str) -> dict:
    """The cells, checked as far as they can be without the picture."""
    if isinstance(entry, str):
        raise _Bad(entry)
    missing = [column for column in COLUMNS if column not in entry]
    if missing:
        raise _Bad(f"it lacks {', '.join(missing)}; give {', '.join(COLUMNS)}")
    for column in ("image", "expression", "split"):
        if not isinstance(entry[column], str) or not entry[column].strip():
            raise _Bad(f"{column} is {entry[column]!r}; it must be some text")
    if leads_out(entry["image"]):
        raise _Bad(
            f"image is {entry['image']!r}, which leads out of the images folder; give a name inside of it, and that folder by --images"
        )
    if "," in entry["split"]:
        raise _Bad(f"split is {entry['split']!r}; name one split, without a comma")
    return entry | {column: _whole(column, entry.get(column)) for column in ("image_id", "ref_id")}


def _whole(column: str, value) -> int | None:
    if value in (None, ""):
        return None
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,18}", text):
        raise _Bad(f"{column} is {value!r}; it must be a whole number of 0 or more, or be left out")
    return int(text)


def _add(rows: dict[str, dict], line: int, entry: dict, folder: Path, table: Path) -> None:
    """Put one line's sentence where it belongs, making the row of its image first."""
    file = entry["image"]
    row = rows.get(file) or _row(entry, folder / file, table)
    if entry["image_id"] not in (None, row["image_id"]):
        raise _Bad(
            f"image_id is {entry['image_id']}, but {file} had {row['image_id']} before; give one image one image_id"
        )
    rle = _rle(entry["mask"], table.parent, row["height"], row["width"])
    ref = _ref(row, entry, rle)
    ref["sentences"].append(
        {"sent_id": line, "sent": entry["expression"].strip(), "raw": entry["expression"]}
    )
    rows[file] = row


def _row(entry: dict, file: Path, table: Path) -> dict:
    try:
        content = file.read_bytes()
        with Image.open(file) as picture:
            (width, height), turned = picture.size, picture.getexif().get(ORIENTATION, 1)
    except OSError as error:  # Pillow's UnidentifiedImageError is one, too
        raise _Bad(
            f"image {file} cannot be read ({error.strerror or 'it is no picture'}); give a JPEG or PNG file"
        ) from None
    if turned != 1:
        raise _Bad(
            f"image {file} is to be turned when shown (EXIF orientation {turned}), so its mask is uncertain; save it upright"
        )
    known, made = (
        COCO_NAME.fullmatch(file.name),
        int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1,
    )
    image_id = (
        entry["image_id"] if entry["image_id"] is not None else int(known[1]) if known else made
    )
    about = {
        "dataset": table.stem,
        "split_by": SPLIT_BY,
        "image_id": image_id,
        "file_name": entry["image"],
        "height": height,
        "width": width,
    }
    return about | {"objects": [], "refs": [], "path": str(file)}


def _ref(row: dict, entry: dict, rle: str | None) -> dict:
    """The row's ref of this line, made where it is the first of it; objects are the different masks."""
    rles = {o["rle"]: o["ann_id"] for o in row["objects"]}
    if rle is not None and rle not in rles:
        row["objects"].append({"ann_id": len(rles) + 1, "category": "referent", "rle": rle})
    aim = [] if rle is None else [rles.get(rle, len(rles) + 1)]
    split = entry["split"].strip()
    for ref in row["refs"]:
        same = (ref["split"], ref["ann_ids"]) == (split, aim)
        if entry["ref_id"] is not None and ref["ref_id"] == entry["ref_id"] and not same:
            raise _Bad(
                f"ref_id {entry['ref_id']} had another mask or split before; give one referent one mask and one split"
            )
        if same and entry["ref_id"] == ref["ref_id"]:
            return ref
    row["refs"].append(
        {
            "ref_id": entry["ref_id"],
            "ann_ids": aim,
            "no_target": not aim,
            "split": split,
            "sentences": [],
        }
    )
    return row["refs"][-1]


def _number(rows) -> None:
    """Refs without a ref_id get the sent_id of their first sentence, moved behind all given ones."""
    refs = [ref for row in rows for ref in row["refs"]]
    behind = max((ref["ref_id"] for ref in refs if ref["ref_id"] is not None), default=0)
    for ref in refs:
        ref["ref_id"] = (
            behind + ref["sentences"][0]["sent_id"] if ref["ref_id"] is None else ref["ref_id"]
        )


def _rle(mask, folder: Path, height: int, width: int) -> str | None:
    """A mask as the table gives it -> compressed RLE counts; None for no target."""
    if mask is None or mask == "":
        return None
    if isinstance(mask, str) and mask.lstrip()[:1] in ("[", "{"):
        try:
            mask = json.loads(mask)
        except ValueError as error:
            raise _Bad(
                f"mask is not valid JSON ({error}); give polygons, an RLE or the path of a PNG"
            ) from None
    if isinstance(mask, str):
        if leads_out(mask):
            raise _Bad(
                f"mask is {mask!r}, which leads out of the table's folder; give a name inside of it"
            )
        counts = _png(folder / mask, height, width)
    elif isinstance(mask, list):
        counts = to_rle(_polygons(mask), height, width)
    elif isinstance(mask, dict):
        counts = _run_lengths(mask, height, width)
    else:
        raise _Bad(
            f"mask is {mask!r}; give polygons, an RLE, the path of a PNG, or nothing where the expression names nothing"
        )
    if not _decoded(counts, height, width).any():
        raise _Bad(
            "mask covers no pixel of the picture; leave it empty where the expression names nothing"
        )
    return counts


def _decoded(counts: str, height: int, width: int) -> np.ndarray:
    """(height, width) uint8"""
    try:
        return decoded_whole(counts, height, width)
    except ValueError as error:
        raise _Bad(
            f"mask's RLE is damaged ({error}); give COCO's compressed counts for {height} x {width}"
        ) from None


def _png(file: Path, height: int, width: int) -> str:
    from pycocotools import mask

    try:
        with Image.open(file) as picture:
            found = np.asarray(
                picture.convert(
                    {"LA": "L", "PA": "RGB", "RGBA": "RGB"}.get(picture.mode, picture.mode)
                )
            )
    except OSError as error:
        raise _Bad(
            f"mask {file} cannot be read ({error.strerror or 'it is no picture'}); give a PNG file"
        ) from None
    found = found.any(2) if found.ndim == 3 else found != 0
    if found.shape != (height, width):
        raise _Bad(
            f"mask {file} is {found.shape[1]} x {found.shape[0]}, but its image is {width} x {height}; give one of the same size"
        )
    return mask.encode(np.asfortranarray(found.astype(np.uint8)))["counts"].decode()


def _polygons(parts: list) -> list[list[float]]:
    """[[x, y, ...], ...], or one polygon without the outer list."""
    parts = [parts] if parts and not isinstance(parts[0], list) else parts
    for part in parts:
        numbers = isinstance(part, list) and all(
            isinstance(x, int | float) and not isinstance(x, bool) for x in part
        )
        if not numbers or len(part) < 6 or len(part) % 2:
            raise _Bad(
                f"a polygon is {str(part)[:60]}; it must be x, y, x, y, ... of at least three points, in pixels"
            )
    return parts


def _run_lengths(rle: dict, height: int, width: int) -> str:
    counts = rle.get("counts")
    if rle.get("size") != [height, width]:
        raise _Bad(
            f"mask's RLE is for {rle.get('size')}, but its image is [{height}, {width}] (height, width); give one of the same size"
        )
    if isinstance(counts, list):
        if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != height * width:
            raise _Bad(
                f"mask's RLE counts do not add up to {height * width} pixels; give the whole picture's run lengths, column by column"
            )
    elif not isinstance(counts, str):
        raise _Bad(f"mask's RLE has counts {counts!r}; give COCO's text or a list of run lengths")
    elif not counts:
        raise _Bad("mask's RLE has no counts; leave mask empty where the expression names nothing")
    return to_rle(rle, height, width)
