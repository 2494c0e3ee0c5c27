"""Word a report's and a comparison's results: numbers as text, differences, verdicts, notes."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.reporting.numbers import hides_words, number, selected
from orchestrator.reporting.significance import LEVEL, Difference
from orchestrator.reporting.summaries import ArmDifference, ArmSummary, LinePoint

SHARES = ("val/", "robust/")
"""Beginnings of the metrics that are scores: shares in [0, 1], of which more is better."""

# Numbers


def num(value: object, digits: int = 2, scale: float = 1.0, sign: bool = False) -> str:
    """Format a number with a true minus sign; a dash stands for a value that is not finite.

    Args:
        value: Number; anything else counts as missing.
        digits: Digits after the point.
        scale: Factor applied before formatting.
        sign: Whether a positive number gets a plus sign.
    """
    found = number(value)
    if not math.isfinite(found):
        return "–"
    return f"{scale * found:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def brief(value: object) -> str:
    """Format a setting, floats to four significant digits; trials.csv has all digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pct(share: object, digits: int = 2) -> str:
    """Format a share in [0, 1] in per cent, without the sign %."""
    return num(share, digits, 100)


def points(share: object) -> str:
    """Format a difference of shares in points, with its sign."""
    return num(share, 2, 100, sign=True)


def is_score(metric: str) -> bool:
    """Tell whether a metric is a score: shown in per cent, its differences in points."""
    return metric.startswith(SHARES)


def shown(metric: str, value: object) -> str:
    """Format a value of a metric: scores in per cent, all else to four significant digits."""
    if is_score(metric):
        return pct(value)
    found = number(value)
    return f"{found:.4g}".replace("-", "−") if math.isfinite(found) else "–"


def shown_difference(metric: str, difference: float) -> str:
    """Format the size of a difference in a metric, with its unit where that is points."""
    return f"{pct(difference)} points" if is_score(metric) else shown(metric, difference)


def setting_text(tau: object, rho: object, other: str = "") -> str:
    """Format a setting: tau, rho and, if there are any, the other searched values."""
    extra = f"; {other}" if other else ""
    return f"τ {num(tau)}, ρ {num(rho)}{extra}"


# Sentences that were scored


def count_sentences(n: object, meta: Mapping[str, Any], split: str | None = None) -> str:
    """Return how many sentences of a split, by default val_split, n is: "the first 800 of 1,228".

    Args:
        n: Sentences that were scored.
        meta: Content of sweep.json or train.json, with the run's config.
        split: Name of the split.
    """
    scored = number(n)
    name = split or ((meta.get("config") or {}).get("data") or {}).get("val_split") or "val"
    counts = ((meta.get("data") or {}).get("splits") or {}).get(name)
    total = number(counts.get("sentences")) if isinstance(counts, Mapping) else math.nan
    if not math.isfinite(scored):
        return "?"
    return f"the first {scored:,.0f} of {total:,.0f}" if scored < total else f"{scored:,.0f}"


def partial_validation(meta: Mapping[str, Any]) -> list[str]:
    """Return a sentence that says which part of the validation split was scored, if it was one."""
    limit = ((meta.get("config") or {}).get("data") or {}).get("val_limit")
    count = count_sentences(limit, meta)
    return [f"Validation scores are of {count} sentences."] if " of " in count else []


# Tests of differences


def verdict(d: Difference, p: float, metric: str = SHARES[0]) -> str:
    """Classify a test.

    Args:
        d: Tested difference.
        p: Its p value after correction for all tests.
        metric: Name of the compared metric; by default a score.

    Returns:
        "better" or "worse" if it is significant after correction too ("above" or "below" where
        the metric is no score), "weak" if only taken alone, else "undecided".
    """
    if math.isnan(d.p) or d.p >= LEVEL:
        return "undecided"
    if p >= LEVEL:
        return "weak"
    words = ("better", "worse") if is_score(metric) else ("above", "below")
    return words[d.difference < 0]


def seed_words(a: str, b: str, d: Difference, p: float, tests: int, metric: str) -> str:
    """Word the difference between two groups of seeds in one sentence, with its uncertainty.

    Args:
        a: Label of the first group.
        b: Label of the second group.
        d: Tested difference a - b.
        p: Its p value after Holm's correction.
        tests: Number of tests that the correction covers.
        metric: Name of the compared metric.
    """
    lead = f"{_lead(a, b, d, metric)} in {metric}"
    if d.test == "none":
        return (
            f"{lead}: not distinguishable, as one seed says nothing of noise; "
            "train both on two or more common seeds."
        )
    seeds = (
        f"{d.n[0]} paired seeds"
        if d.test == "paired t"
        else f"{d.n[0]} and {d.n[1]} seeds, none or one in common"
    )
    certainty = f"{_certainty(d, p, tests, metric)}, {d.test} test, {seeds}"
    found = _verdict_words(d, p, tests, metric, "seed noise", "these seeds")
    return f"{lead} ({certainty}): {found}"


