"""Compute intervals of an evaluation's scores by a bootstrap over its images.

The sentences of an image are not independent, so a resample draws images, each with all of its
sentences. Intervals are Efron's percentile intervals. They say how much the choice of images
matters, not how another training would score.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aml.metrics import THRESHOLDS
from orchestrator import evaluation
from orchestrator.reporting.significance import LEVEL, RESAMPLES
from orchestrator.utils import atomic_write

FILE = "intervals.json"

SHOWN = ("mIoU", "oIoU", "P@0.5")
"""Metrics whose interval is printed."""

WEIGHTS_AT_ONCE = 4_000_000
"""Weights of images that a bootstrap draws at once; this bounds its memory."""

Columns = dict[str, tuple[np.ndarray, np.ndarray]]
"""By metric the numerator and denominator of each sentence, (sentences,) float64 each."""


def sentence_iou(row: Mapping[str, Any]) -> float:
    """Return I/U of a row of per_sentence.jsonl; 1 where nothing is named and nothing was found."""
    if row["no_target"] and row["called_empty"]:
        return 1.0
    return row["intersection"] / row["union"] if row["union"] else 0.0


def write_intervals(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Write intervals.json of an evaluation, and return its content.

    Args:
        folder: Folder of the evaluation.

    Returns:
        {split: {"mIoU": [low, high], ...}} of the clean pictures, shares in [0, 1], 95 %; nothing
        for a split of one picture.
    """
    by_split: dict[str, list[dict]] = {}
    for row in evaluation.read_rows(folder):
        if row["corruption"] == "clean":
            by_split.setdefault(row["split"], []).append(row)
    found = {split: score_intervals(rows) for split, rows in by_split.items()}
    atomic_write(Path(folder) / FILE, json.dumps(found, indent=1).encode())
    return found


def interval_lines(intervals: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Return what intervals.json holds as lines for a person, in per cent."""
    return [
        f"{split:20} 95% over images: "
        + "  ".join(
            f"{name} {100 * metrics[name][0]:.2f} to {100 * metrics[name][1]:.2f}"
            for name in SHOWN
            if name in metrics
        )
        for split, metrics in intervals.items()
        if metrics
    ]


def score_intervals(
    rows: Sequence[Mapping[str, Any]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """Return the 95 % interval of each metric of some sentences.

    Args:
        rows: Rows of per_sentence.jsonl, of one split, under one condition.
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        {"mIoU": [low, high], ...} for the metrics of metrics.json; nothing for a single image.
    """
    _, image = np.unique([row["image_id"] for row in rows], return_inverse=True)
    images = int(image.max()) + 1
    if images < 2:
        return {}
    columns = _columns(rows)
    # (2 * metrics, images): numerators, then denominators
    sums = np.stack(
        [
            np.bincount(image, weights=pair[part], minlength=images)
            for part in (0, 1)
            for pair in columns.values()
        ]
    )
    rng = np.random.default_rng(seed)
    at_once = max(1, WEIGHTS_AT_ONCE // images)
    drawn = []
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        weights = rng.multinomial(images, np.full(images, 1 / images), size=count)
        above, below = np.split(weights @ sums.T, 2, axis=1)
        # a resample without any of a metric's sentences counts 0, as the metric itself does
        drawn.append(above / np.maximum(below, 1))
    ends = np.percentile(np.concatenate(drawn), [50 * LEVEL, 100 - 50 * LEVEL], axis=0)
    return {name: [float(x) for x in ends[:, k]] for k, name in enumerate(columns)}


def _columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Return numerator and denominator of each metric, sentence by sentence."""
    intersection = np.array([row["intersection"] for row in rows], float)
    union = np.array([row["union"] for row in rows], float)
    absent = np.array([row["no_target"] for row in rows])
    empty = np.array([row["called_empty"] for row in rows])
    targeted = (~absent).astype(float)
    hit = {
        f"P@0.{x // 10}": ((100 * intersection >= x * union) & (union > 0) & ~absent).astype(float)
        for x in THRESHOLDS
    }
    columns: Columns = {
        "mIoU": (np.array([sentence_iou(row) for row in rows]), np.ones(len(rows))),
        "oIoU": (intersection, union),
        **{name: (hits, targeted) for name, hits in hit.items()},
    }
    if absent.any():
        columns |= {"gIoU": columns["mIoU"], "cIoU": columns["oIoU"]}
        columns["N-acc"] = ((absent & empty).astype(float), absent.astype(float))
        columns["T-acc"] = ((~absent & ~empty).astype(float), targeted)
    return columns
