"""Plan and draw scenes of simple shapes, and trace the polygons of their visible parts."""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from aml.synthetic.meaning import COLOURS

SHAPES = ("circle", "ring", "heart", "square", "triangle", "star", "cross", "diamond")

ROUND = SHAPES[:3]
"""Classes of testA, which has people in RefCOCO; testB has the other classes."""

TEXTURES = ("plain", "striped", "dotted", "checked")

SHARE = {
    "small": (0.013, 0.021),
    "big": (0.048, 0.095),
    "huge": (0.105, 0.135),
}
"""Size -> range of an object's full area, as a share of the picture."""

SUPERSAMPLE = 3
"""Subpixels a side with which scenes are drawn before they are reduced."""


class Object(NamedTuple):
    """One object as planned."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    """Centre, in pixels."""
    y: float
    side: float
    """Root of the full area, in pixels."""
    angle: float
    """Radians."""


def _outlines() -> dict[str, list[np.ndarray]]:
    """Return the closed outlines of every shape, centred and of area 1.

    Each shape has a list of (n, 2) float arrays, which are filled by the even-odd rule.
    """
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    disc = np.stack([np.cos(turn), np.sin(turn)], 1)
    tips = np.linspace(0, 2 * np.pi, 10, endpoint=False) - np.pi / 2
    reach = np.where(np.arange(10) % 2, 0.45, 1.0)
    heart = np.stack(
        [
            16 * np.sin(turn) ** 3,
            -13 * np.cos(turn) + 5 * np.cos(2 * turn) + 2 * np.cos(3 * turn) + np.cos(4 * turn),
        ],
        1,
    )
    raw = {
        "circle": [disc],
        "ring": [disc, 0.5 * disc],
        "heart": [heart],
        "square": [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)],
        "triangle": [np.array([[0, -1.1], [1, 0.75], [-1, 0.75]])],
        "star": [np.stack([reach * np.cos(tips), reach * np.sin(tips)], 1)],
        "cross": [_cross(0.34)],
        "diamond": [np.array([[0, -1.2], [0.75, 0], [0, 1.2], [-0.75, 0]])],
    }
    scaled: dict[str, list[np.ndarray]] = {}
    for shape, parts in raw.items():
        areas = [
            abs(np.sum(p[:, 0] * np.roll(p[:, 1], -1) - p[:, 1] * np.roll(p[:, 0], -1))) / 2
            for p in parts
        ]
        middle = (parts[0].min(0) + parts[0].max(0)) / 2
        scaled[shape] = [(p - middle) / math.sqrt(areas[0] - sum(areas[1:])) for p in parts]
    return scaled


def _cross(half: float) -> np.ndarray:
    """Return the outline of a cross whose arms are 2 * `half` wide and reach to 1."""
    quarter = np.array([[half, -1], [half, -half], [1, -half]])
    turn = np.array([[0, 1], [-1, 0]])
    quarters = [quarter @ np.linalg.matrix_power(turn, k) for k in range(4)]
    return np.roll(np.concatenate(quarters), 1, axis=0)


OUTLINES = _outlines()

REACH = {shape: float(np.abs(parts[0]).max()) for shape, parts in OUTLINES.items()}
"""Shape -> half of its extent at area 1."""


def plan_scene(rng: random.Random, size: int) -> tuple[int, int, list[Object]]:
    """Plan one picture: 4 to 8 objects over 3 to 4 shapes and 3 to 4 colours.

    Args:
        rng: source of the draws.
        size: longer side of the picture in pixels.

    Returns:
        Width, height and the objects, in the order in which they are drawn.
    """
    short = round(size * rng.uniform(0.75, 1.0))
    width, height = (size, short) if rng.random() < 0.6 else (short, size)
    kinds = [rng.choice(ROUND), rng.choice(SHAPES[3:])]
    kinds += rng.sample([s for s in SHAPES if s not in kinds], rng.randint(1, 2))
    colours = rng.sample(sorted(COLOURS), rng.randint(3, 4))
    wanted = rng.randint(4, 8)
    first = "huge" if rng.random() < 0.35 else "big"
    objects: list[Object] = []
    for _ in range(300):
        if len(objects) == wanted:
            break
        grade = rng.choice(("small", "big")) if objects else first
        side = math.sqrt(rng.uniform(*SHARE[grade]) * width * height)
        shape = rng.choice(kinds)
        colour = rng.choice(colours)
        half = REACH[shape] * side + 1
        x = rng.uniform(half, width - half)
        y = rng.uniform(half, height - half)
        if any(
            math.hypot(x - o.x, y - o.y) < 0.72 * (half + REACH[o.shape] * o.side) for o in objects
        ):
            continue
        texture = "plain" if rng.random() < 0.55 else rng.choice(TEXTURES[1:])
        size_word = "small" if grade == "small" else "big"
        objects.append(
            Object(shape, colour, size_word, texture, x, y, side, rng.uniform(-0.22, 0.22))
        )
    rng.shuffle(objects)
    return width, height, objects


def _background(noise: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw a muted gradient, cloud or stripes, (height, width, 3) float32.

    The background is dark or light, so that every colour stands out.
    """
    level = noise.uniform(40, 80) if noise.random() < 0.4 else noise.uniform(176, 214)
    one, two = (level + noise.uniform(-26, 26, 3) for _ in range(2))
    gy, gx = (q / np.float32(max(width, height)) for q in np.ogrid[0.0:height, 0.0:width])
    angle = noise.uniform(0, 2 * np.pi)
    along = gx * math.cos(angle) + gy * math.sin(angle)
    kind = noise.integers(3)
    if kind == 0:
        mix = (along - along.min()) / (np.ptp(along) + 1e-6)
    elif kind == 1:
        mix = cv2.resize(
            noise.random((6, 6), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    else:
        mix = 0.5 + 0.5 * np.sin(along * noise.uniform(25, 70))
    picture = one + (two - one) * mix[..., None].astype(np.float32)
    return picture + 4 * noise.standard_normal((height, width, 1), dtype=np.float32)


def _texture(kind: str, side: float, angle: float, height: int, width: int) -> np.ndarray:
    """Return the pixels of a texture's second shade.

    Args:
        kind: "striped", "dotted" or "checked".
        side: root of the object's full area, in pixels.
        angle: radians.
        height: rows of the result.
        width: columns of the result.

    Returns:
        (height, width) bool.
    """
    gy, gx = np.ogrid[0:height, 0:width]
    u = (gx - width / 2) * math.cos(angle) + (gy - height / 2) * math.sin(angle)
    v = (gy - height / 2) * math.cos(angle) - (gx - width / 2) * math.sin(angle)
    step = side * 0.36
    if kind == "striped":
        return (v / step) % 1 > 0.55
    if kind == "dotted":
        return np.hypot((u / step) % 1 - 0.5, (v / step) % 1 - 0.5) < 0.3
    return ((u / step) % 1 > 0.5) ^ ((v / step) % 1 > 0.5)


def draw_scene(
    noise: np.random.Generator, width: int, height: int, objects: Sequence[Object]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a planned picture; later objects hide earlier ones.

    Args:
        noise: source of the draws of background and shades.
        width: pixels.
        height: pixels.
        objects: the objects of the picture.

    Returns:
        (height, width, 3) uint8 RGB and (height, width) uint8 labels: 0 for the background,
        k + 1 where object k is visible.
    """
    k = SUPERSAMPLE
    canvas = np.clip(_background(noise, width, height), 0, 255).astype(np.uint8)
    canvas = cv2.resize(canvas, (width * k, height * k), interpolation=cv2.INTER_NEAREST)
    labels = np.zeros((height * k, width * k), np.uint8)
    for index, o in enumerate(objects):
        c = math.cos(o.angle)
        s = math.sin(o.angle)
        turned = [p @ np.array([[c, s], [-s, c]]) * o.side + (o.x, o.y) for p in OUTLINES[o.shape]]
        corners = [np.round(p * k * 16).astype(np.int32) for p in turned]
        base = np.clip(np.array(COLOURS[o.colour]) + noise.normal(0, 7, 3), 0, 255).round()
        cv2.fillPoly(canvas, corners, base.tolist(), shift=4)
        cv2.fillPoly(labels, corners, index + 1, shift=4)
        if o.texture != "plain":
            other = base * 0.45 + 255 * 0.55 if base @ (0.3, 0.59, 0.11) < 115 else base * 0.42
            x0, y0 = (turned[0].min(0) * k).astype(int).clip(0)
            x1, y1 = (turned[0].max(0) * k).astype(int) + 2
            here = labels[y0:y1, x0:x1]
            shaded = _texture(o.texture, o.side * k, o.angle + 0.5, *here.shape)
            canvas[y0:y1, x0:x1][shaded & (here == index + 1)] = other
    picture = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return picture, np.ascontiguousarray(labels[k // 2 :: k, k // 2 :: k])


def polygons(mask: np.ndarray) -> list[list[int]]:
    """Return polygons whose COCO rasterisation is exactly a mask.

    Contours of the mask enlarged twice run over pixels 2x (a left edge x) and 2x + 1 (a right edge
    x + 1), so (c + 1) // 2 gives the edge. Polygons have no holes, so a part with a hole is cut in
    two at the hole's middle column.

    Args:
        mask: (H, W) bool.

    Returns:
        [[x, y, ...], ...] on pixel edges.
    """
    mask = np.ascontiguousarray(mask, np.uint8)
    twice = mask.repeat(2, 0).repeat(2, 1)
    contours, tree = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for contour, links in zip(contours, tree[0] if tree is not None else (), strict=True):
        if links[3] >= 0:
            column = (int(contour[:, 0, 0].min()) + int(contour[:, 0, 0].max()) + 2) // 4
            left = mask.copy()
            right = mask.copy()
            left[:, column:] = 0
            right[:, :column] = 0
            return polygons(left) + polygons(right)
    parts = []
    for contour in contours:
        edge = (contour[:, 0] + 1) // 2
        edge = edge[np.any(edge != np.roll(edge, 1, 0), 1)]
        parts.append([int(v) for v in edge.ravel()])
    return parts
