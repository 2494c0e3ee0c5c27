"""Write referring sentences for the objects of a scene.

A sentence is a `Query` (attributes, place, rank, relations) put into words. A query is kept when
`judge` finds it true of the referent and clearly false of every other object of the scene;
`grammar.parse` reads the words back.

Kinds of sentences, their weights and their chances are data (`TEMPLATES`, `NAMED_CHANCES`). For
one seed the sentences are always the same, so the order of the draws is part of what this module
promises.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aml.synthetic.grammar import DRAWN_WORDS, Vocabulary
from aml.synthetic.meaning import (
    BEST,
    DRAWN,
    Fact,
    Margins,
    Named,
    Query,
    fits,
    judge,
    place_grade,
    relation_grade,
)
from aml.synthetic.wording import LONG, SHORT, happens, tokens_of

NAMED_CHANCES = {
    "named": (0.75, 0.45, 0.45, 0.4),
    "where": (0.72, 0.2, 0.12, 0.1),
    "best": (0.72, 0.2, 0.12, 0.1),
    "rank": (0.72, 0.2, 0.12, 0.1),
    "relation": (0.72, 0.2, 0.12, 0.1),
    "full": (1.0, 0.8, 0.6, 0.5),
}

ONE_WORD: tuple[int | None, ...] = (0, 0, 1, 1, 3, None)

LANDMARK_NAMES = ((0,), (2, 0), (1, 0), (3, 0), (1, 2, 0))


@dataclass(frozen=True)
class Template:
    """Kinds of sentences of a data set, and what they may speak of.

    A direction or relation is drawn evenly from its tuple, so an entry given twice weighs twice.
    """

    weights: dict[str, int]
    """Kind of sentence -> weight."""
    superlatives: tuple[str, ...]
    """Directions of a superlative that stands alone."""
    best: tuple[str, ...]
    """Directions of a superlative beside a noun."""
    ranks: tuple[str, ...]
    """Directions of a second or third object."""
    relations: tuple[str, ...]
    """Kinds of relations; the last one holds for any landmark."""
    place_beside_relation: float
    """Chance that a sentence of kind `full` names a place, too."""
    long_chance: dict[str, float] = field(default_factory=lambda: {"full": 0.6})
    """Kind of sentence -> chance of RefCOCOg's manner; 0 for the other kinds."""
    most_tokens: int = 20
    """Longest sentence that is kept."""
    named_chances: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: NAMED_CHANCES)
    """Kind of sentence -> chances that it names shape, colour, size and texture."""
    one_word: tuple[int | None, ...] = ONE_WORD
    """Contents of a sentence of kind `one`: an entry of `Query.named`, or a superlative (None)."""
    landmark_names: tuple[tuple[int, ...], ...] = LANDMARK_NAMES
    """Entries of `Query.named` by which a landmark may be named, the preferred ones first."""
    words: Vocabulary = DRAWN_WORDS
    margins: Margins = DRAWN


_EDGES = ("left", "right", "top", "bottom")
_RELATIONS = ("left", "right", "above", "below", "near", "closest")

TEMPLATES = {
    "refcoco": Template(
        weights={
            "one": 36,
            "named": 26,
            "where": 58,
            "best": 22,
            "rank": 8,
            "relation": 8,
            "full": 4,
        },
        superlatives=tuple(BEST),
        best=(*_EDGES, "big", "small", "big", "small"),
        ranks=_EDGES,
        relations=_RELATIONS,
        place_beside_relation=0.5,
    ),
    "refcoco+": Template(  # no word of position
        weights={"one": 24, "named": 50, "best": 26, "relation": 16, "full": 4},
        superlatives=("big", "small"),
        best=("big", "small"),
        ranks=(),
        relations=("near", "closest"),
        place_beside_relation=0.0,
    ),
    "refcocog": Template(
        weights={"named": 18, "where": 24, "best": 14, "relation": 32, "full": 14},
        superlatives=tuple(BEST),
        best=(*_EDGES, "big", "small", "big", "small"),
        ranks=_EDGES,
        relations=_RELATIONS,
        place_beside_relation=0.5,
        long_chance={kind: 1.0 for kind in ("named", "where", "best", "relation", "full")},
        most_tokens=28,
    ),
}

RANK_NUMBERS = (2, 2, 3)

SECOND_RELATION = 0.4
"""Chance that a sentence of kind `full` has a second relation."""

BOTH_PLACES = 0.4
"""Chance that both words of a corner are said; sentences of kind `full` always say both."""

HORIZONTAL_PLACE = 0.7
"""Chance that the one word said of a corner is left or right, not top or bottom."""


def _kept(fact: Fact, slots: Sequence[int]) -> Named:
    """Return (shape, colour, size, texture) of an object, None for all but these entries."""
    return tuple(fact[slot] if slot in slots else None for slot in range(4))


def _some(rng: random.Random, fact: Fact, chances: tuple[float, ...]) -> Named:
    """Return (shape, colour, size, texture) of an object, each kept with its chance, else None."""
    return tuple(
        value if rng.random() < chance else None
        for value, chance in zip(fact[:4], chances, strict=True)
    )