def image_words(a: str, b: str, d: Difference, p: float, tests: int, score: str) -> str:
    """Word the difference between two evaluations in one sentence, with its uncertainty.

    Args:
        a: Name of the first evaluation.
        b: Name of the second evaluation.
        d: Tested difference a - b.
        p: Its p value after Holm's correction.
        tests: Number of tests that the correction covers.
        score: Metric, split and view that are compared, in words.
    """
    metric = SHARES[0]
    certainty = f"{_certainty(d, p, tests, metric)}, {d.n[0]} images"
    found = _verdict_words(d, p, tests, metric, "the choice of images", "these images")
    return f"{_lead(a, b, d, metric)} in {score} ({certainty}): {found}"


def _lead(a: str, b: str, d: Difference, metric: str) -> str:
    size = shown_difference(metric, abs(d.difference))
    return f"{a} is {size} {_direction(d.difference)} {b}"


def _direction(difference: float) -> str:
    return "above" if difference >= 0 else "below"


def _certainty(d: Difference, p: float, tests: int, metric: str) -> str:
    """Word the interval and p value; `p` is corrected for `tests` tests."""
    low, high = (
        points(end) if is_score(metric) else f"{end:+.4g}".replace("-", "−")
        for end in (d.low, d.high)
    )
    corrected = f", {p:.3g} after Holm's correction for {tests} tests" if tests > 1 else ""
    return f"95% interval {low} to {high}, p {d.p:.3g}{corrected}"


def _verdict_words(
    d: Difference, p: float, tests: int, metric: str, noise: str, sample: str
) -> str:
    """Word a verdict.

    Args:
        d: Tested difference.
        p: Its p value after correction.
        tests: Number of tests that the correction covers.
        metric: Name of the compared metric.
        noise: Source of random variation, such as "seed noise".
        sample: Sample that the test saw, such as "these seeds".
    """
    found = verdict(d, p, metric)
    detectable = shown_difference(metric, d.detectable)
    if found == "undecided":
        return (
            f"not distinguishable; {sample} would show a true difference of "
            f"{detectable} four times in five."
        )
    if found == "weak":
        return (
            f"more than {noise} explains taken alone, "
            f"but not after correction for {tests} tests: weak evidence "
            f"(smallest detectable difference {detectable})."
        )
    also = ", also after correction" if tests > 1 else ""
    return (
        f"{found}, by more than {noise} explains{also} "
        f"(smallest detectable difference {detectable})."
    )


# Arms of a sweep


def versus(arm: str, other: str, difference: ArmDifference, comparisons: int) -> str:
    """Word the paired difference of two arms in one sentence, with its uncertainty.

    Args:
        arm: Name of the arm.
        other: Name of the arm it is compared with.
        difference: Difference arm - other.
        comparisons: Number of arms compared with the other one, which are corrected together.
    """
    interval = difference.interval
    if interval.n == 0:
        return (
            f"{arm} and {other} share no confirmation seed, so no paired difference can be given."
        )
    direction = _direction(interval.mean)
    lead = f"{arm} is {pct(abs(interval.mean))} points {direction} {other}"
    if interval.n == 1:
        return (
            f"{lead} on the one seed they share: not distinguishable from {other}, "
            "as one seed says nothing of noise."
        )
    ends = f"{points(interval.low)} to {points(interval.high)}"
    lead += f" (95% t interval {ends}, {interval.n} paired seeds): "
    if not interval.excludes_zero:
        return (
            f"{lead}not distinguishable from {other} with {interval.n} seeds; these seeds would "
            f"show a true difference of {pct(difference.detectable)} points four times in five."
        )
    if comparisons < 2:
        return f"{lead}{direction} {other} by more than seed noise explains."
    if difference.excludes_zero_corrected:
        return (
            f"{lead}{direction} {other} by more than seed noise explains, "
            f"also when corrected for {comparisons} comparisons (Holm)."
        )
    return (
        f"{lead}{direction} {other} taken alone, "
        f"but not when corrected for {comparisons} comparisons (Holm): weak evidence."
    )


