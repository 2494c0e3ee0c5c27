"""Augment training items in agreement with their sentences; off by default.

A flip swaps left and right in the sentence, a crop keeps the whole referent, colour changes no
item whose sentence names a colour. All act at network
size S on one training item, by draws u(seed, epoch, item), so they are the same on any number of
workers. A crop never cuts the referent, but it may cut away an object that the sentence compares
the referent with ("second from the left").
"""

import functools
import re
import string

import numpy as np
import torch
from PIL import Image, ImageEnhance

from aml.draws import uniform

Box = tuple[int, int, int, int]
"""Top, left, bottom and right in pixels. An argument `real` is the picture inside its letterbox."""

FLIPPED = 0.5
"""Share of the items that are mirrored, among those whose sentence can be mirrored."""

SMALLEST = 0.6
"""A crop keeps at least this share of each side."""

JITTER = 0.4
"""Brightness, contrast and saturation are multiplied by 1 - JITTER to 1 + JITTER."""

HUE_JITTER = 0.1
"""Hue is turned by at most this share of a full turn. Both are the usual strengths of colour
jitter, those of SimCLR (arXiv 2002.05709) halved."""

COLOUR_WORDS = (
    *("red", "orange", "yellow", "green", "blue", "purple", "violet", "pink", "brown", "black"),
    *("white", "gr[ae]y", "beige", "tan", "cream", "gold", "silver", "bronze", "copper", "maroon"),
    *("burgundy", "navy", "teal", "turquoise", "aqua", "cyan", "magenta", "lavender", "lilac"),
    *("peach", "khaki", "olive", "ivory", "rust", "mustard", "blond", "brunette", "ginger"),
    *("dark", "light", "bright", "pale", "shad(?:e|ow)", "tint", "hue", "colou?r", "neon"),
    *("denim", "plain", "bluish"),
)

_COLOUR = re.compile(
    rf"\b(?:{'|'.join(COLOUR_WORDS)})"
    r"(?:d|ed|ned|e|en|r|st|er|est|der|dest|s|y|ish|dish|less|ful|haired|head|headed)?\b",
    re.IGNORECASE,
)
"""Words whose truth may change with the colours of a picture, and words for brightness."""

_SIDE = re.compile(
    r"\b(left|right)(?=(?:y|s|er|ers|est|most|hand|handed|side|ward|wards|ish)?\b)", re.IGNORECASE
)

_SIDE_WORD = re.compile(rf"{_SIDE.pattern}\w*", re.IGNORECASE)

_HARMLESS = re.compile(r"\b(?:up|down|out|al|b|f|copy)right\w*|\bcleft\w*", re.IGNORECASE)
"""Words that contain "left" or "right" and name no side."""

_EXACTLY = re.compile(
    r"(?<!the )(?<!far )(?<!on )(?<!to )(?<!top )(?<!bottom )(?<!upper )(?<!lower )(?<!front )"
    r"(?<!back )(?<!middle )(?<!center )"
    r"\bright (?:next|behind|beside|besides|above|below|under|underneath|beneath|by|near|there|here"
    r"|now|after|before|up|against|between|over|in the|in front)\b",
    re.IGNORECASE,
)
"""Phrases in which `right` means exactly: "right next to the bike"."""

_UNMIRRORED = re.compile(
    r"#|\b[lr]\b|\b(?:lft|rt|lt|rgt)\b|clock|\b(?:east|west)\w*"
    r"|\b(?:says?|saying|reads|reading|word|words|letters?|numbers?|numbered|text|writing|written"
    r"|logo)\b|\d(?!\d*(?:st|nd|rd|th)\b)|[\"“”]",
    re.IGNORECASE,
)
"""Words that a mirror would make wrong.

They are clock positions, compass points, anything to be read, and abbreviations of left and right.
"""


_ORDINARY = {
    *("let", "lent", "lest", "lift", "loft", "heft", "deft", "weft", "cleft", "lefty"),
    *("bright", "fright", "wright", "eight", "fight", "light", "might", "night", "sight", "tight"),
    *("aright", "righty", "righto"),
}
"""Words one letter from "left" or "right" that are words of their own, or sides in another form."""


def _misspelt(word: str) -> set[str]:
    """Return what one letter too few, too many, wrong or swapped with the next makes of a word."""
    parts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    fewer = {a + b[1:] for a, b in parts if b}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in parts if len(b) > 1}
    other = {a + c + b[1:] for a, b in parts if b for c in string.ascii_lowercase}
    more = {a + c + b for a, b in parts for c in string.ascii_lowercase}
    return (fewer | swapped | other | more) - {word, word + "s"}


_MISSPELT = (_misspelt("left") | _misspelt("right") | {"rite"}) - _ORDINARY
"""Words that may be meant as a side."""


@functools.lru_cache(maxsize=1 << 18)
def mirrored(sentence: str) -> str | None:
    """Return the sentence for the mirrored picture, left and right swapped in all their forms.

    None is returned where the sentence of the mirrored picture is not certain.
    """
    rest = _HARMLESS.sub("", sentence)
    if _UNMIRRORED.search(rest) or _EXACTLY.search(rest):
        return None
    if re.search("left|right", _SIDE_WORD.sub("", rest), re.IGNORECASE):
        return None  # a side inside another word, such as "onleft"
    if not _MISSPELT.isdisjoint(re.findall("[a-z]+", rest.lower())):
        return None
    return _SIDE.sub(_other, sentence)


