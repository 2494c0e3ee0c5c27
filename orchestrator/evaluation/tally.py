"""Scores of one checkpoint on one split, summed over samples."""

from dataclasses import dataclass, field

import numpy as np

from aml.metrics import Sums

CLEAN = ("clean", 0)


@dataclass
class Sample:
    """One sentence under one view of its picture."""

    sentence: str
    truth: np.ndarray
    """(S, S) or (H, W) bool, by protocol."""
    pixels: int
    """Of truth."""
    row: dict
    """What per_sentence.jsonl says of it, the counts still to come."""
    fact: dict
    """What sentences.jsonl says of it."""


@dataclass
class View:
    """A picture, clean or corrupted, with the sentences about it."""

    image: np.ndarray
    """(S, S, 3) uint8"""
    samples: list[Sample]


@dataclass
class Tally:
    """Sums by (split, corruption, severity), the lines of per_sentence.jsonl, and of the clean view (fact, I, U). Tallies add up by `+=`."""

    sums: dict[tuple, Sums] = field(default_factory=dict)
    lines: list[bytes] = field(default_factory=list)
    clean: list[tuple[dict, int, int]] = field(default_factory=list)
    pictures: int = 0
    words: int = 0
    """Words of the sentences; 0 for a model without a word list."""
    unknown: int = 0
    """Those of them that it does not know."""

    @property
    def unknown_share(self) -> float | None:
        return self.unknown / self.words if self.words else None

    def __iadd__(self, other: "Tally") -> "Tally":
        for key, sums in other.sums.items():
            self.sums[key] = self.sums.get(key, Sums()) + sums
        self.lines += other.lines
        self.clean += other.clean
        self.pictures, self.words, self.unknown = (
            self.pictures + other.pictures,
            self.words + other.words,
            self.unknown + other.unknown,
        )
        return self
