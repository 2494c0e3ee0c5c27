"""Describe drawn objects by facts, and judge which objects a query means."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

COLOURS = {
    "red": (206, 36, 40),
    "orange": (240, 134, 22),
    "yellow": (244, 222, 48),
    "green": (34, 150, 60),
    "blue": (36, 78, 208),
    "purple": (124, 44, 164),
    "pink": (246, 138, 190),
    "gray": (132, 132, 134),
}
"""Colour word -> RGB."""

POSITION_WORDS = frozenset(
    (
        "left",
        "right",
        "top",
        "bottom",
        "upper",
        "lower",
        "middle",
        "center",
        "centre",
        "leftmost",
        "rightmost",
        "topmost",
        "bottommost",
        "uppermost",
        "lowest",
        "highest",
        "above",
        "over",
        "below",
        "under",
        "beneath",
        "corner",
        "side",
        "from",
    )
)
"""Words of position, which RefCOCO+ does not admit."""

Named = tuple[Any, ...]
"""(shape, colour, size, texture), each a str or None where unsaid."""


class Fact(NamedTuple):
    """Attributes and position of an object."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    """Centre as a share of the picture's width, 0 to 1."""
    y: float
    """Centre as a share of the picture's height, 0 to 1."""
    u: float
    """Horizontal centre as a share of the picture's longer side."""
    v: float
    """Vertical centre as a share of the picture's longer side."""
    area: float
    """Pixels."""


class Query(NamedTuple):
    """Meaning of a sentence."""

    named: Named = (None, None, None, None)
    where: tuple[str, ...] = ()
    """Places that all hold."""
    best: tuple[str, int] | None = None
    """(direction, rank from 1) among the objects so named."""
    relations: tuple[tuple[str, Named], ...] = ()
    """(kind of relation, name of the landmark)."""


def fact(annotation: dict, image: dict) -> Fact:
    """Return the fact of a COCO annotation with `attributes` in its image record."""
    attributes = annotation["attributes"]
    left, top, width, height = annotation["bbox"]
    x = left + width / 2
    y = top + height / 2
    longer = max(image["width"], image["height"])
    return Fact(
        attributes["shape"],
        attributes["colour"],
        attributes["size"],
        attributes["texture"],
        x / image["width"],
        y / image["height"],
        x / longer,
        y / longer,
        annotation["area"],
    )


def fits(named: Named, fact: Fact) -> bool:
    """Return whether an object has all attributes that are named."""
    return (
        (named[0] is None or named[0] == fact.shape)
        and (named[1] is None or named[1] == fact.colour)
        and (named[2] is None or named[2] == fact.size)
        and (named[3] is None or named[3] == fact.texture)
    )


def _grade(value: float, yes: float, no: float) -> float:
    """Return 1 beyond `yes`, 0 beyond `no` on the other side, 0.5 (a matter of opinion) between."""
    sign = 1 if yes > no else -1
    if sign * value >= sign * yes:
        return 1.0
    return 0.0 if sign * value <= sign * no else 0.5


def place_grade(place: str, fact: Fact) -> float:
    """Return how true it is that an object is at a place of the picture (see `_grade`)."""
    if place == "middle":
        return min(_grade(abs(fact.x - 0.5), 0.14, 0.24), _grade(abs(fact.y - 0.5), 0.18, 0.28))
    value = fact.x if place in ("left", "right") else fact.y
    return _grade(value, 0.38, 0.54) if place in ("left", "top") else _grade(value, 0.62, 0.46)


def _rank_grade(keys: dict[int, float], index: int, rank: int, gap: float) -> float:
    """Return how true it is that keys[index] is the rank-th smallest.

    Keys nearer to each other than `gap` count as tied, and a tie is a matter of opinion (0.5).
    """
    mine = keys[index]
    better = sum(key < mine - gap for key in keys.values())
    tied = sum(abs(key - mine) <= gap for key in keys.values()) - 1
    if not better <= rank - 1 <= better + tied:
        return 0.0
    return 0.5 if tied else 1.0


BEST: dict[str, tuple[Callable[[Fact], float], float]] = {
    "left": (lambda f: f.x, 0.06),
    "right": (lambda f: -f.x, 0.06),
    "top": (lambda f: f.y, 0.06),
    "bottom": (lambda f: -f.y, 0.06),
    "big": (lambda f: -math.log(f.area), math.log(1.5)),
    "small": (lambda f: math.log(f.area), math.log(1.5)),
}
"""Direction -> (sort key, difference below which two objects are tied)."""


def relation_grade(kind: str, fact: Fact, landmark: Fact) -> float:
    """Return how true a relation of an object to a landmark is (see `_grade`).

    The kind "closest" depends on the other objects, too, and is judged in `judge`.
    """
    du = landmark.u - fact.u
    dv = landmark.v - fact.v
    if kind == "near":
        return _grade(math.hypot(du, dv), 0.34, 0.46)
    ahead, aside = {
        "left": (du, dv),
        "right": (-du, dv),
        "above": (dv, du),
        "below": (-dv, du),
    }[kind]
    value = _grade(ahead, 0.09, -0.02)
    return value if value < 1 or abs(aside) <= 1.5 * ahead else 0.5


def judge(query: Query, facts: list[Fact]) -> list[float]:
    """Return how true a query is of every object of a scene: 0 no, 0.5 a matter of opinion, 1 yes.

    A landmark must be one object only; where a name fits several objects, or none, no object gets
    more than 0.5.
    """
    values = [1.0 if fits(query.named, f) else 0.0 for f in facts]
    pool = [i for i, value in enumerate(values) if value]
    for i in pool:
        for place in query.where:
            values[i] = min(values[i], place_grade(place, facts[i]))
    if query.best is not None:
        direction, rank = query.best
        key, gap = BEST[direction]
        keys = {i: key(facts[i]) for i in pool}
        for i in pool:
            values[i] = min(values[i], _rank_grade(keys, i, rank, gap))
    for kind, named in query.relations:
        landmarks = [i for i, f in enumerate(facts) if fits(named, f)]
        if len(landmarks) != 1:
            return [0.5 * (value > 0) for value in values]
        grades = _relation_grades(kind, landmarks[0], pool, facts)
        for i in pool:
            values[i] = min(values[i], grades[i])
    return values


def _relation_grades(
    kind: str, landmark: int, pool: list[int], facts: list[Fact]
) -> dict[int, float]:
    """Return {index: how true its relation to facts[landmark] is} of the objects in `pool`."""
    mark = facts[landmark]
    others = [i for i in pool if i != landmark]
    if kind == "closest":
        distances = {i: math.hypot(facts[i].u - mark.u, facts[i].v - mark.v) for i in others}
        grades = {i: _rank_grade(distances, i, 1, 0.08) for i in others}
    else:
        grades = {i: relation_grade(kind, facts[i], mark) for i in others}
    return grades | {landmark: 0.0}  # no object stands in a relation to itself