def _other(match: re.Match[str]) -> str:
    """Return the other side in the same case of letters."""
    found = match[1]
    other = "right" if found.lower() == "left" else "left"
    if found.isupper():
        return other.upper()
    return other.capitalize() if found[0].isupper() else other


@functools.lru_cache(maxsize=1 << 18)
def names_colour(sentence: str) -> bool:
    """Return whether a sentence names a colour or a brightness."""
    return bool(_COLOUR.search(sentence))


def jitter(image: np.ndarray, real: Box, draws: list[float]) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of a picture; keep the letterbox.

    The operations are Pillow's, in this order, as in torchvision's ColorJitter.

    Args:
        image: (S, S, 3) uint8.
        real: the picture inside its letterbox.
        draws: four numbers in [0, 1), for brightness, contrast, saturation and hue.

    Returns:
        The new image; the argument is left unchanged.
    """
    top, left, bottom, right = real
    picture = Image.fromarray(image[top:bottom, left:right])
    changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for change, draw in zip(changes, draws, strict=False):
        picture = change(picture).enhance(1 + JITTER * (2 * draw - 1))
    turn = round(256 * HUE_JITTER * (2 * draws[3] - 1)) % 256
    if turn:
        hue, saturation, value = picture.convert("HSV").split()
        hue = hue.point([(h + turn) % 256 for h in range(256)])
        picture = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    image = image.copy()
    image[top:bottom, left:right] = np.asarray(picture)
    return image


def flips(keys: torch.Tensor, seed: int, epoch: int) -> list[bool]:
    """Return which items are drawn to be mirrored.

    Args:
        keys: (B,) int64 keys of the items.
        seed: seed of the run.
        epoch: number of the epoch.
    """
    return (uniform(seed, epoch, keys, "flip")[:, 0] < FLIPPED).tolist()


def flip(image: np.ndarray, mask: np.ndarray, real: Box) -> tuple[np.ndarray, np.ndarray, Box]:
    """Mirror a picture left to right.

    Args:
        image: (S, S, 3) uint8.
        mask: (S, S) bool.
        real: the picture inside its letterbox.

    Returns:
        The mirrored image, mask and `real`.
    """
    top, left, bottom, right = real
    width = image.shape[1]
    return image[:, ::-1], mask[:, ::-1], (top, width - right, bottom, width - left)


def window(mask: np.ndarray, real: Box, draws: list[float]) -> Box:
    """Return a part of the picture, of the picture's aspect ratio, that holds the whole referent.

    The sides are SMALLEST to 1 of the picture's sides, larger for a large referent.

    Args:
        mask: (S, S) bool, the referent.
        real: the picture inside its letterbox.
        draws: three numbers in [0, 1), for the size, the vertical and the horizontal place.

    Returns:
        Top, left, bottom and right in pixels.
    """
    top, left, bottom, right = real
    height = bottom - top
    width = right - left
    box_top, box_left, box_bottom, box_right = _referent_box(mask, real)
    box_height = box_bottom - box_top
    box_width = box_right - box_left
    least = max(SMALLEST, box_height / height, box_width / width)
    share = least + (1 - least) * draws[0]
    h = max(min(height, round(height * share)), box_height)
    w = max(min(width, round(width * share)), box_width)
    y = _between(max(top, box_bottom - h), min(box_top, bottom - h), draws[1])
    x = _between(max(left, box_right - w), min(box_left, right - w), draws[2])
    return y, x, y + h, x + w


def place(real: Box, shown: Box | None, mirrored: bool, size: int) -> list[float]:
    """Return where an augmented image is taken from, as a row of `Batch.view`.

    Args:
        real: the picture inside its letterbox, as it lies in the augmented image.
        shown: the part of the picture that a crop shows; None for all of it.
        mirrored: whether the image was flipped, after the crop.
        size: side of the image.

    Returns:
        scale of y, scale of x, shift of y, shift of x.
    """
    top, left, bottom, right = real
    if mirrored:
        left, right = size - right, size - left
    y, x, end_y, end_x = shown or (top, left, bottom, right)
    tall = (end_y - y) / (bottom - top)
    wide = (end_x - x) / (right - left)
    # a pixel's edge e is at 2 e / size - 1
    down = tall + 2 * (y - tall * top) / size - 1
    along = wide + 2 * (x - wide * left) / size - 1
    return [tall, -wide if mirrored else wide, down, along]


def _referent_box(mask: np.ndarray, real: Box) -> Box:
    """Return the bounding box of the referent; where there is none, the centre as an empty box."""
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    if len(rows):
        return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    top, left, bottom, right = real
    y = top + (bottom - top) // 2
    x = left + (right - left) // 2
    return y, x, y, x


def _between(low: int, high: int, draw: float) -> int:
    """Return a whole number from low to high, both possible, by a draw in [0, 1)."""
    return low + int(draw * (high - low + 1))


def crop(
    image: np.ndarray, mask: np.ndarray, real: Box, draws: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge a part of the picture (see `window`) to the whole picture; keep the letterbox.

    Args:
        image: (S, S, 3) uint8.
        mask: (S, S) bool, the referent.
        real: the picture inside its letterbox.
        draws: three numbers in [0, 1), see `window`.

    Returns:
        The new image and mask; the arguments are left unchanged.
    """
    top, left, bottom, right = real
    y, x, end_y, end_x = window(mask, real, draws)
    size = (right - left, bottom - top)
    box = (x, y, end_x, end_y)
    image = image.copy()
    mask = mask.copy()
    image[top:bottom, left:right] = np.asarray(
        Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box)
    )
    mask[top:bottom, left:right] = np.asarray(
        Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST, box)
    )
    return image, mask
