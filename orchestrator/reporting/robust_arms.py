"""Compare the arms of a sweep under corruption: means, drops, differences paired by seed.

The scores are those that the end of a sweep measures with every confirmed checkpoint on the same
clean and corrupted validation pictures (evaluate.corrupt). Scores are shares in [0, 1]; a value
that is missing is NaN. This module reads and writes no files.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator import evaluation
from orchestrator.reporting import wording
from orchestrator.reporting.numbers import NAN, Trial, arms_of, by_seed, is_alignment_arm
from orchestrator.reporting.significance import (
    Difference,
    Interval,
    holm,
    mean_interval,
    seed_difference,
)

PREFIX = "robust/"
"""Beginning of the metrics under corruption: robust/fog, robust/mean, robust/clean."""

CLEAN = "clean"

MEAN = "mean"
"""The mean over the corruptions."""

REFERENCES = ("off", "random")
"""Arms that every other arm is compared with."""


@dataclass(frozen=True)
class RobustScore:
    """An arm's confirmed checkpoints on the pictures of one corruption, or clean, or in the mean.

    A row of robust_arms.csv.
    """

    arm: str
    corruption: str
    severities: str
    mIoU: Interval
    """Mean over the seeds of the mean over the severities."""
    drop: float
    """Mean over the seeds of 1 - score / clean score; NaN for the clean pictures."""
    differences: Mapping[str, Difference]
    """Difference to each of `REFERENCES` that the arm is not, paired by seed."""
    p_corrected: Mapping[str, float]
    """Its p value after Holm's correction, over all arms and corruptions compared with that
    reference; the rows of the mean are a family of their own, and so are the clean ones."""

    def row(self) -> dict[str, Any]:
        """Return the row of robust_arms.csv."""
        columns = {
            "arm": self.arm,
            "corruption": self.corruption,
            "severities": self.severities,
            "seeds": self.mIoU.n,
            "mIoU": self.mIoU.mean,
            "mIoU_low": self.mIoU.low,
            "mIoU_high": self.mIoU.high,
            "drop_mIoU": self.drop,
        }
        for name in REFERENCES:
            found = self.differences.get(name)
            columns |= {
                f"vs_{name}_n": found.n[0] if found else 0,
                f"vs_{name}_mean": found.difference if found else NAN,
                f"vs_{name}_low": found.low if found else NAN,
                f"vs_{name}_high": found.high if found else NAN,
                f"vs_{name}_p": found.p if found else NAN,
                f"vs_{name}_p_holm": self.p_corrected.get(name, NAN),
                f"vs_{name}_detectable": found.detectable if found else NAN,
            }
        return columns


def add_robustness(trials: Iterable[Trial], sweep: Mapping[str, Any]) -> list[Trial]:
    """Return the trials with their scores under corruption as metrics of their last epoch.

    The metrics are robust/clean, robust/<corruption>, each a mean over severities, and
    robust/mean, the mean over the corruptions, of mIoU; robust/mIoU is the same as robust/mean.

    Args:
        trials: Records of the ledger.
        sweep: Content of sweep.json.
    """
    measured = (sweep.get("robustness") or {}).get("trials") or {}
    return [_with_scores(trial, measured.get(trial.get("trial"))) for trial in trials]


def _with_scores(trial: Trial, scores: Mapping[str, dict] | None) -> Trial:
    history = trial.get("history") or []
    if not scores or not history:
        return trial
    found = evaluation.mean_over_severities(scores)
    metrics = {f"{PREFIX}{name}": value for name, value in found.items()}
    if MEAN in found:  # as a search trial names it
        metrics[f"{PREFIX}mIoU"] = found[MEAN]
    return trial | {"history": [*history[:-1], history[-1] | metrics]}


def robust_scores(trials: list[Trial], sweep: Mapping[str, Any]) -> list[RobustScore]:
    """Summarise each arm under each corruption over its confirmation trials that are done.

    Args:
        trials: Trials as `add_robustness` returns them.
        sweep: Content of sweep.json.

    Returns:
        The arms in order, each clean, under each corruption, and in the mean of these; nothing
        where a sweep measured no corruption.
    """
    severities = _severities(sweep)
    done = [t for t in trials if t.get("stage") == "confirm" and t.get("state") == "done"]
    arms = [
        arm
        for arm in arms_of(trials, dict(sweep))
        if by_seed((t for t in done if t["arm"] == arm), f"{PREFIX}{MEAN}")
    ]
    if not arms:
        return []
    by_arm = {
        arm: {
            name: by_seed((t for t in done if t["arm"] == arm), f"{PREFIX}{name}")
            for name in severities
        }
        for arm in arms
    }
    differences = {
        (arm, name, other): seed_difference(by_arm[arm][name], by_arm[other][name])
        for arm in arms
        for name in severities
        for other in REFERENCES
        if other in arms and is_compared(arm, other)
    }
    corrected = _corrected(differences)
    return [
        RobustScore(
            arm=arm,
            corruption=name,
            severities=severities[name],
            mIoU=mean_interval(by_arm[arm][name].values()),
            drop=_drop(by_arm[arm], name),
            differences={
                other: differences[arm, name, other]
                for other in REFERENCES
                if (arm, name, other) in differences
            },
            p_corrected={
                other: corrected[arm, name, other]
                for other in REFERENCES
                if (arm, name, other) in corrected
            },
        )
        for arm in arms
        for name in severities
    ]


def is_compared(arm: str, reference: str) -> bool:
    """Return whether an arm is compared with a reference: off is not, with random."""
    return arm not in REFERENCES[: REFERENCES.index(reference) + 1]


def _severities(sweep: Mapping[str, Any]) -> dict[str, str]:
    """Return the severities of each corruption as text, between clean and the mean."""
    found: dict[str, list[str]] = {}
    for condition in (sweep.get("robustness") or {}).get("conditions") or ():
        name, _, severity = condition.partition(":")
        found.setdefault(name, []).append(severity)
    return {CLEAN: ""} | {name: " ".join(sorted(s)) for name, s in found.items()} | {MEAN: ""}


def _drop(scores: Mapping[str, Mapping[int, float]], name: str) -> float:
    """Return the mean share of the clean score that is lost, over the seeds that have both."""
    if name == CLEAN:
        return NAN
    clean = scores[CLEAN]
    return mean_interval(
        1 - value / clean[seed] for seed, value in scores[name].items() if clean.get(seed)
    ).mean


def _corrected(differences: Mapping[tuple[str, str, str], Difference]) -> dict[tuple, float]:
    """Return Holm's p value of each difference, corrected within its family."""
    families: dict[tuple[str, str], list[tuple]] = {}
    for key in differences:
        _, name, other = key
        kind = name if name in (CLEAN, MEAN) else "corruptions"
        families.setdefault((kind, other), []).append(key)
    corrected: dict[tuple, float] = {}
    for keys in families.values():
        adjusted = holm([differences[key].p for key in keys])
        corrected |= dict(zip(keys, adjusted, strict=True))
    return corrected


