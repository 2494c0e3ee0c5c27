"""Hold the vocabulary of the generated sentences and parse sentences back into queries."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from aml.synthetic.meaning import COLOURS, Query

NOUNS = {
    "circle": ("circle", "disc"),
    "ring": ("ring", "donut"),
    "heart": ("heart",),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "diamond": ("diamond",),
}
"""Shape -> its names, the most frequent first."""

SIZES = {"small": ("small", "little", "tiny"), "big": ("big", "large")}

TEXTURES = {
    "plain": ("plain", "solid"),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked",),
}

PLACES = {
    "left": ("left",),
    "right": ("right",),
    "top": ("top", "upper"),
    "bottom": ("bottom", "lower"),
    "middle": ("middle", "center"),
}

SUPERLATIVES = {
    "left": ("leftmost", "far left"),
    "right": ("rightmost", "far right"),
    "top": ("topmost", "highest"),
    "bottom": ("bottommost", "lowest"),
    "big": ("largest", "biggest"),
    "small": ("smallest", "tiniest"),
}

RANKS = {"second": 2, "third": 3}

RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "near": ("near", "next to"),
    "closest": ("closest to", "nearest to"),
}
"""Kind of relation -> its wordings; the last one is the most elaborate."""

GENERAL_NOUNS = ("one", "thing", "shape", "object")
"""Nouns for an object whose shape is not named."""


@dataclass(frozen=True)
class Vocabulary:
    """Words that depend on what the pictures show."""

    nouns: Mapping[str, tuple[str, ...]]
    """Shape or category -> its names, the most frequent first."""
    superlatives: Mapping[str, tuple[str, ...]]
    """Direction -> words for the first of several objects."""
    comparatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Direction -> words for the first of two objects, where they differ from those of several."""
    dressed: tuple[str, ...] = ()
    """Shapes or categories of which a colour is said as "in red" behind the noun."""
    an: bool = False
    """Say "an" before a vowel. Drawn scenes say "a", so that their sentences stay as they were."""


DRAWN_WORDS = Vocabulary(NOUNS, SUPERLATIVES)
"""Words of drawn scenes."""

FILLERS = frozenset(
    ("a", "an", "the", "that", "is", "which", "and", "on", "in", "at", "side", "corner", "with")
) | set(GENERAL_NOUNS)
"""Words that `parse` skips, since they do not change the meaning."""

Meaning = tuple[str | int, str | int | tuple[str, int]]
"""(slot, value) of a word. The slot is 0 to 3 for an entry of `Query.named`, or the name of a
field of `_Reading`."""


def _lexicon() -> dict[str, Meaning]:
    """Return the (slot, value) of each word; several words of one meaning are joined by hyphens."""
    words: dict[str, Meaning] = {}
    attributes: tuple[dict[str, tuple[str, ...]], ...] = (
        NOUNS,
        {colour: (colour,) for colour in COLOURS},
        SIZES,
        TEXTURES,
    )
    for slot, table in enumerate(attributes):
        words |= {w: (slot, value) for value, forms in table.items() for w in forms}
    words |= {w: ("where", value) for value, forms in PLACES.items() for w in forms}
    words |= {
        w.replace(" ", "-"): ("best", (value, 1))
        for value, forms in SUPERLATIVES.items()
        for w in forms
    }
    words |= {
        f"<{w.replace(' ', '-')}>": ("relation", value)
        for value, forms in RELATIONS.items()
        for w in forms
    }
    return words | {w: ("rank", value) for w, value in RANKS.items()}


LEXICON = _lexicon()

_RELATION = re.compile(
    r"\b("
    + "|".join(sorted((w for forms in RELATIONS.values() for w in forms), key=len, reverse=True))
    + r")\b"
)


@dataclass
class _Reading:
    """The parts of a sentence read so far."""

    nouns: list[list] = field(default_factory=lambda: [[None] * 4])
    """[shape, colour, size, texture] of the referent, then of the landmark of each relation."""
    relations: list = field(default_factory=list)
    where: list = field(default_factory=list)
    best: tuple | None = None
    rank: int | None = None
    edge: str | None = None
    """Edge of the picture from which `rank` counts."""

    def add(self, slot: str | int | None, value) -> bool:
        """Add the meaning of one word. Return False where the grammar admits no such word here."""
        if slot == "relation":
            self.relations.append(value)
            self.nouns.append([None] * 4)
        elif isinstance(slot, int) and self.nouns[-1][slot] is None:
            self.nouns[-1][slot] = value
        elif slot == "edge" and self.rank and self.edge is None:
            self.edge = value
        elif self.relations:  # all other words describe the referent, which comes first
            return False
        elif slot == "where":
            self.where.append(value)
        elif slot in ("best", "rank") and getattr(self, slot) is None:
            setattr(self, slot, value)
        else:
            return False
        return True

    def is_complete(self) -> bool:
        """Return whether each rank has its edge and each relation has its landmark."""
        if bool(self.rank) != bool(self.edge) or (self.rank and self.best):
            return False
        return all(any(landmark) for landmark in self.nouns[1:])


def parse(sentence: str) -> Query:
    """Parse a cleaned sentence into its query.

    Raises:
        ValueError: a word or an order of words is not in the grammar.
    """
    text = re.sub(r"[.,]", " ", sentence)
    text = re.sub(r"\bof the (picture|image)\b", " ", text)
    text = re.sub(r"\bfrom (?:the )?(left|right|top|bottom)\b", r"from-\1", text)
    text = re.sub(r"\bfar (left|right)\b", r"far-\1", text)
    text = _RELATION.sub(lambda m: f"<{m[1].replace(' ', '-')}>", text)
    reading = _Reading()
    for word in text.split():
        if word in FILLERS:
            continue
        slot, value = (
            ("edge", word[5:]) if word.startswith("from-") else LEXICON.get(word, (None, word))
        )
        if not reading.add(slot, value):
            raise ValueError(f"the word {word!r} has no place in {sentence!r}")
    if not reading.is_complete():
        raise ValueError(f"{sentence!r} is not a whole sentence")
    referent, *landmarks = (tuple(named) for named in reading.nouns)
    return Query(
        referent,
        tuple(reading.where),
        (reading.edge, reading.rank) if reading.edge and reading.rank else reading.best,
        tuple(zip(reading.relations, landmarks, strict=True)),
    )
