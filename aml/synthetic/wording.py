"""Put queries into words, in the manner of one of the data sets.

The chances of each manner are data (`SHORT`, `LONG`). For one seed the sentences are always the
same, so the order of the draws is part of what this module promises.
"""

import random
from dataclasses import dataclass

from aml.synthetic.grammar import (
    DRAWN_WORDS,
    GENERAL_NOUNS,
    PLACES,
    RANKS,
    RELATIONS,
    SIZES,
    TEXTURES,
    Vocabulary,
)
from aml.synthetic.meaning import Named, Query

MAIN_NAME = 0.88
"""Chance that a shape is called by the first of its nouns, else by the last."""

CORNER_ABOVE = 0.7
"""A place of two words is called a corner where the style draw is above this."""

PICTURE_ABOVE = 0.7
"""The frame is called "picture" where the style draw is above this, else "image"."""


@dataclass(frozen=True)
class Manner:
    """Chances of the wordings of a data set. A chance of 0 or 1 takes no draw in `happens`.

    `place_first`, `side_above` and `frame_above` are compared with one draw, the style of a place.
    The chances of dropping the noun take a draw even at 0.
    """

    drop_noun: float
    """Leave out the noun of a referent whose shape is not named."""
    drop_noun_before_relation: float
    """The same where the sentence has relations."""
    the_edge: float
    """Say "from the left" instead of "from left"."""
    place_first: float
    """Put the place before the noun: "left star"."""
    the_place: float
    """Say "on the left" instead of "on left"."""
    side_above: float
    """Say "left side" where the style draw is above this."""
    frame_above: float
    """Add "of the picture" or "of the image" where the style draw is above this."""
    elaborate_relations: bool
    """Use only the last wording in `RELATIONS`."""
    that_is: float
    """Begin the first relation with "that is"."""
    which_is: float
    """Begin the first relation with ", which is"."""
    join_relations: bool
    """Begin further relations with "and"."""
    the_landmark: float
    """Put "the" before a landmark."""
    article: float
    """Begin with an article."""
    article_of_one_word: float
    """Begin with an article where the sentence has one word."""
    indefinite: float
    """Choose "a" as that article; never before a superlative or a rank."""
    full_stop: float
    """End with a full stop."""


SHORT = Manner(
    drop_noun=0.75,
    drop_noun_before_relation=0.5,
    the_edge=0.4,
    place_first=0.4,
    the_place=0.4,
    side_above=0.95,
    frame_above=1.0,
    elaborate_relations=False,
    that_is=0.0,
    which_is=0.0,
    join_relations=False,
    the_landmark=0.45,
    article=0.12,
    article_of_one_word=0.0,
    indefinite=0.0,
    full_stop=0.0,
)
"""Manner of RefCOCO and RefCOCO+."""

LONG = Manner(
    drop_noun=0.0,
    drop_noun_before_relation=0.0,
    the_edge=1.0,
    place_first=0.0,
    the_place=1.0,
    side_above=0.6,
    frame_above=0.4,
    elaborate_relations=True,
    that_is=0.4,
    which_is=0.12,
    join_relations=True,
    the_landmark=1.0,
    article=1.0,
    article_of_one_word=1.0,
    indefinite=0.4,
    full_stop=0.15,
)
"""Manner of RefCOCOg."""


def happens(rng: random.Random, chance: float) -> bool:
    """Return True with this chance; certain outcomes (0 and 1) take no draw."""
    if chance <= 0 or chance >= 1:
        return chance >= 1
    return rng.random() < chance


