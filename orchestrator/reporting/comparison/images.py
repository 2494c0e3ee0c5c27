"""Compare evaluations of checkpoints by a paired bootstrap over images."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from aml.errors import UserError
from orchestrator import evaluation
from orchestrator.reporting import intervals, wording
from orchestrator.reporting.comparison.results import nan_to_none, result_row
from orchestrator.reporting.significance import (
    RESAMPLES,
    Difference,
    ImageSums,
    holm,
    image_difference,
)

logger = logging.getLogger(__name__)

FEW_IMAGES = 50
"""Number of images below which a bootstrap interval is noted to be too narrow."""

CLEAN = {"clean:0"}
"""The view of uncorrupted pictures; a view is a corruption and its severity."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that is compared."""

    name: str
    about: dict[str, Any]
    """Content of about.json."""
    rows: Sequence[Mapping[str, Any]]
    """Rows of per_sentence.jsonl."""


@dataclass(frozen=True)
class ImageTest:
    """Two evaluations compared on one split, in one set of views."""

    a: str
    b: str
    split: str
    view: str
    """Either clean, or corrupted with the number of views."""
    differences: dict[str, Difference]
    """Difference a - b by metric."""


def compare_evaluations(names: list[str]) -> dict[str, Any]:
    """Compare evaluations on the splits and the corruptions that all of them have.

    Args:
        names: Folders of the evaluations.

    Returns:
        The result for JSON, as `compare_runs` returns it.

    Raises:
        UserError: There is only one evaluation, or they are not of the same sentences measured in
            the same way.
    """
    if len(names) < 2:
        raise UserError(f"{names[0]} is one evaluation; name two or more to compare")
    evaluations = _load(names)
    protocol = evaluations[0].about["protocol"]
    tests = _test(evaluations)
    comparisons = [row for metric in evaluation.METRICS for row in _metric_rows(tests, metric)]
    for row in comparisons:
        logger.info(row["words"])
    if min(test.differences["mIoU"].n[0] for test in tests) < FEW_IMAGES:
        logger.info(f"note: on fewer than {FEW_IMAGES} images a bootstrap interval is too narrow")
    logger.info(
        f"Paired bootstrap over images, {RESAMPLES} resamples, protocol {protocol}; Holm's "
        "correction within each metric. It tells these checkpoints apart, not their methods: "
        "another seed may turn it round, which comparing runs over seeds shows."
    )
    return nan_to_none(
        {
            "kind": "images",
            "protocol": protocol,
            "tests": len(tests),
            "sides": [{"label": name} for name in names],
            "comparisons": comparisons,
        }
    )


def _load(names: list[str]) -> list[Evaluation]:
    """Read the evaluations and check that they measured the same sentences in the same way."""
    about = {name: evaluation.read_evaluation(Path(name))[0] for name in names}
    for a, b in combinations(names, 2):
        evaluation.check_comparable(about[a], about[b], a, b)
    return [Evaluation(name, about[name], evaluation.read_rows(Path(name))) for name in names]


def _test(evaluations: list[Evaluation]) -> list[ImageTest]:
    """Test every pair on every common split, on clean pictures and on corrupted ones."""
    corrupted = {view for view in _common(evaluations, "corruptions") if not view.endswith(":0")}
    views = {"clean": CLEAN}
    if corrupted:
        views[f"corrupted ({len(corrupted)} views)"] = corrupted
    tests = []
    for split in _common_splits(evaluations):
        for view, chosen in views.items():
            sums = {e.name: _image_sums(e.rows, split, chosen) for e in evaluations}
            for a, b in combinations([e.name for e in evaluations], 2):
                differences = image_difference(*_check_paired(a, b, sums))
                tests.append(ImageTest(a, b, split, view, differences))
    return tests


def _common(evaluations: list[Evaluation], key: str) -> list[str]:
    """Return the values under `key` of about.json that all evaluations have."""
    first, *others = [e.about[key] for e in evaluations]
    return [value for value in first if all(value in other for other in others)]


def _common_splits(evaluations: list[Evaluation]) -> list[str]:
    splits = _common(evaluations, "splits")
    if not splits:
        have = "; ".join(f"{e.name}: {', '.join(e.about['splits'])}" for e in evaluations)
        raise UserError(
            f"no split is in all of the evaluations ({have}); evaluate the same --splits"
        )
    return splits


def _image_sums(
    rows: Sequence[Mapping[str, Any]], split: str, views: set[str]
) -> tuple[list[tuple], ImageSums]:
    """Sum over the sentences of each image of a split, in some views.

    Args:
        rows: Rows of per_sentence.jsonl.
        split: Split to read.
        views: Corruptions with their severity, such as "fog:3".

    Returns:
        The keys of the sentences with the pixels of their true masks, which tell whether two
        evaluations saw the same, and the sums in the order of image_id.
    """
    members = [
        r for r in rows if r["split"] == split and f"{r['corruption']}:{r['severity']}" in views
    ]
    names = ("image_id", "ref_id", "sent_id", "corruption", "severity", "gt_pixels")
    keys = sorted(tuple(r[name] for name in names) for r in members)
    _, image = np.unique([r["image_id"] for r in members], return_inverse=True)

    def sum_by_image(values: list[float]) -> np.ndarray:
        return np.bincount(image, weights=values)

    iou = [intervals.sentence_iou(r) for r in members]
    return keys, ImageSums(
        iou=sum_by_image(iou),
        n=sum_by_image([1.0] * len(members)),
        intersection=sum_by_image([r["intersection"] for r in members]),
        union=sum_by_image([r["union"] for r in members]),
    )


def _check_paired(
    a: str, b: str, sums: dict[str, tuple[list[tuple], ImageSums]]
) -> tuple[ImageSums, ImageSums]:
    """Return the sums of two evaluations, which must hold the same sentences of two images."""
    keys_a, sums_a = sums[a]
    keys_b, sums_b = sums[b]
    if keys_a != keys_b:
        raise UserError(
            f"{a} and {b} do not hold the same sentences ({len(keys_a)} and {len(keys_b)} rows); "
            "evaluate both on the same shards again"
        )
    if len(sums_a.n) < 2:
        raise UserError(
            f"{a} and {b} hold {len(sums_a.n)} image, and a bootstrap over images needs two; "
            "evaluate a larger split"
        )
    return sums_a, sums_b


def _metric_rows(tests: list[ImageTest], metric: str) -> list[dict[str, Any]]:
    """Return the JSON rows of a metric, corrected for all tests of this metric."""
    adjusted = holm([test.differences[metric].p for test in tests])
    rows = []
    for test, p in zip(tests, adjusted, strict=True):
        d = test.differences[metric]
        score = f"{metric} on {test.split}, {test.view}"
        rows.append(
            {
                **result_row(test.a, test.b, d, p, wording.verdict(d, p)),
                "metric": metric,
                "split": test.split,
                "view": test.view,
                "words": wording.image_words(test.a, test.b, d, p, len(tests), score),
            }
        )
    return rows
