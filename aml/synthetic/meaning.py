"""Facts about drawn objects, and which objects a query means."""

import math
from typing import NamedTuple

COLOURS = {  # word -> RGB
    "red": (206, 36, 40),
    "orange": (240, 134, 22),
    "yellow": (244, 222, 48),
    "green": (34, 150, 60),
    "blue": (36, 78, 208),
    "purple": (124, 44, 164),
    "pink": (246, 138, 190),
    "gray": (132, 132, 134),
}

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


class Fact(NamedTuple):
    """What can be said of an object: x, y in 0..1 of the picture, u, v in longer sides, area in pixels."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    u: float
    v: float
    area: float


class Query(NamedTuple):
    """A sentence's meaning. named: (shape, colour, size, texture), None where unsaid; where: places that all hold;
    best: (direction, rank from 1) among the objects so named; relations: ((kind, named landmark), ...)."""

    named: tuple = (None, None, None, None)
    where: tuple = ()
    best: tuple = None
    relations: tuple = ()


def fact(annotation, image):
    """Fact of a COCO annotation with `attributes`."""
    a, (x, y, w, h) = annotation["attributes"], annotation["bbox"]
    x, y, longer = x + w / 2, y + h / 2, max(image["width"], image["height"])
    return Fact(
        a["shape"],
        a["colour"],
        a["size"],
        a["texture"],
        x / image["width"],
        y / image["height"],
        x / longer,
        y / longer,
        annotation["area"],
    )


def _fits(named, f):
    return (
        (named[0] is None or named[0] == f.shape)
        and (named[1] is None or named[1] == f.colour)
        and (named[2] is None or named[2] == f.size)
        and (named[3] is None or named[3] == f.texture)
    )


def _grade(value, yes, no):
    """1 where value is beyond `yes`, 0 beyond `no` on the other side, 0.5 (a matter of opinion) between them."""
    sign = 1 if yes > no else -1
    return 1.0 if sign * value >= sign * yes else 0.0 if sign * value <= sign * no else 0.5


def _place(place, f):
    if place == "middle":
        return min(_grade(abs(f.x - 0.5), 0.14, 0.24), _grade(abs(f.y - 0.5), 0.18, 0.28))
    value = f.x if place in ("left", "right") else f.y
    return _grade(value, 0.38, 0.54) if place in ("left", "top") else _grade(value, 0.62, 0.46)


def _rank(keys, index, rank, gap):
    """Whether keys[index] is the rank-th smallest, where keys nearer than `gap` count as tied."""
    mine = keys[index]
    better = sum(k < mine - gap for k in keys.values())
    tied = sum(abs(k - mine) <= gap for k in keys.values()) - 1
    return (0.5 if tied else 1.0) if better <= rank - 1 <= better + tied else 0.0


BEST = {
    "left": (lambda f: f.x, 0.06),
    "right": (lambda f: -f.x, 0.06),
    "top": (lambda f: f.y, 0.06),
    "bottom": (lambda f: -f.y, 0.06),
    "big": (lambda f: -math.log(f.area), math.log(1.5)),
    "small": (lambda f: math.log(f.area), math.log(1.5)),
}


def _related(kind, f, mark):
    du, dv = mark.u - f.u, mark.v - f.v
    if kind == "near":
        return _grade(math.hypot(du, dv), 0.34, 0.46)
    ahead, aside = {"left": (du, dv), "right": (-du, dv), "above": (dv, du), "below": (-dv, du)}[
        kind
    ]
    value = _grade(ahead, 0.09, -0.02)
    return value if value < 1 or abs(aside) <= 1.5 * ahead else 0.5


def judge(query, facts):
    """[0 no, 0.5 a matter of opinion, 1 yes] for every Fact of a scene; a landmark must be one object only."""
    values = [1.0 if _fits(query.named, f) else 0.0 for f in facts]
    pool = [i for i, v in enumerate(values) if v]
    for i in pool:
        for place in query.where:
            values[i] = min(values[i], _place(place, facts[i]))
    if query.best:
        key, gap = BEST[query.best[0]]
        keys = {i: key(facts[i]) for i in pool}
        for i in pool:
            values[i] = min(values[i], _rank(keys, i, query.best[1], gap))
    for kind, named in query.relations:
        marks = [i for i, f in enumerate(facts) if _fits(named, f)]
        if len(marks) != 1:
            return [0.5 * (v > 0) for v in values]
        mark = facts[marks[0]]
        keys = {
            i: math.hypot(facts[i].u - mark.u, facts[i].v - mark.v) for i in pool if i != marks[0]
        }
        for i in pool:
            if i == marks[0]:
                values[i] = 0.0
            else:
                holds = (
                    _rank(keys, i, 1, 0.08) if kind == "closest" else _related(kind, facts[i], mark)
                )
                values[i] = min(values[i], holds)
    return values
