"""Read and judge sentences of composed scenes, by other rules than those that made them."""

import re

import numpy as np

from aml.synthetic.photographs.colours import COLOURS
from aml.synthetic.photographs.words import SECOND_NAMES

SIDES = {
    "left": ("left",),
    "right": ("right",),
    "top": ("top", "upper"),
    "bottom": ("bottom", "lower"),
    "middle": ("middle", "center"),
}
FIRST = {
    "left": ("leftmost", "left most"),
    "right": ("rightmost", "right most"),
    "top": ("topmost", "highest"),
    "bottom": ("bottommost", "lowest"),
    "big": ("largest", "biggest", "bigger", "larger", "big"),
    "small": ("smallest", "smaller", "small", "little"),
}
LINKS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "near": ("next to", "near"),
    "closest": ("closest to", "nearest to"),
}
LINK = {words: kind for kind, several in LINKS.items() for words in several}
SPLIT_AT_LINKS = re.compile(rf"\b({'|'.join(sorted(LINK, key=len, reverse=True))})\b")
IGNORED = {"a", "an", "the", "that", "is", "which", "and", "on", "in", "at", "side", "corner"}


class Reading:
    """What a noun phrase says: category, colour, places, and a rank among its likes."""

    def __init__(self, text: str, categories: set[str]):
        self.category = self.colour = self.rank = None
        names = {name: name for name in categories}
        names |= {SECOND_NAMES[name]: name for name in categories if name in SECOND_NAMES}
        ordinal = re.search(r"\b(second|third)\b", text)
        edge = re.search(r"\bfrom (?:the )?(left|right|top|bottom)\b", text)
        assert bool(ordinal) == bool(edge), text
        if ordinal and edge:
            self.rank = (edge[1], 2 if ordinal[1] == "second" else 3)
            text = text.replace(ordinal[0], "").replace(edge[0], "")
        for name in sorted(names, key=len, reverse=True):
            if re.search(rf"\b{name}\b", text):
                self.category = names[name]
                text = re.sub(rf"\b{name}\b", "", text, count=1)
                break
        assert self.category, f"{text!r} names no category"
        for direction, several in FIRST.items():
            for words in several:
                if self.rank is None and re.search(rf"\b{words}\b", text):
                    self.rank = (direction, 1)
                    text = re.sub(rf"\b{words}\b", "", text)
        self.places = []
        for place, several in SIDES.items():
            for word in several:
                if re.search(rf"\b{word}\b", text):
                    self.places.append(place)
                    text = re.sub(rf"\b{word}\b", "", text, count=1)
        rest = [word for word in text.split() if word not in IGNORED]
        if rest and rest[0] in COLOURS:
            self.colour = rest.pop(0)
        assert not rest, f"{rest} was not understood"


def could_be(named: Reading, one: dict) -> bool:
    """Return whether somebody might call an object so."""
    known = {one["colour"], *one["maybe"]}
    return one["category"] == named.category and (named.colour is None or named.colour in known)


def surely_is(named: Reading, one: dict) -> bool:
    """Return whether everybody would call an object so."""
    return one["category"] == named.category and named.colour in (None, one["colour"])


def extent(one: dict, direction: str) -> tuple[float, float]:
    """Return centre and first edge of an object as seen from a side, in shares of the picture."""
    x, y, w, h = one["box"]
    return {
        "left": (x + w / 2, x),
        "right": (1 - x - w / 2, 1 - x - w),
        "top": (y + h / 2, y),
        "bottom": (1 - y - h / 2, 1 - y - h),
        "big": (-one["area"],) * 2,
        "small": (one["area"],) * 2,
    }[direction]


def at_place(one: dict, place: str, slack: float) -> bool:
    """Return whether an object is in that part of the picture, more generously with more slack."""
    x, y, w, h = one["box"]
    if place == "middle":
        return abs(x + w / 2 - 0.5) <= 0.15 + slack / 2 and abs(y + h / 2 - 0.5) <= 0.19 + slack / 2
    return extent(one, place)[0] <= 0.4 + slack


def gap(one: dict, other: dict) -> float:
    """Return the distance of two boxes as a share of the picture's longer side."""
    (x, y, w, h), (x2, y2, w2, h2) = one["pixels"], other["pixels"]
    across = max(x2 - x - w, x - x2 - w2, 0)
    along = max(y2 - y - h, y - y2 - h2, 0)
    return float(np.hypot(across, along)) / one["longer"]


