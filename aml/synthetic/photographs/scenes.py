"""Plan scenes of cut-outs on photographs, and paste them."""

import math
import random
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from aml.data import rasterise
from aml.errors import UserError
from aml.synthetic.photographs.backgrounds import draw_background, pixels_of
from aml.synthetic.photographs.material import Cutout, Material, Photograph, Pool
from aml.synthetic.photographs.words import AIRBORNE, confusable, usual_side

PLANS = 1000
"""Plans of a scene that are tried."""

PEOPLE = 0.45
"""Chance that a scene is about people, where its split is not."""

SIDES = (0.1, 0.42)
"""Root of the share of the picture that an object covers, at least and at most."""

SPREAD = 0.4
"""Objects are up to e to this larger or smaller than usual."""

LONGEST = 0.7
"""Share of a side of the picture that an object takes at most."""

MOST_ENLARGED = 1.25
"""Factor by which a cut-out is enlarged at most."""

LEAST_VISIBLE = 0.72
"""Share of an object that later ones leave visible at least."""

GROUNDED = 0.7
"""Chance that an object that needs ground stands in the lower part of the picture."""

HORIZON = 0.5
"""Share of the picture's height above which no grounded object ends."""

PLACES = 24
"""Places of an object that are tried."""

MATCHED = 0.2
"""Share of the difference in brightness between a cut-out and its place that is evened out."""

MOST_MATCHED = 12.0
"""Levels of 255 by which a cut-out is made brighter or darker at most."""

SOLID = 128
"""Opacity of 255 from which a pixel belongs to an object."""

OTHER_SIDE = {"left": "right", "right": "left"}