def hidden_shares(arm: ArmSummary, random: ArmSummary) -> str:
    """Say in one sentence whether the random arm hides the same share as the arm compared.

    The shares are the measured ones if both arms have them, else the nominal ones tau rho.
    """
    if hides_words(arm.arm) != hides_words(random.arm):
        return "One hides words and the other blocks, so this is not a matched comparison."
    measured = math.isfinite(arm.hidden) and math.isfinite(random.hidden)
    a = arm.hidden if measured else arm.tau * arm.rho
    b = random.hidden if measured else random.tau * random.rho
    tolerance = max(0.01, 0.05 * b) if measured else 1e-6
    shares = f"{pct(a)}% and {pct(b)}%, {'measured' if measured else 'nominal'}"
    whole = "words" if hides_words(arm.arm) else "image"
    if abs(a - b) <= tolerance:
        return f"Both hide the same share of the {whole} ({shares})."
    return (
        f"They hide different shares of the {whole} ({shares}), so this is not a matched "
        "comparison."
    )


def counted_epoch(meta: dict) -> str:
    """Say at which epoch the confirmed trials of a run count."""
    select = selected(meta)
    if not (select or "").startswith("best"):
        return "the last epoch"
    return f"the epoch of the best validation {(select or '').partition('_')[2]}"


def matched_quantity(meta: dict) -> str:
    """Return the setting search.equal of a run: "epochs" or "compute"."""
    return (meta["config"].get("search") or {}).get("equal") or "epochs"


def equality(scored: list[ArmSummary], equal: str) -> str:
    """Say what is equal between the arms, and what a training step of each costs.

    Args:
        scored: Arms with a finished confirmation trial.
        equal: Setting search.equal, "epochs" or "compute".
    """
    epochs = {a.epochs for a in scored}
    if len(epochs) == 1 and equal == "epochs":
        text = f"All arms were compared at equal epochs ({epochs.pop()}), not at equal compute"
    else:
        by_arm = ", ".join(f"{a.arm} {a.epochs}" for a in scored)
        text = f"The arms were run for equal {equal}; epochs: {by_arm}"
    costs = ", ".join(f"{a.arm} {num(a.cost_ratio)}" for a in scored if math.isfinite(a.cost_ratio))
    if not costs:
        return f"{text}; the cost of a step was not measured."
    return f"{text}; computation of one training step relative to off: {costs}."


# Lines of equal hidden share


def by_line(line_points: Iterable[LinePoint]) -> list[tuple[float, list[LinePoint]]]:
    """Group points by their line: r with its points, sorted by tau as they come."""
    lines: dict[tuple[str, float], list[LinePoint]] = {}
    for point in line_points:
        lines.setdefault((point.line_arm, point.line), []).append(point)
    return [(r, members) for (_, r), members in lines.items()]


def at_epoch(line: list[LinePoint]) -> str:
    """Say at which epoch the points of a line are read."""
    epoch = line[0].epoch
    full = line[0].of_epochs
    return "at the last epoch" if epoch >= full else f"at epoch {epoch} of {full}"


def line_text(r: float, line: list[LinePoint]) -> str:
    """Describe a line by its epoch and its two ends.

    Args:
        r: Hidden share of the line.
        line: Its points, sorted by tau.
    """
    left = line[0]
    right = line[-1]
    ends = " against ".join(
        f"{pct(p.mIoU)} at τ {p.tau:.2g}{' (random)' if p.arm == 'random' else ''}"
        for p in (left, right)
    )
    seeds = min(p.seeds for p in line)
    count = f"{seeds} seed{'s' if seeds > 1 else ''}"
    count += " or more" if any(p.seeds > seeds for p in line) else " each"
    difference = points(left.mIoU - right.mIoU)
    return f"r = {r:.2g}, {at_epoch(line)}: {ends}, {difference} points ({count})."


def line_notes(line_points: list[LinePoint]) -> list[str]:
    """Warn about arms with a line whose points did not hide equal shares of the image."""
    notes = []
    for arm in dict.fromkeys(p.line_arm for p in line_points):
        unequal = []
        for r, line in by_line(p for p in line_points if p.line_arm == arm):
            hidden = [p.hidden for p in line if math.isfinite(p.hidden)]
            if hidden and max(hidden) - min(hidden) > max(0.02, 0.1 * r):
                unequal.append(f"r = {r:.2g}: {min(hidden):.2f} to {max(hidden):.2f}")
        if unequal:
            notes.append(
                f"{arm}: the measured hidden shares are not equal ({'; '.join(unequal)}), "
                "so these lines say nothing about alignment; "
                "τρ is that share only with quantile thresholds and blocks."
            )
    return notes