def _landmark(
    rng: random.Random, facts: list[Fact], index: int, template: Template
) -> tuple[int, Named] | None:
    """Return (index, shortest unique name) of another object, or None if it has no such name."""
    other = rng.choice([i for i in range(len(facts)) if i != index])
    for slots in template.landmark_names:
        named = _kept(facts[other], slots)
        if any(named) and sum(fits(named, fact) > 0 for fact in facts) == 1:
            return other, named
    return None


def _places(rng: random.Random, fact: Fact, kind: str) -> tuple[str, ...]:
    """Return the places that a sentence may give for an object; () if it has none."""
    where = tuple(p for p in ("top", "bottom", "left", "right") if place_grade(p, fact) == 1)
    if place_grade("middle", fact) == 1:
        where = ("middle",)
    if rng.random() < BOTH_PLACES or kind == "full":
        return where
    return where[-1:] if rng.random() < HORIZONTAL_PLACE else where[:1]


def _relations(
    rng: random.Random, facts: list[Fact], index: int, number: int, template: Template
) -> tuple[tuple[str, Named], ...]:
    """Return up to `number` (kind of relation, name of the landmark), or () if two are alike."""
    relations = []
    for _ in range(number):
        landmark = _landmark(rng, facts, index, template)
        if landmark is None:
            continue
        other, named = landmark
        *first, last = template.relations
        holds = [
            kind
            for kind in first
            if relation_grade(kind, facts[index], facts[other], template.margins) == 1
        ]
        relations.append((rng.choice(holds or [last]), named))
    return tuple(relations) if len({kind for kind, _ in relations}) == len(relations) else ()


def _propose(
    rng: random.Random, facts: list[Fact], index: int, kind: str, template: Template
) -> Query | None:
    """Return a query of a kind that may be true of facts[index], or None if none was found."""
    fact = facts[index]
    if kind == "one":
        slot = rng.choice(template.one_word)
        if slot is None:
            return Query(best=(rng.choice(template.superlatives), 1))
        return Query(_kept(fact, (slot,)))
    named = _some(rng, fact, template.named_chances[kind])
    if kind == "named":
        return Query(named) if any(named) else None
    where = _places(rng, fact, kind)
    if kind == "where":
        return Query(named, where) if where else None
    if kind in ("best", "rank"):
        rank = 1 if kind == "best" else rng.choice(RANK_NUMBERS)
        if sum(fits(named, other) > 0 for other in facts) <= rank:
            return None
        direction = rng.choice(template.best if kind == "best" else template.ranks)
        return Query(named, best=(direction, rank))
    number = 2 if kind == "full" and happens(rng, SECOND_RELATION) else 1
    relations = _relations(rng, facts, index, number, template)
    if not relations:
        return None
    with_place = kind == "full" and happens(rng, template.place_beside_relation)
    return Query(named, where if with_place else (), None, relations)


def _clear_query(
    rng: random.Random, facts: list[Fact], index: int, kind: str, template: Template
) -> Query | None:
    """Return a query that is true of facts[index] alone, or None if three proposals were not."""
    for _ in range(3):
        query = _propose(rng, facts, index, kind, template)
        if query is None:
            continue
        values = judge(query, facts, template.margins)
        if values[index] == 1 and sum(value > 0 for value in values) == 1:
            return query
    return None


def sentences(
    rng: random.Random, facts: list[Fact], index: int, template: Template, wanted: int
) -> list[list[str]]:
    """Return up to `wanted` different sentences, each true of facts[index] alone.

    Args:
        rng: source of the draws.
        facts: the objects of the scene.
        index: the referent.
        template: kinds of sentences.
        wanted: number of sentences; fewer come where the draws find no more.

    Returns:
        The tokens of each sentence.
    """
    kinds = tuple(template.weights)
    weights = tuple(template.weights.values())
    corner = abs(facts[index].x - 0.5) > 0.2 and abs(facts[index].y - 0.5) > 0.2
    found: list[list[str]] = []
    for _ in range(14 * wanted):
        if len(found) == wanted:
            break
        kind = rng.choices(kinds, weights)[0]
        query = _clear_query(rng, facts, index, kind, template)
        if query is None:
            continue
        manner = LONG if happens(rng, template.long_chance.get(kind, 0.0)) else SHORT
        pair = sum(fits(query.named, fact) > 0 for fact in facts) == 2
        tokens = tokens_of(rng, query, manner, template.words, corner=corner, pair=pair)
        if tokens not in found and len(tokens) <= template.most_tokens:
            found.append(tokens)
    return found


def as_typed(rng: random.Random, sent: str) -> str:
    """Return the sentence as somebody might have typed it."""
    raw = sent.replace("gray", "grey") if rng.random() < 0.5 else sent
    raw = raw.replace("second", "2nd") if rng.random() < 0.4 else raw
    case = rng.random()
    if case < 0.04:
        return raw.upper()
    return raw.capitalize() if case < 0.14 else raw
