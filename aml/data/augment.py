"""Augmentations that know the sentence: a flip that swaps left and right in it, a crop that keeps the whole referent. Off by default.

They act at network size on one training item, by draws u(seed, epoch, item): the same on any number of workers. A crop may cut away what a
sentence compares the referent with ("second from the left"); it never cuts the referent.

    S network size; `real` is top, left, bottom, right of the picture inside its letterbox
"""

import functools
import re

import numpy as np
import torch
from PIL import Image

from aml.draws import uniform

AUGMENTATIONS = ("flip", "crop")

FLIPPED = 0.5

"""Share of the items that are mirrored, of those whose sentence can be."""

SMALLEST = 0.6

"""A crop keeps at least this share of each side."""

_SIDE = re.compile(
    r"\b(left|right)(?=(?:y|s|er|ers|est|most|hand|handed|side|ward|wards|ish)?\b)", re.IGNORECASE
)

_SIDE_WORD = re.compile(rf"{_SIDE.pattern}\w*", re.IGNORECASE)

_HARMLESS = re.compile(r"\b(?:up|down|out|al|b|f|copy)right\w*|\bcleft\w*", re.IGNORECASE)

"""Words that hold the letters and name no side."""

_EXACTLY = re.compile(
    r"(?<!the )(?<!far )(?<!on )(?<!to )(?<!top )(?<!bottom )(?<!upper )(?<!lower )(?<!front )(?<!back )(?<!middle )(?<!center )"
    r"\bright (?:next|behind|beside|besides|above|below|under|underneath|beneath|by|near|there|here|now|after|before|up|against|between|over|in the)\b",
    re.IGNORECASE,
)

"""`right` that means exactly: "right next to the bike"."""

_UNMIRRORED = re.compile(
    r"#|\b[lr]\b|\b(?:lft|rt|lt|rgt)\b|clock|\b(?:east|west)\w*|\b(?:says?|saying|reads|reading|word|words|letters?|numbers?|numbered|text|writing|written|logo)\b"
    r"|\d(?!\d*(?:st|nd|rd|th)\b)|[\"“”]",
    re.IGNORECASE,
)

"""What has another name or no sense in a mirror: clock positions, compass points, anything to be read, l and r for the sides."""


@functools.lru_cache(maxsize=1 << 18)
def mirrored(sentence: str) -> str | None:
    """The sentence for the picture in a mirror: left and right swapped in all their forms. None where that is not certain."""
    rest = _HARMLESS.sub("", sentence)
    if _UNMIRRORED.search(rest) or _EXACTLY.search(rest):
        return None
    if re.search(
        "left|right", _SIDE_WORD.sub("", rest), re.IGNORECASE
    ):  # inside another word: "onleft"
        return None
    return _SIDE.sub(_other, sentence)


def _other(match) -> str:
    """left for right, in the same letters' case."""
    found = match[1]
    other = "right" if found.lower() == "left" else "left"
    return other.upper() if found.isupper() else other.capitalize() if found[0].isupper() else other


def flips(keys: torch.Tensor, seed: int, epoch: int) -> list[bool]:
    """Which items are drawn to be mirrored.   keys (B,) int64"""
    return (uniform(seed, epoch, keys, "flip")[:, 0] < FLIPPED).tolist()


def flip(
    image: np.ndarray, mask: np.ndarray, real: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """Mirrored left to right.   image (S, S, 3) uint8, mask (S, S) bool"""
    top, left, bottom, right = real
    width = image.shape[1]
    return image[:, ::-1], mask[:, ::-1], (top, width - right, bottom, width - left)


def window(
    mask: np.ndarray, real: tuple[int, int, int, int], draws: list[float]
) -> tuple[int, int, int, int]:
    """A part of the picture with its aspect ratio that holds the whole referent: top, left, bottom, right in pixels.

    mask (S, S) bool; draws: three in [0, 1) for its size and place. Its sides are SMALLEST to 1 of the picture's, larger for a large referent.
    """
    top, left, bottom, right = real
    height, width = bottom - top, right - left
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = (
        (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
        if len(rows)
        else (top + height // 2, left + width // 2) * 2
    )
    least = max(SMALLEST, (box[2] - box[0]) / height, (box[3] - box[1]) / width)
    share = least + (1 - least) * draws[0]
    h, w = (
        max(min(height, round(height * share)), box[2] - box[0]),
        max(min(width, round(width * share)), box[3] - box[1]),
    )
    y = _between(max(top, box[2] - h), min(box[0], bottom - h), draws[1])
    x = _between(max(left, box[3] - w), min(box[1], right - w), draws[2])
    return y, x, y + h, x + w


def _between(low: int, high: int, draw: float) -> int:
    """A whole number from low to high, both possible."""
    return int(low) + int(draw * (high - low + 1))


def crop(
    image: np.ndarray, mask: np.ndarray, real: tuple[int, int, int, int], draws: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """A window (see `window`) as large as the whole picture was, the letterbox as it was.   image (S, S, 3) uint8, mask (S, S) bool"""
    top, left, bottom, right = real
    y, x, end_y, end_x = window(mask, real, draws)
    size, box = (right - left, bottom - top), (x, y, end_x, end_y)
    image, mask = image.copy(), mask.copy()
    image[top:bottom, left:right] = np.asarray(
        Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box)
    )
    mask[top:bottom, left:right] = np.asarray(
        Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST, box)
    )
    return image, mask
