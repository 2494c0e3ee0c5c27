"""COCO run-length masks: check, merge and decode the segmentation of a referent."""

from pathlib import Path

import numpy as np

from aml.data.refer_counts import targets_of

NOTHING = -1

"""The annotation that an expression without a target names in gRefCOCO."""


def leads_out(name: str) -> bool:
    """Whether a file's name, joined to a folder's, may be a file that is not under it."""
    return Path(name).is_absolute() or ".." in Path(name).parts


def _check_segmentation(given, height: int, width: int) -> None:
    """ValueError where pycocotools would draw something else than is meant, or read beyond its memory."""
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
    """(height, width) uint8. Counts that stop early or run over decode to whatever memory held, so what comes out must encode to them again.

    ValueError where it does not.
    """
    from pycocotools import mask

    found = mask.decode({"size": [height, width], "counts": counts.encode()})
    if found.max(initial=0) > 1 or mask.encode(found)["counts"].decode() != counts:
        raise ValueError("its RLE is damaged or for a picture of another size")
    return found


def referent(row: dict, ref: dict) -> str:
    """The mask of all that a ref names in its row's picture, as compressed RLE counts; of no pixel where it names nothing."""
    from pycocotools import mask

    rles, size = {o["ann_id"]: o["rle"] for o in row["objects"]}, [row["height"], row["width"]]
    named = [rles[i] for i in targets_of(ref)]
    if len(named) == 1:
        return named[0]
    if not named:
        return mask.encode(np.zeros(size, np.uint8, order="F"))["counts"].decode()
    return mask.merge([{"size": size, "counts": counts.encode()} for counts in named])[
        "counts"
    ].decode()


def to_rle(segmentation, height: int, width: int) -> str:
    """COCO polygons (parts of one object may overlap: the union counts), list-count RLE or compressed RLE -> compressed counts."""
    from pycocotools import mask

    if isinstance(segmentation, list):
        parts = [part for part in segmentation if len(part) >= 6]
        if not parts:
            return mask.encode(np.zeros((height, width), np.uint8, order="F"))["counts"].decode()
        rle = mask.merge(mask.frPyObjects(parts, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = mask.frPyObjects(segmentation, height, width)
    else:
        return (
            segmentation["counts"]
            if isinstance(segmentation["counts"], str)
            else segmentation["counts"].decode()
        )
    return rle["counts"].decode()