def tokens_of(
    rng: random.Random,
    query: Query,
    manner: Manner,
    words: Vocabulary = DRAWN_WORDS,
    *,
    corner: bool = False,
    pair: bool = False,
) -> list[str]:
    """Return tokens that say a query.

    Args:
        rng: source of the draws.
        query: the meaning.
        manner: chances of the wordings.
        words: nouns and superlatives.
        corner: whether a place of two words may be called a corner.
        pair: whether a superlative chooses between two objects.
    """
    noun_draw = rng.random()
    chance = manner.drop_noun_before_relation if query.relations else manner.drop_noun
    described = any(query.named) or bool(query.where) or query.best is not None
    core = _noun_phrase(rng, query.named, words, bare=noun_draw < chance and described)
    after: list[str] = []
    if query.best is not None:
        before, after = _rank_words(rng, query.best, manner, words, pair)
        core = before + core
    if query.where:
        place = [rng.choice(PLACES[p]) for p in query.where]
        style = rng.random()
        if not core or style < manner.place_first:
            core = place + core
        else:
            if place[0] in ("upper", "lower") and len(place) == 1:
                place = [query.where[0]]  # "at the top" instead of "at the upper"
            after += _place_words(rng, place, style, manner, corner)
    for number, (kind, named) in enumerate(query.relations):
        after += _relation_words(rng, number, kind, named, manner, words)
    tokens = _finished(rng, core + after, manner, definite=query.best is not None)
    if words.an and tokens[0] == "a" and tokens[1][0] in "aeiou":
        tokens[0] = "an"
    return tokens


def _noun_phrase(rng: random.Random, named: Named, vocabulary: Vocabulary, bare: bool) -> list[str]:
    """Return words of (shape, colour, size, texture).

    Without a shape the noun is a general one; where `bare`, there is none.
    """
    shape, colour, size, texture = named
    dressed = colour is not None and shape in vocabulary.dressed
    words = [rng.choice(SIZES[size])] if size else []
    words += [rng.choice(TEXTURES[texture])] if texture else []
    words += [colour] if colour and not dressed else []
    if shape:
        nouns = vocabulary.nouns[shape]
        words += (nouns[0] if rng.random() < MAIN_NAME else nouns[-1]).split()
    elif not bare:
        words.append(rng.choice(GENERAL_NOUNS))
    return [*words, "in", colour] if dressed else words


def _rank_words(
    rng: random.Random,
    best: tuple[str, int],
    manner: Manner,
    words: Vocabulary,
    pair: bool,
) -> tuple[list[str], list[str]]:
    """Return the words before and after the noun that say a superlative or a rank."""
    direction, rank = best
    if rank == 1:
        choices = words.superlatives[direction]
        if pair:
            choices = words.comparatives.get(direction, choices)
        return rng.choice(choices).split(), []
    ordinal = next(word for word, number in RANKS.items() if number == rank)
    article = ["the"] if happens(rng, manner.the_edge) else []
    return [ordinal], ["from", *article, direction]


def _place_words(
    rng: random.Random, place: list[str], style: float, manner: Manner, corner: bool
) -> list[str]:
    """Return a place as words behind the noun, such as "on the left side of the picture"."""
    article = ["the"] if happens(rng, manner.the_place) else []
    sideways = place[0] in ("left", "right")
    tail = []
    if sideways and style > manner.side_above:
        tail = ["side"]
    elif corner and len(place) == 2 and style > CORNER_ABOVE:
        tail = ["corner"]
    preposition = "on" if sideways else "at"
    if place[0] in PLACES["middle"] or tail == ["corner"]:
        preposition = "in"
    if style > manner.frame_above:
        tail = [*tail, "of", "the", "picture" if style > PICTURE_ABOVE else "image"]
    return [preposition, *article, *place, *tail]


def _relation_words(
    rng: random.Random, number: int, kind: str, named: Named, manner: Manner, words: Vocabulary
) -> list[str]:
    """Return the words of relation `number`, counted from 0, to the landmark `named`."""
    wordings = RELATIONS[kind][-1:] if manner.elaborate_relations else RELATIONS[kind]
    link = rng.choice(wordings).split()
    lead = []
    if number == 0:
        if happens(rng, manner.that_is):
            lead = ["that", "is"]
        if happens(rng, manner.which_is):
            lead = [",", "which", "is"]
    elif manner.join_relations:
        lead = ["and"]
    article = ["the"] if happens(rng, manner.the_landmark) else []
    return [*lead, *link, *article, *_noun_phrase(rng, named, words, bare=False)]


def _finished(rng: random.Random, tokens: list[str], manner: Manner, definite: bool) -> list[str]:
    """Return the tokens with an article and a full stop, as the manner has them."""
    if happens(rng, manner.article if len(tokens) > 1 else manner.article_of_one_word):
        indefinite = not definite and happens(rng, manner.indefinite)
        tokens = ["a" if indefinite else "the", *tokens]
    return [*tokens, "."] if happens(rng, manner.full_stop) else tokens
