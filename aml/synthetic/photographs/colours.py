"""Measure which colour an object has, and which colours somebody might call it.

Pixels are compared in CIELAB, by lightness L (0 to 100), chroma C and hue h (degrees).
"""

from typing import NamedTuple

import cv2
import numpy as np

MOST_PIXELS = 1024
"""Pixels of an object that are looked at, about."""

DOMINANT = 0.5
"""Share of the pixels that clearly have the colour of an object, at least."""

SECOND = 0.25
"""Share of the pixels that clearly have another colour, at most."""

POSSIBLE = 0.12
"""Share of the pixels from which somebody might call an object by a colour."""


class Range(NamedTuple):
    """Lightness, chroma and hue of a colour word; a hue range may run through 0."""

    lightness: tuple[float, float]
    chroma: tuple[float, float]
    hue: tuple[float, float] = (0, 360)

    def holds(self, lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
        """Return which pixels lie in the range, an array of bool."""
        first, last = self.hue
        turned = (hue - first) % 360 <= last - first
        return (
            turned
            & (self.lightness[0] <= lightness)
            & (lightness <= self.lightness[1])
            & (self.chroma[0] <= chroma)
            & (chroma <= self.chroma[1])
        )


COLOURS = {
    "black": (Range((0, 20), (0, 14)), Range((0, 34), (0, 26))),
    "white": (Range((82, 100), (0, 12)), Range((68, 100), (0, 22))),
    "gray": (Range((38, 74), (0, 8)), Range((24, 86), (0, 17))),
    "red": (Range((20, 62), (38, 200), (15, 43)), Range((10, 72), (20, 200), (-20, 58))),
    "orange": (Range((50, 85), (48, 200), (52, 72)), Range((38, 92), (28, 200), (40, 84))),
    "yellow": (Range((65, 100), (45, 200), (82, 104)), Range((50, 100), (22, 200), (70, 116))),
    "green": (Range((18, 90), (22, 200), (112, 172)), Range((8, 98), (10, 200), (98, 205))),
    "blue": (Range((15, 80), (22, 200), (242, 300)), Range((8, 92), (10, 200), (200, 316))),
    "purple": (Range((12, 65), (24, 200), (306, 334)), Range((8, 80), (12, 200), (286, 352))),
    "pink": (Range((55, 92), (22, 200), (342, 375)), Range((45, 96), (12, 200), (322, 400))),
    "brown": (Range((18, 48), (16, 45), (45, 80)), Range((10, 64), (8, 58), (28, 92))),
}
"""Colour word -> the range in which it is certain, and the range in which somebody may say it."""


def measure_colour(pixels: np.ndarray) -> tuple[str | None, list[str]]:
    """Return the certain colour of an object, and other colours that somebody might name.

    Args:
        pixels: (n, 3) uint8 RGB, the object's own.

    Returns:
        The colour word, None where none is certain, and further words.
    """
    pixels = pixels[:: max(1, len(pixels) // MOST_PIXELS)]
    scaled = np.ascontiguousarray(pixels[None], np.float32) / np.float32(255)
    lightness, a, b = cv2.cvtColor(scaled, cv2.COLOR_RGB2Lab)[0].T
    chroma = np.hypot(a, b)
    hue = np.degrees(np.arctan2(b, a)) % 360
    clear, possible = (
        {
            word: float(ranges[kind].holds(lightness, chroma, hue).mean())
            for word, ranges in COLOURS.items()
        }
        for kind in (0, 1)
    )
    first, second = sorted(clear, key=lambda word: -clear[word])[:2]
    certain = first if clear[first] >= DOMINANT and clear[second] <= SECOND else None
    maybe = [word for word in COLOURS if word != certain and possible[word] >= POSSIBLE]
    return certain, maybe
