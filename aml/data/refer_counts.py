"""Count refs, sentences, images and words of a referring data set.

The counts can be compared with the published ones. The module also tells which targets a ref names.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from aml.errors import UserError
from aml.reading import describe, text_problem

SENTENCE_LETTERS = 5_000
"""Letters of an expression at most."""

PUBLISHED: dict[tuple[str, str], dict[str, tuple[int, int | None, int]]] = {
    ("refcoco", "unc"): {
        "train": (42_404, 120_624, 16_994),
        "val": (3_811, 10_834, 1_500),
        "testA": (1_975, 5_657, 750),
        "testB": (1_810, 5_095, 750),
    },
    ("refcoco", "google"): {
        "train": (40_000, None, 19_213),
        "val": (5_000, None, 4_559),
        "test": (5_000, None, 4_527),
    },
    ("refcoco+", "unc"): {
        "train": (42_278, 120_191, 16_992),
        "val": (3_805, 10_758, 1_500),
        "testA": (1_975, 5_726, 750),
        "testB": (1_798, 4_889, 750),
    },
    ("refcocog", "umd"): {
        "train": (42_226, 80_512, 21_899),
        "val": (2_573, 4_896, 1_300),
        "test": (5_023, 9_602, 2_600),
    },
    ("refcocog", "google"): {"train": (44_822, 85_474, 24_698), "val": (5_000, 9_536, 4_650)},
}
"""Refs, sentences and images of each split as published; None where no number was published."""


def targets_of(ref: dict) -> list[int]:
    """Return the annotations that a ref of a row names: one, in gRefCOCO several or none."""
    return ref["ann_ids"] if "ann_ids" in ref else [ref["ann_id"]]


def against_published(dataset: str, split_by: str, counts: dict[str, dict[str, int]]) -> str | None:
    """Compare counts with the published ones.

    Args:
        dataset: name of the data set.
        split_by: name of its splitting.
        counts: the result of `split_counts`.

    Returns:
        One line that names the differences; None for a data set without published counts.
    """
    published = PUBLISHED.get((dataset, split_by))
    if published is None:
        return None
    said = []
    for split in [*published, *(s for s in counts if s not in published)]:
        pairs = zip(("refs", "sentences", "images"), published.get(split, (0, 0, 0)), strict=True)
        found = counts.get(split, {})
        said += [
            f"{split} {found.get(what, 0)} {what}, not {n}"
            for what, n in pairs
            if n is not None and found.get(what, 0) != n
        ]
    name = f"{dataset} ({split_by})"
    if said:
        return f"counts differ from the published {name}: {'; '.join(said)}"
    return f"counts are those of the published {name}"


POSITION_WORDS = frozenset(
    (
        *("left", "right", "top", "bottom", "upper", "lower", "middle", "center", "centre"),
        *("leftmost", "rightmost", "topmost", "bottommost", "uppermost", "lowest", "highest"),
        *("front", "back", "behind", "above", "over", "below", "under", "beneath", "corner"),
        *("side", "edge", "end", "near", "nearest", "closest", "far", "furthest", "farthest"),
        *("next", "between", "beside", "from", "foreground", "background"),
        *("first", "second", "third", "last", "1st", "2nd", "3rd"),
    )
)
"""Words of place and order, by which data sets and results are counted."""


def split_words(sentence: str) -> list[str]:
    """Return the lower-cased words without punctuation at their ends."""
    return [w for w in (part.strip(".,;:!?\"'()") for part in sentence.lower().split()) if w]


def sentence_problem(sentence: Any) -> str:
    """Return why a value cannot be used as an expression; empty where it can."""
    problem = text_problem(sentence, SENTENCE_LETTERS)
    if not problem and not split_words(sentence):
        return f"is {describe(sentence)}, which holds no word"
    return problem


def check_sentence(text: Any) -> str:
    """Return the text; raise UserError where it cannot be used as an expression."""
    if problem := sentence_problem(text):
        raise UserError(f'the sentence {problem}; say what to look for, as in "the left dog"')
    return text


def vocabulary(rows: Iterable[dict]) -> list[str]:
    """Return the words of the train split, the most frequent first, equal ones by alphabet.

    Where there is no train split, the sentences of all splits count.
    """
    every: Counter[str] = Counter()
    train: Counter[str] = Counter()
    for ref in (ref for row in rows for ref in row["refs"]):
        said = Counter(word for s in ref["sentences"] for word in split_words(s["sent"]))
        every.update(said)
        if ref["split"] == "train":
            train.update(said)
    counted = train or every
    return sorted(counted, key=lambda word: (-counted[word], word))


def split_counts(rows: Iterable[dict]) -> dict[str, dict[str, int]]:
    """Return {split: {"refs": n, "sentences": n, "images": n}}.

    A split with sentences without a target also has their number as "no_target".
    """
    counts: dict[str, dict] = {}
    for row in rows:
        for ref in row["refs"]:
            entry = counts.setdefault(ref["split"], {"refs": 0, "sentences": 0, "images": set()})
            entry["refs"] += 1
            entry["sentences"] += len(ref["sentences"])
            entry["images"].add(row["image_id"])
            if not targets_of(ref):
                entry["no_target"] = entry.get("no_target", 0) + len(ref["sentences"])
    return {split: {**c, "images": len(c["images"])} for split, c in sorted(counts.items())}
