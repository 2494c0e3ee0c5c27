"""Break the clean scores of an evaluation down by kind of sentence and referent.

The groups of each breakdown:

size: area of the referent in pixels of the picture's own size, in COCO's ranges: small below 32^2,
    medium to 96^2, large above.
length: number of words of the expression.
position: whether the expression has a word of place (aml.data.POSITION_WORDS).
distractor: whether the picture has another annotated object of the referent's category.

Scores are shares in [0, 1].
"""

from collections.abc import Iterable

import torch

from aml.data import POSITION_WORDS, split_words, targets_of
from aml.metrics import Sums, score

SIZES = ((32**2, "small"), (96**2 + 1, "medium"))
"""Upper bounds of the area, exclusive (COCO's ranges are 0..32^2, 32^2..96^2, and above)."""

LENGTHS = ((3, "1-2 words"), (6, "3-5 words"), (11, "6-10 words"))
"""Upper bounds of the number of words, exclusive."""

GROUPS = {
    "size": ("small", "medium", "large"),
    "length": ("1-2 words", "3-5 words", "6-10 words", "11 words or more"),
    "position": ("with", "without"),
    "distractor": ("with", "without"),
}
"""The groups of each breakdown, in the order in which they are shown."""


def describe_sentence(row: dict, ref: dict, sentence: dict, area: int) -> dict:
    """Return a row of sentences.jsonl: what is known of a sentence before a model sees it.

    Args:
        row: The picture's row in the shards.
        ref: The ref of that row which the sentence belongs to.
        sentence: The sentence, with `sent_id` and `sent`.
        area: Area of the referent in pixels of the picture's own size.

    Returns:
        The row. `distractor` is None where the referent's category is not annotated, or the
        sentence refers to nothing.
    """
    named = targets_of(ref)
    categories = {o["ann_id"]: o.get("category") for o in row["objects"]}
    wanted = {categories[ann_id] for ann_id in named}
    others = [category for ann_id, category in categories.items() if ann_id not in named]
    words = split_words(sentence["sent"])
    distractor = None
    if named and None not in wanted:
        distractor = any(category in wanted for category in others)
    return {
        "split": ref["split"],
        "image_id": row["image_id"],
        "ref_id": ref["ref_id"],
        "sent_id": sentence["sent_id"],
        "sentence": sentence["sent"],
        "area": area,
        "words": len(words),
        "position": not POSITION_WORDS.isdisjoint(words),
        "distractor": distractor,
    }


def groups_of(description: dict) -> dict[str, str]:
    """Return the group of each breakdown that a sentence belongs to, as {"size": "small", ...}.

    `distractor` is left out where the description does not tell it.

    Args:
        description: The sentence's row of sentences.jsonl.
    """
    area = description["area"]
    words = description["words"]
    groups = {
        "size": next((name for bound, name in SIZES if area < bound), "large"),
        "length": next((name for bound, name in LENGTHS if words < bound), "11 words or more"),
        "position": "with" if description["position"] else "without",
    }
    if description["distractor"] is not None:
        groups["distractor"] = "with" if description["distractor"] else "without"
    return groups


def score_groups(
    sentences: Iterable[tuple[dict, int, int]],
) -> dict[str, dict[str, dict[str, dict]]]:
    """Return the scores of each group of sentences; groups that do not occur are left out.

    Args:
        sentences: For each sentence its row of sentences.jsonl, intersection and union in pixels.

    Returns:
        {split: {"size": {"small": {"mIoU", "oIoU", "P@0.5" ..., "n"}, ...}, ...}}.
    """
    counts: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for description, intersection, union in sentences:
        for kind, group in groups_of(description).items():
            key = description["split"], kind, group
            counts.setdefault(key, []).append((intersection, union))
    found: dict[str, dict[str, dict[str, dict]]] = {}
    for split in dict.fromkeys(key[0] for key in counts):
        for kind, groups in GROUPS.items():
            scores = {
                group: _scores(counts[split, kind, group])
                for group in groups
                if (split, kind, group) in counts
            }
            if scores:
                found.setdefault(split, {})[kind] = scores
    return found


def breakdown_lines(breakdown: dict) -> list[str]:
    """Return what breakdown.json holds as lines for a person, one a group, in per cent."""
    return [
        f"{split:12} {kind:10} {group:16} mIoU {100 * s['mIoU']:5.2f}  oIoU {100 * s['oIoU']:5.2f}"
        f"  P@0.5 {100 * s['P@0.5']:5.2f}  n {s['n']}"
        for split, kinds in breakdown.items()
        for kind, groups in kinds.items()
        for group, s in groups.items()
    ]


def _scores(counts: list[tuple[int, int]]) -> dict[str, float]:
    """Return the scores of some sentences from their (intersection, union) in pixels."""
    intersection, union = torch.tensor(counts, dtype=torch.int64).unbind(1)
    return (Sums() + score(intersection, union)).scores()