class Pasted(NamedTuple):
    """One object of a scene."""

    cutout: Cutout
    flipped: bool
    left: int
    """Pixels from the picture's left border to those of `pixels`."""
    top: int
    pixels: Image.Image
    """RGBA; the opacity falls off at the edge."""
    solid: np.ndarray
    """(H, W) bool, where the opacity is SOLID or more."""

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the picture."""
        height, width = self.solid.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class Scene(NamedTuple):
    """A composed picture."""

    background: Photograph
    picture: Image.Image
    """RGB."""
    labels: np.ndarray
    """(H, W) uint8: 0 for the background, k + 1 where object k is visible."""
    objects: list[Pasted]
    """In the order in which they were pasted."""


class _Plan(NamedTuple):
    """Choice of the objects that a scene is to show."""

    category: str
    """Category of several objects."""
    cutouts: list[Cutout]


def compose(rng: random.Random, material: Material, split: str, size: int) -> Scene:
    """Compose a scene of the material of one split.

    Two to four objects of one category, and one to four of others that do not look like it, lie
    on a part of a photograph that shows none of these categories and no large object.

    Args:
        rng: source of the draws.
        material: photographs and cut-outs.
        split: name of the split.
        size: longer side of the picture in pixels.

    Raises:
        UserError: no photograph of the split can be the background of anything.
    """
    pool = material.pools[split]
    for _ in range(PLANS):
        plan = _plan(rng, pool, split, material.people)
        found = draw_background(rng, pool, {cutout.category for cutout in plan.cutouts}, size)
        if found is None:
            continue
        photograph, background = found
        objects = _arrange(rng, plan.cutouts, background)
        if sum(pasted.cutout.category == plan.category for pasted in objects) < 2:
            continue
        if len(objects) < 3:
            continue
        return Scene(photograph, *_paste(background, objects), objects)
    raise UserError(
        f"the {len(pool.photographs)} photographs of split {split} are too crowded or too small: "
        f"no part of {size // 2} pixels or more is free of what would be pasted there; give more "
        "or larger photographs, a smaller size or another seed"
    )


def _plan(rng: random.Random, pool: Pool, split: str, people: str) -> _Plan:
    """Choose the categories and cut-outs of a scene."""
    others = [name for name in pool.subjects if name != people]
    about_people = split == "testA" or (split != "testB" and rng.random() < PEOPLE)
    if about_people and people in pool.subjects:
        category = people
    else:
        weights = [math.sqrt(len(pool.cutouts[name])) for name in others]
        category = rng.choices(others, weights)[0]
    several = rng.choices((2, 3, 4), (45, 37, 18))[0]
    cutouts = _draw(rng, pool.cutouts[category], several)
    taken = set(confusable(category))
    for many in rng.choice(((1,), (2,), (1, 1), (1, 1), (2, 1), (1, 1, 1))):
        free = [name for name in pool.cutouts if name not in taken]
        if not free:
            break
        name = rng.choice(free)
        cutouts += _draw(rng, pool.cutouts[name], many)
        taken |= confusable(name)
    return _Plan(category, cutouts)


def _draw(rng: random.Random, cutouts: tuple[Cutout, ...], many: int) -> list[Cutout]:
    return rng.sample(cutouts, min(many, len(cutouts)))


@lru_cache(maxsize=512)
def _cut(cutout: Cutout, longest: int) -> Image.Image:
    """Return the pixels of a cut-out as RGBA, its edge one pixel inside and softened.

    Args:
        cutout: the cut-out.
        longest: pixels of a side from which it is made smaller at once.
    """
    photograph = cutout.photograph
    left, top, right, bottom = cutout.box
    mask = rasterise(cutout.rle, photograph.height, photograph.width)
    opacity = Image.fromarray(mask[top:bottom, left:right] * np.uint8(255))
    margin = 2
    # what lies beyond the photograph's border counts as more of the object
    edged = Image.new("L", (opacity.width + 2 * margin, opacity.height + 2 * margin))
    edged.paste(opacity, (margin, margin))
    if cutout.border:
        edged = _continued(edged, cutout.border, margin)
    soft = edged.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.GaussianBlur(0.8))
    inner = (margin, margin, margin + opacity.width, margin + opacity.height)
    pixels = pixels_of(photograph).crop(cutout.box).convert("RGBA")
    pixels.putalpha(soft.crop(inner))
    scale = longest / max(pixels.size)
    if scale >= 1:
        return pixels
    sides = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
    return pixels.resize(sides, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _continued(edged: Image.Image, border: str, margin: int) -> Image.Image:
    """Return a mask whose rows or columns at a border run on into the margin."""
    values = np.array(edged)
    inner = margin + 2  # annotations often end one or two pixels before the border
    if border == "left":
        values[:, :inner] = values[:, inner : inner + 1]
    elif border == "right":
        values[:, -inner:] = values[:, -inner - 1 : -inner]
    elif border == "top":
        values[:inner] = values[inner : inner + 1]
    else:
        values[-inner:] = values[-inner - 1 : -inner]
    return Image.fromarray(values)


def _sized(
    rng: random.Random, cutout: Cutout, width: int, height: int
) -> tuple[Image.Image, bool] | None:
    """Return the pixels of a cut-out at the size it has in a picture, and whether it is mirrored.

    None is returned for a cut-out that would have to be enlarged too much.
    """
    side = usual_side(cutout.category) * math.exp(rng.uniform(-SPREAD, SPREAD))
    side = min(max(side, SIDES[0]), SIDES[1])
    flipped = rng.random() < 0.5
    scale = side * math.sqrt(width * height / cutout.area)
    left, top, right, bottom = cutout.box
    wide, high = right - left, bottom - top
    scale = min(scale, LONGEST * width / wide, LONGEST * height / high, MOST_ENLARGED)
    if scale * math.sqrt(cutout.area) < 0.8 * SIDES[0] * math.sqrt(width * height):
        return None
    sides = (max(1, round(wide * scale)), max(1, round(high * scale)))
    resized = _cut(cutout, max(width, height)).resize(
        sides, Image.Resampling.BICUBIC, reducing_gap=3.0
    )
    if flipped:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return resized, flipped


def _arrange(rng: random.Random, cutouts: list[Cutout], background: Image.Image) -> list[Pasted]:
    """Place as many cut-outs as fit, and return them in the order in which they are pasted."""
    width, height = background.size
    objects: list[Pasted] = []
    for cutout in cutouts:
        sized = _sized(rng, cutout, width, height)
        if sized is None:
            continue
        pixels, flipped = sized
        solid = np.asarray(pixels.getchannel("A")) >= SOLID
        for _ in range(PLACES):
            left, top = _place(rng, cutout, flipped, pixels.size, background.size)
            pasted = Pasted(cutout, flipped, left, top, pixels, solid)
            # what stands lower in the picture is nearer
            tried = sorted([*objects, pasted], key=lambda one: one.top + one.pixels.height)
            if _all_visible(tried, width, height):
                objects = tried
                break
    return [_matched(pasted, background) for pasted in objects]


def _place(
    rng: random.Random,
    cutout: Cutout,
    flipped: bool,
    size: tuple[int, int],
    picture: tuple[int, int],
) -> tuple[int, int]:
    """Draw the left and top of an object; one that a border cuts off lies at that border.

    Args:
        rng: source of the draws.
        cutout: the object.
        flipped: whether it is mirrored.
        size: its width and height in pixels.
        picture: width and height of the picture in pixels.
    """
    right, lowest = picture[0] - size[0], picture[1] - size[1]
    grounded = cutout.category not in AIRBORNE and rng.random() < GROUNDED
    highest = max(0, round(HORIZON * picture[1]) - size[1]) if grounded else 0
    left, top = rng.randint(0, right), rng.randint(highest, lowest)
    border = OTHER_SIDE.get(cutout.border, cutout.border) if flipped else cutout.border
    if border in ("left", "right"):
        left = 0 if border == "left" else right
    elif border:
        top = 0 if border == "top" else lowest
    return left, top


def _all_visible(objects: list[Pasted], width: int, height: int) -> bool:
    """Return whether each object is visible enough."""
    labels = _labels(objects, width, height)
    seen = np.bincount(labels.ravel(), minlength=len(objects) + 1)[1:]
    return all(
        count >= LEAST_VISIBLE * pasted.solid.sum()
        for count, pasted in zip(seen, objects, strict=True)
    )


def _labels(objects: list[Pasted], width: int, height: int) -> np.ndarray:
    """Return Scene.labels."""
    labels = np.zeros((height, width), np.uint8)
    for number, pasted in enumerate(objects):
        labels[pasted.box][pasted.solid] = number + 1
    return labels


def _matched(pasted: Pasted, background: Image.Image) -> Pasted:
    """Return an object a little nearer to the brightness of its place."""
    place = (
        pasted.left,
        pasted.top,
        pasted.left + pasted.pixels.width,
        pasted.top + pasted.pixels.height,
    )
    there = float(np.asarray(background.crop(place).convert("L")).mean())
    own = float(np.asarray(pasted.pixels.convert("RGB").convert("L"))[pasted.solid].mean())
    shift = min(max(MATCHED * (there - own), -MOST_MATCHED), MOST_MATCHED)
    values = np.asarray(pasted.pixels).copy()
    values[..., :3] = np.clip(values[..., :3] + shift, 0, 255).round()
    return pasted._replace(pixels=Image.fromarray(values, "RGBA"))


def _paste(background: Image.Image, objects: list[Pasted]) -> tuple[Image.Image, np.ndarray]:
    """Return the picture and its labels."""
    picture = background.copy()
    for pasted in objects:
        picture.paste(pasted.pixels, (pasted.left, pasted.top), pasted.pixels)
    return picture, _labels(objects, *picture.size)
