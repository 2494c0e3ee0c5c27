"""Choose parts of photographs as backgrounds, by what their own annotations show."""

import random
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

from aml.data import rasterise
from aml.synthetic.photographs.material import Photograph, Pool, read_pixels
from aml.synthetic.photographs.words import confusable

CELLS = 80
"""Cells along the longer side of a photograph, by which backgrounds are cropped."""

FEWEST_CELLS = 8
"""Cells of a side of a photograph that can be a background, at least."""

LARGEST_OWN = 0.12
"""Share of the background that one of its own objects covers at most."""

OWN_IN_ALL = 0.3
"""Share of the background that all of its own objects cover at most."""

CROPS = 12
"""Crops of a photograph that are tried, each smaller than the one before."""

SMALLEST_CROP = 0.45
"""Share of each side of a photograph that a background keeps at least."""


def draw_background(
    rng: random.Random, pool: Pool, pasted: set[str], size: int
) -> tuple[Photograph, Image.Image] | None:
    """Return a photograph and a part of it, resized, on which categories can be pasted.

    None of its own objects is of a category that is pasted or looks like one, and none is large.

    Args:
        rng: source of the draws.
        pool: material of the split.
        pasted: categories that are pasted.
        size: longer side of the picture in pixels.
    """
    banned = frozenset[str]().union(*map(confusable, pasted))
    for photograph in rng.sample(pool.photographs, min(8, len(pool.photographs))):
        box = _crop(rng, photograph, banned, size)
        if box is not None:
            left, top, right, bottom = box
            scale = size / max(right - left, bottom - top)
            width = max(1, round((right - left) * scale))
            height = max(1, round((bottom - top) * scale))
            whole = pixels_of(photograph)
            return photograph, whole.resize(
                (width, height), Image.Resampling.BICUBIC, box, reducing_gap=3.0
            )
    return None


def _crop(
    rng: random.Random, photograph: Photograph, banned: frozenset[str], size: int
) -> tuple[int, int, int, int] | None:
    """Return the box of a part of a photograph that can be a background, or None."""
    cell, covered = _cells(photograph)
    rows, columns = covered.shape[1] - 1, covered.shape[2] - 1
    forbidden = [n for n, thing in enumerate(photograph.things) if thing.category in banned]
    least = max(SMALLEST_CROP, size / 2 / max(photograph.width, photograph.height))
    for number in range(CROPS):
        share = 1 - (1 - least) * (number + rng.random()) / CROPS
        if share > 1 or min(rows, columns) < FEWEST_CELLS:
            return None
        high, wide = int(rows * share), int(columns * share)
        top, left = rng.randint(0, rows - high), rng.randint(0, columns - wide)
        right, bottom = left + wide, top + high
        seen = (
            covered[:, bottom, right]
            - covered[:, top, right]
            - covered[:, bottom, left]
            + covered[:, top, left]
        )
        shares = seen / (high * wide * cell * cell)
        fits = shares.max(initial=0) <= LARGEST_OWN and shares.sum() <= OWN_IN_ALL
        if fits and not seen[forbidden].any():
            return left * cell, top * cell, right * cell, bottom * cell
    return None


@lru_cache(maxsize=256)
def _cells(photograph: Photograph) -> tuple[int, np.ndarray]:
    """Return the side of a photograph's cells in pixels, and what its own objects cover.

    The second is (n, rows + 1, columns + 1) int32 for rows x columns cells: the pixels of each
    object above and to the left of a corner of a cell.
    """
    cell = max(1, max(photograph.width, photograph.height) // CELLS)
    rows, columns = photograph.height // cell, photograph.width // cell
    covered = np.zeros((len(photograph.things), rows + 1, columns + 1), np.int32)
    for layer, thing in zip(covered, photograph.things, strict=True):
        mask = rasterise(thing.rle, photograph.height, photograph.width)
        layer[:] = cv2.integral(mask)[: rows * cell + 1 : cell, : columns * cell + 1 : cell]
    return cell, covered


@lru_cache(maxsize=24)
def pixels_of(photograph: Photograph) -> Image.Image:
    """Return a photograph as RGB."""
    return read_pixels(photograph.path)