def sentences(sweep: Mapping[str, Any]) -> str:
    """Return how many sentences were scored under corruption, as "the first 800 of 1,228"."""
    measured = sweep.get("robustness") or {}
    return wording.count_sentences(measured.get("n"), sweep, measured.get("split"))


def table_caption(sweep: Mapping[str, Any]) -> str:
    """Return the caption of the table of arms under corruption.

    Args:
        sweep: Content of sweep.json.
    """
    measured = sweep.get("robustness") or {}
    scored = f"{sentences(sweep)} sentences of {measured.get('split', 'val')}"
    return (
        f"Confirmed checkpoints on {scored}, in %, mean over severities and seeds with 95% t "
        "interval; drop: share of the clean score that is lost; differences in points, paired by "
        "seed, with p values after Holm's correction over arms and corruptions."
    )


def robust_summary(scores: list[RobustScore], sweep: Mapping[str, Any]) -> list[str]:
    """Return what holds under corruption in sentences, the most important first.

    Args:
        scores: As `robust_scores` returns them.
        sweep: Content of sweep.json.
    """
    means = {s.arm: s for s in scores if s.corruption == MEAN}
    if not means:
        return []
    names = [s.corruption for s in scores if s.corruption not in (CLEAN, MEAN)]
    corruptions = ", ".join(dict.fromkeys(names))
    best = max(means.values(), key=lambda s: s.mIoU.mean)
    scored = sentences(sweep)
    lines = [
        f"Under corruption ({corruptions}; {scored} validation sentences) {best.arm} has the "
        f"highest mean mIoU, {wording.pct(best.mIoU.mean)}%, and loses "
        f"{wording.pct(best.drop, 1)}% of its clean score."
    ]
    aligned = max(
        (s for s in means.values() if is_alignment_arm(s.arm)),
        key=lambda s: s.mIoU.mean,
        default=best,
    )
    tests = {other: sum(other in s.differences for s in means.values()) for other in REFERENCES}
    for arm in [best] if aligned is best else [best, aligned]:
        for other, difference in arm.differences.items():
            lines.append(
                wording.seed_words(
                    arm.arm,
                    other,
                    difference,
                    arm.p_corrected[other],
                    tests[other],
                    "mean mIoU under corruption",
                )
            )
    lines += [_single_corruptions(scores, other) for other in REFERENCES if tests[other]]
    return lines


def _single_corruptions(scores: list[RobustScore], other: str) -> str:
    """Say which arms differ from a reference under which corruption after the correction."""
    single = [
        s
        for s in scores
        if s.corruption not in (CLEAN, MEAN) and math.isfinite(s.p_corrected.get(other, NAN))
    ]
    if not single:
        return f"Single corruptions need two common seeds to be compared with {other}."
    certain = [s for s in single if s.p_corrected[other] < wording.LEVEL]
    lead = f"Of {len(single)} comparisons of an arm with {other} under one corruption"
    if not certain:
        return f"{lead} none is distinguishable after Holm's correction."
    found = ", ".join(
        f"{s.arm} under {s.corruption} ({wording.points(s.differences[other].difference)} points)"
        for s in certain
    )
    return f"{lead} these are distinguishable after Holm's correction: {found}."
