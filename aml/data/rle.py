"""Check masks of COCO files and of users' tables, and convert them to COCO's run lengths.

pycocotools trusts what it is given: it allocates what a polygon's corners ask for, and reads and
writes beyond its memory where run lengths are wrong. So nothing reaches it unchecked.
"""

from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from aml.data.refer_counts import targets_of
from aml.errors import Unreadable, UserError
from aml.reading import (
    MOST_PIXELS,
    decode_as,
    describe,
    file_problem,
    open_picture,
    parse_json,
    read_bytes,
)

NOTHING = -1
"""Annotation id that an expression without a target names in gRefCOCO."""

REACH = 4
"""Sides of the picture that a polygon's corners may lie beyond it."""

MAX_PARTS = 2_000
"""Polygons of one mask at most."""

MAX_CORNERS = 200_000
"""Corners of the polygons of one mask at most."""

MAX_OUTLINE = 1_000_000
"""Pixels along the edges of a mask's polygons at most; each takes about 100 bytes while drawn."""

MASK_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I")
"""Pillow's modes of PNG files in which pixels that are not 0 can be told."""


class BadMask(Unreadable):
    """A mask cannot be used; the text says what came and what to give."""


def to_rle(segmentation: Any, height: int, width: int) -> str:
    """Check a COCO segmentation and convert it to compressed RLE counts.

    Polygons of one object may overlap; their union counts. Polygons of one or two corners enclose
    nothing and are left out, as other readers of COCO's files leave them out.

    Args:
        segmentation: polygons, an RLE with a list of counts, a compressed RLE (text, bytes, or
            bytes as Python shows them), or a list of RLEs, whose union counts.
        height: pixels of the image, with the width at most MOST_PIXELS.
        width: pixels of the image.

    Raises:
        BadMask: the segmentation is anything else, is for another size, or leads far out.
    """
    from pycocotools import mask

    if isinstance(segmentation, dict):
        return _rle(segmentation, height, width)["counts"].decode()
    if isinstance(segmentation, tuple):
        segmentation = list(segmentation)
    if isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], dict):
        return _union(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise BadMask(f"mask is {describe(segmentation)}; give polygons or an RLE")
    parts = _polygons(segmentation, height, width)
    if not parts:
        return mask.encode(np.zeros((height, width), np.uint8, order="F"))["counts"].decode()
    return mask.merge(mask.frPyObjects(parts, height, width))["counts"].decode()


def _rle(rle: Any, height: int, width: int) -> dict:
    """Return an RLE in pycocotools' compressed form, after it was checked."""
    from pycocotools import mask

    if not isinstance(rle, dict):
        raise BadMask(f"mask is a list of RLEs and {describe(rle)}; give polygons or RLEs alone")
    counts = _run_lengths(rle, height, width)
    return mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _union(rles: list, height: int, width: int) -> str:
    """Return the union of some RLEs as compressed counts."""
    from pycocotools import mask

    if len(rles) > MAX_PARTS:
        raise BadMask(f"mask has {len(rles)} RLEs, and {MAX_PARTS} are the most; give one of all")
    return mask.merge([_rle(rle, height, width) for rle in rles])["counts"].decode()


def area(counts: str, height: int, width: int) -> int:
    """Return how many pixels compressed RLE counts cover that `to_rle` returned."""
    from pycocotools import mask

    return int(mask.area({"size": [height, width], "counts": counts.encode()}))


def rasterise(counts: str, height: int, width: int) -> np.ndarray:
    """Decode compressed RLE counts to (height, width) uint8 of 0 and 1.

    Raises:
        UserError: the counts are damaged or for another size.
    """
    from pycocotools import mask

    _check_stored(counts, height, width)
    return mask.decode({"size": [height, width], "counts": counts.encode()})


def referent(row: dict, ref: dict) -> str:
    """Return the mask of all objects that a ref names, as compressed RLE counts.

    The mask has no pixel where the ref names nothing.
    """
    from pycocotools import mask

    rles = {o["ann_id"]: o["rle"] for o in row["objects"]}
    size = [row["height"], row["width"]]
    named = [rles[i] for i in targets_of(ref)]
    if len(named) == 1:
        return named[0]
    if not named:
        return mask.encode(np.zeros(size, np.uint8, order="F"))["counts"].decode()
    for counts in named:
        _check_stored(counts, *size)
    merged = mask.merge([{"size": size, "counts": counts.encode()} for counts in named])
    return merged["counts"].decode()


def _check_stored(counts: str, height: int, width: int) -> None:
    """Raise UserError where the counts of a row of shards are not those of a mask of this size."""
    try:
        _run_lengths({"size": [height, width], "counts": counts}, height, width)
    except BadMask as problem:
        raise UserError(f"the shards are damaged ({problem}); write them again") from None


def read_mask(mask: Any, folder: Path, height: int, width: int) -> str | None:
    """Convert a mask of a user's table to compressed RLE counts.

    Args:
        mask: the cell: polygons, an RLE (both may be JSON text), the path of a PNG, or nothing.
        folder: folder that the path is relative to.
        height: pixels of the image.
        width: pixels of the image.

    Returns:
        The counts; None for no target.

    Raises:
        Unreadable: the mask cannot be used.
    """
    if mask is None or mask == "":
        return None
    if isinstance(mask, str) and mask.lstrip()[:1] in ("[", "{"):
        mask = parse_json(mask, "mask", advice="give polygons, an RLE or the path of a PNG")
    if isinstance(mask, str):
        counts = _png(mask, folder, height, width)
    elif isinstance(mask, list | dict):
        counts = to_rle(mask, height, width)
    else:
        raise BadMask(
            f"mask is {describe(mask)}; give polygons, an RLE, the path of a PNG, or nothing where "
            "the expression names nothing"
        )
    if not area(counts, height, width):
        raise BadMask(
            "mask covers no pixel of the picture; leave it empty where the expression names "
            "nothing, and give polygons at least three points"
        )
    return counts


def read_predicted_mask(mask: Any, folder: Path, height: int, width: int) -> str:
    """Convert a predicted mask to compressed RLE counts; it may cover no pixel.

    Args:
        mask: polygons, an RLE, the name of a PNG of two values, or None for no pixel.
        folder: folder that the name is relative to.
        height: pixels of the image.
        width: pixels of the image.

    Raises:
        Unreadable: the mask cannot be used, or the PNG has other values than 0 and one more.
    """
    if isinstance(mask, str):
        return _png(mask, folder, height, width, "the predictions' folder", binary=True)
    if mask is None:
        return to_rle({"size": [height, width], "counts": [height * width]}, height, width)
    return to_rle(mask, height, width)


def _png(
    name: str,
    folder: Path,
    height: int,
    width: int,
    where: str = "the table's folder",
    *,
    binary: bool = False,
) -> str:
    """Return the pixels of a PNG that are not 0 as RLE counts; transparency is ignored.

    Args:
        name: name of the PNG.
        folder: folder that the name is relative to.
        height: pixels of the image.
        width: pixels of the image.
        where: what the folder is, for messages.
        binary: refuse a PNG that holds other values than 0 and one more.
    """
    from pycocotools import mask

    if problem := file_problem(name, where):
        raise BadMask(f"mask {problem}; give the name of a PNG file inside of it")
    shown = f"mask {folder / name}"
    content = read_bytes(folder / name, "a PNG file", name=shown)
    picture = open_picture(content, shown, MOST_PIXELS, formats=("PNG",), modes=MASK_MODES)
    if picture.size != (width, height):
        raise BadMask(
            f"{shown} is {picture.width} x {picture.height}, but its image is "
            f"{width} x {height}; give one of the same size"
        )
    mode = {"LA": "L", "PA": "RGB", "RGBA": "RGB"}.get(picture.mode, picture.mode)
    pixels = np.asarray(decode_as(picture, shown, mode))
    found = np.any(pixels, axis=2) if pixels.ndim == 3 else np.asarray(pixels != 0)
    if binary and not bool((pixels[found] == pixels[found][:1]).all()):
        raise BadMask(
            f"{shown} holds several values from {pixels.min()} to {pixels.max()}, as a picture or "
            "probabilities do; give a mask of two values, 0 and one more for the referent"
        )
    return mask.encode(np.asfortranarray(found.astype(np.uint8)))["counts"].decode()


def _polygons(parts: list, height: int, width: int) -> list[list[float]]:
    """Return [[x, y, ...], ...] of three corners and more; the outer list of one may be missing."""
    parts = [parts] if parts and not isinstance(parts[0], list | tuple) else parts
    corners = 0
    for part in parts:
        if not isinstance(part, list | tuple) or len(part) % 2:
            _refuse_polygon(part)
        corners += len(part) // 2
        for numbers, side in ((part[::2], width), (part[1::2], height)):
            low = -REACH * side
            high = (1 + REACH) * side
            # NaN is in no range
            if not all(type(x) in (int, float) and low <= x <= high for x in numbers):
                _refuse_polygon(part)
    whole = [list(part) for part in parts if len(part) >= 6]
    if len(whole) > MAX_PARTS or corners > MAX_CORNERS:
        raise BadMask(
            f"mask has {len(whole)} polygons of {corners} corners, and {MAX_PARTS} of "
            f"{MAX_CORNERS} in all are the most; give a PNG or an RLE"
        )
    longest = (1 + 2 * REACH) * max(height, width)
    if corners * longest > MAX_OUTLINE and _outline(whole) > max(
        MAX_OUTLINE, 50 * (height + width)
    ):
        raise BadMask(
            f"mask's polygons have edges of {_outline(whole):.0f} pixels in all; give a PNG or an "
            "RLE"
        )
    return whole


def _refuse_polygon(part: Any) -> NoReturn:
    raise BadMask(
        f"a polygon of mask is {describe(part)}; it must be x, y, x, y, ... of at least three "
        f"points, in pixels, and no more than {REACH} sides beyond the picture"
    )


def _outline(parts: list[list[float]]) -> float:
    """Return the length of all edges in pixels, each counted along its longer side."""
    return sum(
        float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())
        for points in (np.reshape(np.asarray(part, float), (-1, 2)) for part in parts)
    )