def related(kind: str, one: dict, mark: dict, others: list[dict], sure: bool) -> bool:
    """Return whether a relation holds; where not `sure`, whether somebody might say so."""
    if one is mark:
        return False
    if kind == "near":
        return gap(one, mark) <= (0.08 if sure else 0.15)
    if kind == "closest":
        rest = [gap(other, mark) for other in others if other is not one and other is not mark]
        return all(gap(one, mark) < distance + (-0.05 if sure else 0.05) for distance in rest)
    side = {"above": "top", "below": "bottom"}.get(kind, kind)
    ahead = extent(mark, side)[0] - extent(one, side)[0]
    scale = one["width"] if side in ("left", "right") else one["height"]
    ahead *= scale / one["longer"]
    return ahead >= 0.05 if sure else ahead > 0


def meant(said: str, things: list[dict]) -> tuple[list[dict], list[dict]]:
    """Return the objects that a sentence surely means, and those that it might mean.

    Args:
        said: the sentence.
        things: the objects of its picture, see `things_by_image`.
    """
    text = re.sub(r"\bof the (picture|image)\b", "", re.sub(r"[.,]", " ", said))
    first, *rest = SPLIT_AT_LINKS.split(text)
    categories = {one["category"] for one in things}
    named = Reading(first, categories)
    possible = [one for one in things if could_be(named, one)]
    sure = [one for one in things if surely_is(named, one)]
    pool = list(possible)
    if named.rank:
        direction, rank = named.rank
        assert len(pool) > 1, "the only one of its kind needs no rank"
        for number in (0, 1):
            ordered = sorted(pool, key=lambda one: extent(one, direction)[number])
            possible = [one for one in possible if one is ordered[rank - 1]]
            if direction in ("big", "small"):
                areas = sorted((one["area"] for one in pool), reverse=direction == "big")
                assert max(areas[:2]) > 1.6 * min(areas[:2]), "too near in size"
            else:
                keys = [extent(one, direction)[number] for one in ordered]
                assert all(
                    abs(key - keys[rank - 1]) > 0.06 for key in keys if key != keys[rank - 1]
                )
    for place in named.places:
        sure = [one for one in sure if at_place(one, place, 0.0)]
        possible = [one for one in possible if at_place(one, place, 0.1)]
    for words, landmark in zip(rest[::2], rest[1::2], strict=True):
        mark_name = Reading(landmark, categories)
        assert not mark_name.places and not mark_name.rank
        (mark,) = [one for one in things if could_be(mark_name, one)]
        assert surely_is(mark_name, mark)
        kind = LINK[words]
        sure = [one for one in sure if related(kind, one, mark, pool, sure=True)]
        possible = [one for one in possible if related(kind, one, mark, pool, sure=False)]
    return [one for one in sure if one in possible], possible


def kinds_of(said: str) -> set[str]:
    """Return what a sentence uses, so that the test knows that each kind came up."""
    found = {kind for words, kind in LINK.items() if re.search(rf"\b{words}\b", said)}
    found |= {"size " + d for d in ("big", "small") if any(w in said.split() for w in FIRST[d])}
    found |= {
        name
        for name, pattern in (
            ("first", r"\w+most|highest|lowest|(left|right) most"),
            ("rank", r"\b(second|third)\b"),
            ("colour", rf"\b({'|'.join(COLOURS)})\b"),
            ("dressed", r"person in (black|white|red|blue|green|gray|yellow|purple)"),
            ("place", r"\b(on|at|in) (the )?(left|right|top|bottom|middle|upper|lower|center)"),
        )
        if re.search(pattern, said)
    }
    return found or {"plain"}


def things_by_image(coco: dict) -> dict[int, list[dict]]:
    """Return the objects of each image of an annotation file, with their boxes as shares."""
    names = {category["id"]: category["name"] for category in coco["categories"]}
    images = {image["id"]: image for image in coco["images"]}
    found: dict[int, list[dict]] = {}
    for annotation in coco["annotations"]:
        image = images[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        wide, high = image["width"], image["height"]
        found.setdefault(image["id"], []).append(
            {
                "id": annotation["id"],
                "category": names[annotation["category_id"]],
                "colour": annotation["attributes"]["colour"],
                "maybe": annotation["attributes"]["maybe"],
                "area": annotation["area"],
                "pixels": (x, y, w, h),
                "box": (x / wide, y / high, w / wide, h / high),
                "width": wide,
                "height": high,
                "longer": max(wide, high),
            }
        )
    return found
