"""Test whether one arm or training is better than another over their seeds.

A comparison names two or more of these:

    RUN        each confirmed arm of a sweep, or a training; trainings that differ in nothing but
               their seed form one group
    RUN:ARM    the finished confirmation trials of one arm of a sweep
    DIR        the folder of an evaluation (`evaluate --out DIR`), only with others of its kind

Every pair is tested. Holm's correction covers all tests that are printed. Groups that were not
measured alike are refused.
"""

import logging
import math
from itertools import combinations
from pathlib import Path
from typing import Any

from aml.errors import UserError
from orchestrator import data
from orchestrator.reporting import numbers, wording
from orchestrator.reporting.comparison.groups import (
    ComparisonGroup,
    check_comparable,
    difference_notes,
    equality,
    load_groups,
)
from orchestrator.reporting.comparison.images import compare_evaluations
from orchestrator.reporting.comparison.results import nan_to_none, result_row
from orchestrator.reporting.significance import holm, mean_interval, seed_difference

logger = logging.getLogger(__name__)

Scores = dict[int, float]
"""Score by seed."""

Pair = tuple[int, int]
"""Positions of two compared groups."""


def compare_runs(names: list[str], root: Path, *, metric: str = "val/mIoU") -> dict[str, Any]:
    """Compare runs, arms or evaluations, and log the result in words.

    Args:
        names: RUN, RUN:ARM or DIR, as the module describes them.
        root: Folder of all runs.
        metric: Metric that runs and arms are compared by, at the epoch that counts.

    Returns:
        The result for JSON: "kind" is "seeds" or "images", "comparisons" has a row for each test;
        None stands for NaN.

    Raises:
        UserError: There is nothing to compare, one of the names is not found or not finished, or
            they were not measured alike.
    """
    are_evaluations = [(Path(name) / "per_sentence.jsonl").is_file() for name in names]
    if not any(are_evaluations):
        return _compare_groups(names, root, metric)
    if not all(are_evaluations):
        raise UserError(
            f"{names[are_evaluations.index(True)]} is an evaluation and "
            f"{names[are_evaluations.index(False)]} is not; "
            "compare evaluations with evaluations, runs with runs"
        )
    return compare_evaluations(names)


def _compare_groups(names: list[str], root: Path, metric: str) -> dict[str, Any]:
    groups, are_whole_sweeps = load_groups(names, root)
    pairs = _pairs(groups, are_whole_sweeps)
    for i, j in pairs:
        check_comparable(groups[i], groups[j])
    scores = [_scores(group, metric) for group in groups]
    for group, by_seed in zip(groups, scores, strict=True):
        logger.info(_group_words(group, by_seed, metric))
    parts = (
        data.scored_sentences(group.run.experiment().data, group.run.state.get("data") or {})
        for group in groups
    )
    logger.info(f"scores on {' and '.join(dict.fromkeys(parts))}")
    comparisons = _test_pairs(groups, scores, pairs, metric)
    for row in comparisons:
        logger.info(f"{row['words']} {row['equality']}")
    compared = [groups[k] for k in sorted({k for pair in pairs for k in pair})]
    for note in difference_notes(compared):
        logger.info(note)
    return nan_to_none(
        {
            "kind": "seeds",
            "metric": metric,
            "tests": _count_tests(comparisons),
            "sides": [_group_row(*pair) for pair in zip(groups, scores, strict=True)],
            "comparisons": comparisons,
        }
    )


def _pairs(groups: list[ComparisonGroup], are_whole_sweeps: bool) -> list[Pair]:
    """Return the pairs to test: of whole sweeps each arm with the same arm, else every pair."""
    pairs = list(combinations(range(len(groups)), 2))
    if are_whole_sweeps:
        pairs = [(i, j) for i, j in pairs if _are_same_arm_of_two_runs(groups[i], groups[j])]
    if pairs:
        return pairs
    problem = f"{len(groups)} side{'' if len(groups) == 1 else 's'} to compare"
    if are_whole_sweeps:
        problem = "no arm is confirmed in both sweeps"
    raise UserError(
        f"{problem}; name two or more arms as RUN:ARM, trainings that differ in more than their "
        "seed, or a sweep with several confirmed arms"
    )


def _are_same_arm_of_two_runs(a: ComparisonGroup, b: ComparisonGroup) -> bool:
    return a.arm == b.arm and a.run.folder != b.run.folder


def _scores(group: ComparisonGroup, metric: str) -> Scores:
    scores = numbers.by_seed(group.trials, metric)
    if not scores:
        known = sorted(
            k for k in group.trials[0]["history"][-1] if k.startswith(("val/", "robust/"))
        )
        raise UserError(
            f"{group.label} has no {metric} in the epoch that counts; "
            f"choose --metric out of {', '.join(known)}"
        )
    return scores


def _test_pairs(
    groups: list[ComparisonGroup], scores: list[Scores], pairs: list[Pair], metric: str
) -> list[dict[str, Any]]:
    """Test each pair and return the JSON rows.

    Args:
        groups: All groups.
        scores: Scores of each group.
        pairs: Pairs of groups to test.
        metric: Name of the compared metric.
    """
    differences = [seed_difference(scores[i], scores[j]) for i, j in pairs]
    adjusted = holm([d.p for d in differences])
    tests = sum(not math.isnan(d.p) for d in differences)
    rows = []
    for (i, j), d, p in zip(pairs, differences, adjusted, strict=True):
        a = groups[i]
        b = groups[j]
        rows.append(
            {
                **result_row(a.label, b.label, d, p, wording.verdict(d, p, metric)),
                "metric": metric,
                "equality": equality(a, b),
                "words": wording.seed_words(a.label, b.label, d, p, tests, metric),
            }
        )
    return rows


def _count_tests(rows: list[dict[str, Any]]) -> int:
    """Return the number of tests; a pair with too few seeds for a test has p NaN."""
    return sum(not math.isnan(row["p"]) for row in rows)


def _group_words(group: ComparisonGroup, scores: Scores, metric: str) -> str:
    """Say a group's mean, interval and epochs."""
    i = mean_interval(scores.values())
    mean, low, high, sd = (wording.shown(metric, v) for v in (i.mean, i.low, i.high, i.sd))
    interval = "one seed, no interval"
    if i.n > 1:
        interval = f"95% t interval {low} to {high}, deviation {sd}, {i.n} seeds"
    unit = "%" if wording.is_score(metric) else ""
    return f"{group.label}: {metric} {mean}{unit} ({interval}), {group.epochs} epochs"


def _group_row(group: ComparisonGroup, scores: Scores) -> dict[str, Any]:
    """Return a group's JSON row."""
    return {
        "label": group.label,
        "arm": group.arm,
        "epochs": group.epochs,
        "flops_per_item": group.compute,
        "seeds": {str(seed): value for seed, value in sorted(scores.items())},
        **mean_interval(scores.values())._asdict(),
    }
