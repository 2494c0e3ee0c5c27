"""Describe the objects of a scene by facts, and judge which objects a query means.

A grade says how true something is: 0 no, 0.5 a matter of opinion, 1 yes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    """Shape of a drawn object, category of a photographed one."""
    colour: str | None
    """None where no colour is certain."""
    size: str | None
    texture: str | None
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
    half_x: float = 0.0
    """Half of the object's width as a share of the picture's width; 0 where only centres count."""
    half_y: float = 0.0
    """Half of the object's height as a share of the picture's height."""
    half_u: float = 0.0
    """Half of the object's width as a share of the picture's longer side."""
    half_v: float = 0.0
    """Half of the object's height as a share of the picture's longer side."""
    maybe: tuple[str, ...] = ()
    """Colours that somebody might name, beside `colour`."""


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


@dataclass(frozen=True)
class Margins:
    """Distances at which a sentence about places, ranks and relations is clear.

    A pair has the value from which something is true and the value from which it is false.
    """

    rank: Mapping[str, float]
    """Direction -> difference of the sort keys of `BEST` below which two objects are tied."""
    ahead: tuple[float, float] = (0.09, -0.02)
    """Distance in the direction of a relation, as a share of the longer side."""
    overlap: float = 0.0
    """Share of both objects' half extents that is taken off that distance."""
    aside: float = 1.5
    """Largest distance across the direction, as a multiple of the one along it."""
    near: tuple[float, float] = (0.34, 0.46)
    """Distance of objects that are next to each other, as a share of the longer side."""
    closest: float = 0.08
    """Difference of two distances below which they are tied."""


DRAWN = Margins(
    rank=dict.fromkeys(("left", "right", "top", "bottom"), 0.06)
    | dict.fromkeys(("big", "small"), math.log(1.5))
)
"""Margins of drawn scenes."""


def fits(named: Named, fact: Fact) -> float:
    """Return the grade to which an object has all attributes that are named."""
    shape, colour, size, texture = named
    if (
        (shape is not None and shape != fact.shape)
        or (size is not None and size != fact.size)
        or (texture is not None and texture != fact.texture)
    ):
        return 0.0
    if colour is None or colour == fact.colour:
        return 1.0
    return 0.5 if colour in fact.maybe else 0.0


def _grade(value: float, yes: float, no: float) -> float:
    """Return the grade 1 beyond `yes`, 0 beyond `no` on the other side, 0.5 between."""
    sign = 1 if yes > no else -1
    if sign * value >= sign * yes:
        return 1.0
    return 0.0 if sign * value <= sign * no else 0.5


FARTHEST = 0.62
"""Share of the picture that an object at one of its sides does not reach beyond."""


def place_grade(place: str, fact: Fact) -> float:
    """Return the grade to which an object is at a place of the picture."""
    if place == "middle":
        return min(_grade(abs(fact.x - 0.5), 0.14, 0.24), _grade(abs(fact.y - 0.5), 0.18, 0.28))
    value, half = (fact.x, fact.half_x) if place in ("left", "right") else (fact.y, fact.half_y)
    if place in ("right", "bottom"):
        value = 1 - value
    grade = _grade(value, 0.38, 0.54)
    return grade if grade < 1 or value + half <= FARTHEST else 0.5


def _rank_grade(keys: dict[int, float], index: int, rank: int, gap: float) -> float:
    """Return the grade to which keys[index] is the rank-th smallest.

    Keys nearer to each other than `gap` count as tied, and a tie is a matter of opinion.
    """
    mine = keys[index]
    better = sum(key < mine - gap for key in keys.values())
    tied = sum(abs(key - mine) <= gap for key in keys.values()) - 1
    if not better <= rank - 1 <= better + tied:
        return 0.0
    return 0.5 if tied else 1.0


BEST: dict[str, tuple[Callable[[Fact], float], ...]] = {
    "left": (lambda f: f.x, lambda f: f.x - f.half_x),
    "right": (lambda f: -f.x, lambda f: -f.x - f.half_x),
    "top": (lambda f: f.y, lambda f: f.y - f.half_y),
    "bottom": (lambda f: -f.y, lambda f: -f.y - f.half_y),
    "big": (lambda f: -math.log(f.area),),
    "small": (lambda f: math.log(f.area),),
}
"""Direction -> sort keys that must agree: of centres, and of the edges that come first."""


def _distance(fact: Fact, other: Fact) -> float:
    """Return the distance of two objects' boxes as a share of the longer side; 0 where they meet.

    It is the distance of the centres where facts have no extents.
    """
    du = abs(fact.u - other.u) - fact.half_u - other.half_u
    dv = abs(fact.v - other.v) - fact.half_v - other.half_v
    return math.hypot(max(du, 0.0), max(dv, 0.0))


def relation_grade(kind: str, fact: Fact, landmark: Fact, margins: Margins = DRAWN) -> float:
    """Return the grade of a relation of an object to a landmark.

    The kind "closest" depends on the other objects, too, and is judged in `judge`.
    """
    if kind == "near":
        return _grade(_distance(fact, landmark), *margins.near)
    du = landmark.u - fact.u
    dv = landmark.v - fact.v
    half_u = margins.overlap * (landmark.half_u + fact.half_u)
    half_v = margins.overlap * (landmark.half_v + fact.half_v)
    ahead, aside, half = {
        "left": (du, dv, half_u),
        "right": (-du, dv, half_u),
        "above": (dv, du, half_v),
        "below": (-dv, du, half_v),
    }[kind]
    yes, no = margins.ahead
    value = _grade(ahead, yes + half, no)
    return value if value < 1 or abs(aside) <= margins.aside * ahead else 0.5


def judge(query: Query, facts: list[Fact], margins: Margins = DRAWN) -> list[float]:
    """Return the grade of a query for every object of a scene.

    A landmark must be one object only; where a name fits several objects, or none, no object gets
    more than 0.5. The same holds where a rank is counted among objects that may or may not be
    meant.
    """
    values = [fits(query.named, f) for f in facts]
    pool = [i for i, value in enumerate(values) if value]
    for i in pool:
        for place in query.where:
            values[i] = min(values[i], place_grade(place, facts[i]))
    if query.best is not None:
        direction, rank = query.best
        if any(value == 0.5 for value in (fits(query.named, facts[i]) for i in pool)):
            return [0.5 * (value > 0) for value in values]
        for key in BEST[direction]:
            keys = {i: key(facts[i]) for i in pool}
            for i in pool:
                grade = _rank_grade(keys, i, rank, margins.rank[direction])
                values[i] = min(values[i], grade)
    for kind, named in query.relations:
        grades_of_name = [fits(named, f) for f in facts]
        landmarks = [i for i, grade in enumerate(grades_of_name) if grade]
        if len(landmarks) != 1 or grades_of_name[landmarks[0]] < 1:
            return [0.5 * (value > 0) for value in values]
        grades = _relation_grades(kind, landmarks[0], pool, facts, margins)
        for i in pool:
            values[i] = min(values[i], grades[i])
    return values


def _relation_grades(
    kind: str, landmark: int, pool: list[int], facts: list[Fact], margins: Margins
) -> dict[int, float]:
    """Return {index: grade of its relation to facts[landmark]} of the objects in `pool`."""
    mark = facts[landmark]
    others = [i for i in pool if i != landmark]
    if kind == "closest":
        distances = {i: _distance(facts[i], mark) for i in others}
        grades = {i: _rank_grade(distances, i, 1, margins.closest) for i in others}
    else:
        grades = {i: relation_grade(kind, facts[i], mark, margins) for i in others}
    return grades | {landmark: 0.0}  # no object stands in a relation to itself