def _run_lengths(rle: dict, height: int, width: int) -> list[int]:
    """Return the counts of an RLE, compressed or a list, after they were checked."""
    size = rle.get("size")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise BadMask(
            f"mask's RLE is for {describe(size)}, but its image is [{height}, {width}] (height, "
            "width); give one of the same size"
        )
    counts = rle.get("counts")
    pixels = height * width
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str):
        if counts[:2] == "b'" and counts[-1:] == "'":  # "'" is no letter of compressed counts
            counts = counts[2:-1].replace("\\\\", "\\")
        counts = _decompress(counts, pixels)
    if isinstance(counts, tuple):
        counts = list(counts)
    if not isinstance(counts, list):
        raise BadMask(
            f"mask's RLE has counts {describe(counts)}; give COCO's text or a list of run lengths"
        )
    if not all(type(n) is int and 0 <= n <= pixels for n in counts) or sum(counts) != pixels:
        raise BadMask(
            f"mask's RLE counts do not add up to {pixels} pixels; give the whole picture's run "
            "lengths, column by column"
        )
    return counts


def _decompress(text: str, pixels: int) -> list[int]:
    """Return the run lengths that compressed counts stand for.

    A number is written in groups of five bits, the lowest first, one character each. Numbers from
    the fourth on are differences to the one before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        group = ord(letter) - 48
        if not 0 <= group < 64 or shift > 30:
            break
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        if not 0 <= value <= pixels:
            break
        counts.append(value)
        value = shift = 0
    else:
        if counts and not shift and sum(counts) == pixels:
            return counts
    raise BadMask(
        f"mask's RLE is damaged ({describe(text)}); give COCO's compressed counts of "
        f"{pixels} pixels"
    )
