"""Check, merge and decode COCO run-length masks, and read the masks of users' tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aml.data.refer_counts import targets_of

NOTHING = -1
"""Annotation id that an expression without a target names in gRefCOCO."""


class BadMask(ValueError):
    """A mask of a user's table cannot be used; the text says what came and what to give."""


def leads_out(name: str) -> bool:
    """Return whether a file name, joined to a folder, may lead to a file outside of the folder."""
    return Path(name).is_absolute() or ".." in Path(name).parts


def check_segmentation(given: Any, height: int, width: int) -> None:
    """Check COCO polygons or an RLE before pycocotools draws them.

    Args:
        given: a `segmentation` of COCO's.
        height: pixels of the image.
        width: pixels of the image.

    Raises:
        ValueError: pycocotools would draw another mask than is meant, or read beyond its memory.
    """
    if not isinstance(given, dict):
        if not isinstance(given, list) or not all(
            isinstance(part, list) and len(part) % 2 == 0 for part in given
        ):
            raise ValueError("it is neither an RLE nor polygons of x, y pairs")
        return
    if given["size"] != [height, width]:
        raise ValueError(
            f"it is for {given['size']}, but its image is [{height}, {width}] (height, width)"
        )
    if isinstance(given["counts"], list) and (
        min(given["counts"], default=0) < 0 or sum(given["counts"]) != height * width
    ):
        raise ValueError(f"its run lengths do not add up to {height * width} pixels")
    if not isinstance(given["counts"], list):
        decoded_whole(to_rle(given, height, width), height, width)


def decoded_whole(counts: str, height: int, width: int) -> np.ndarray:
    """Decode compressed RLE counts and check that they are whole.

    Counts that stop early or run over decode to arbitrary memory, so the result must encode to the
    same counts again.

    Args:
        counts: compressed RLE counts.
        height: pixels of the image.
        width: pixels of the image.

    Returns:
        (height, width) uint8 of 0 and 1.

    Raises:
        ValueError: the counts are damaged or for another size.
    """
    from pycocotools import mask

    found = mask.decode({"size": [height, width], "counts": counts.encode()})
    if found.max(initial=0) > 1 or mask.encode(found)["counts"].decode() != counts:
        raise ValueError("its RLE is damaged or for a picture of another size")
    return found


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
    merged = mask.merge([{"size": size, "counts": counts.encode()} for counts in named])
    return merged["counts"].decode()


def to_rle(segmentation: Any, height: int, width: int) -> str:
    """Convert a COCO segmentation to compressed RLE counts.

    Args:
        segmentation: polygons, an RLE with a list of counts, or a compressed RLE. Polygons of one
            object may overlap; their union counts.
        height: pixels of the image.
        width: pixels of the image.
    """
    from pycocotools import mask

    if isinstance(segmentation, list):
        parts = [part for part in segmentation if len(part) >= 6]
        if not parts:
            return mask.encode(np.zeros((height, width), np.uint8, order="F"))["counts"].decode()
        rle = mask.merge(mask.frPyObjects(parts, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = mask.frPyObjects(segmentation, height, width)
    else:
        counts = segmentation["counts"]
        return counts if isinstance(counts, str) else counts.decode()
    return rle["counts"].decode()


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
        BadMask: the mask cannot be used.
    """
    if mask is None or mask == "":
        return None
    if isinstance(mask, str) and mask.lstrip()[:1] in ("[", "{"):
        try:
            mask = json.loads(mask)
        except ValueError as error:
            raise BadMask(
                f"mask is not valid JSON ({error}); give polygons, an RLE or the path of a PNG"
            ) from None
    if isinstance(mask, str):
        if leads_out(mask):
            raise BadMask(
                f"mask is {mask!r}, which leads out of the table's folder; give a name inside of it"
            )
        counts = _png(folder / mask, height, width)
    elif isinstance(mask, list):
        counts = to_rle(_polygons(mask), height, width)
    elif isinstance(mask, dict):
        counts = _run_lengths(mask, height, width)
    else:
        raise BadMask(
            f"mask is {mask!r}; give polygons, an RLE, the path of a PNG, or nothing where the "
            "expression names nothing"
        )
    if not _decoded(counts, height, width).any():
        raise BadMask(
            "mask covers no pixel of the picture; leave it empty where the expression names nothing"
        )
    return counts


def _decoded(counts: str, height: int, width: int) -> np.ndarray:
    """Decode RLE counts to (height, width) uint8."""
    try:
        return decoded_whole(counts, height, width)
    except ValueError as error:
        raise BadMask(
            f"mask's RLE is damaged ({error}); give COCO's compressed counts for {height} x {width}"
        ) from None


def _png(file: Path, height: int, width: int) -> str:
    """Return the pixels of a PNG that are not 0 as RLE counts; transparency is ignored."""
    from pycocotools import mask

    try:
        with Image.open(file) as picture:
            mode = {"LA": "L", "PA": "RGB", "RGBA": "RGB"}.get(picture.mode, picture.mode)
            pixels = np.asarray(picture.convert(mode))
    except OSError as error:
        raise BadMask(
            f"mask {file} cannot be read ({error.strerror or 'it is no picture'}); give a PNG file"
        ) from None
    found = np.any(pixels, axis=2) if pixels.ndim == 3 else np.asarray(pixels != 0)
    if found.shape != (height, width):
        raise BadMask(
            f"mask {file} is {found.shape[1]} x {found.shape[0]}, but its image is {width} x "
            f"{height}; give one of the same size"
        )
    return mask.encode(np.asfortranarray(found.astype(np.uint8)))["counts"].decode()


def _polygons(parts: list) -> list[list[float]]:
    """Return [[x, y, ...], ...]; also admit one polygon without the outer list."""
    parts = [parts] if parts and not isinstance(parts[0], list) else parts
    for part in parts:
        numbers = isinstance(part, list) and all(
            isinstance(x, int | float) and not isinstance(x, bool) for x in part
        )
        if not numbers or len(part) < 6 or len(part) % 2:
            raise BadMask(
                f"a polygon is {str(part)[:60]}; it must be x, y, x, y, ... of at least three "
                "points, in pixels"
            )
    return parts


def _run_lengths(rle: dict, height: int, width: int) -> str:
    """Convert COCO's RLE, compressed or as a list of counts, to compressed counts."""
    counts = rle.get("counts")
    if rle.get("size") != [height, width]:
        raise BadMask(
            f"mask's RLE is for {rle.get('size')}, but its image is [{height}, {width}] (height, "
            "width); give one of the same size"
        )
    if isinstance(counts, list):
        if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != height * width:
            raise BadMask(
                f"mask's RLE counts do not add up to {height * width} pixels; give the whole "
                "picture's run lengths, column by column"
            )
    elif not isinstance(counts, str):
        raise BadMask(
            f"mask's RLE has counts {counts!r}; give COCO's text or a list of run lengths"
        )
    elif not counts:
        raise BadMask(
            "mask's RLE has no counts; leave mask empty where the expression names nothing"
        )
    return to_rle(rle, height, width)
