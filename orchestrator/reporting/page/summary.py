"""Word a sweep's result: a verdict of a few sentences, and the sentences that stand behind it.

The verdict answers what a person who compares arms asks first: is an arm better than off, on clean
and on corrupted pictures, and does choosing by alignment beat hiding at random. It calls nothing a
difference that does not stand after the correction for the number of comparisons. The report's
page, the terminal and MLflow's description show the same one. This module reads and writes no
files.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.reporting import wording
from orchestrator.reporting.numbers import hides_words, is_alignment_arm
from orchestrator.reporting.robust_arms import MEAN, RobustScore
from orchestrator.reporting.significance import Difference
from orchestrator.reporting.summaries import ArmDifference, ArmSummary

BETTER = (
    "better and worse: by more than seed noise explains, also after correction for the number of "
    "comparisons"
)
"""What the words of a verdict mean."""

CLEAN_PICTURES = "clean"
CORRUPTED_PICTURES = "under corruption"
RANDOM = "alignment against random"
MISSING = "not confirmed yet"


@dataclass(frozen=True)
class Finding:
    """Result of the paired test of one arm against a reference."""

    arm: str
    difference: float
    low: float
    high: float
    verdict: str
    """As `wording.verdict` returns it, or "untested" where there are not two common seeds."""


def verdict(arms: Sequence[ArmSummary], robust: Sequence[RobustScore]) -> list[tuple[str, str]]:
    """Answer whether masking helps, clean and under corruption, and whether alignment does.

    Args:
        arms: Summaries of all arms of a sweep.
        robust: Their scores under corruption, if there are any.

    Returns:
        Pairs of what is compared and what was found, at most three, and the arms that are not
        confirmed yet; none where no arm is compared with off or random.
    """
    means = [score for score in robust if score.corruption == MEAN]
    answers = [
        (CLEAN_PICTURES, _answer(_clean(arms, "off"), "off")),
        (CORRUPTED_PICTURES, _answer(_corrupted(means, "off"), "off")),
    ]
    parts = [
        (where, _answer(_aligned(findings), "random"))
        for where, findings in (
            (CLEAN_PICTURES, _clean(arms, "random")),
            (CORRUPTED_PICTURES, _corrupted(means, "random")),
        )
    ]
    answers.append((RANDOM, "; ".join(f"{where}, {text}" for where, text in parts if text)))
    found = [(what, text) for what, text in answers if text]
    missing = ", ".join(a.arm for a in arms if not a.seeds)
    return [*found, (MISSING, missing)] if found and missing else found


def _clean(arms: Iterable[ArmSummary], reference: str) -> list[Finding]:
    """Return what was found between the confirmed arms and a reference on clean pictures."""
    own = {arm.arm: arm.vs_off if reference == "off" else arm.vs_random for arm in arms}
    return [
        Finding(arm, i.mean, i.low, i.high, _arm_verdict(difference))
        for arm, difference in own.items()
        if (i := difference.interval).n and arm not in ("off", reference)
    ]


def _arm_verdict(difference: ArmDifference) -> str:
    interval = difference.interval
    if interval.n < 2:
        return "untested"
    if not interval.excludes_zero:
        return "undecided"
    if not difference.excludes_zero_corrected:
        return "weak"
    return "better" if interval.mean > 0 else "worse"


def _corrupted(means: Iterable[RobustScore], reference: str) -> list[Finding]:
    """Return what was found between the arms and a reference in the mean over corruptions."""
    return [
        Finding(score.arm, d.difference, d.low, d.high, _verdict(d, score.p_corrected[reference]))
        for score in means
        if (d := score.differences.get(reference)) and math.isfinite(d.difference)
    ]


def _verdict(d: Difference, p: float) -> str:
    return "untested" if math.isnan(d.p) else wording.verdict(d, p)


def _aligned(findings: list[Finding]) -> list[Finding]:
    """Return the findings of the alignment arms that hide blocks, as the arm random does."""
    return [f for f in findings if is_alignment_arm(f.arm) and not hides_words(f.arm)]


def _answer(findings: list[Finding], reference: str) -> str:
    """Word what was found against a reference, largest differences first; "" for no finding."""
    found: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: -abs(f.difference)):
        found.setdefault(finding.verdict, []).append(finding)
    if "better" in found or "worse" in found:
        better = _listed(found["better"], f"better than {reference}") if "better" in found else ""
        texts = [better or f"no arm is better than {reference}"]
        texts += [_listed(found["worse"], "worse")] if "worse" in found else []
    elif "weak" in found:
        texts = [f"no arm can be told from {reference} after correction"]
    elif undecided := found.get("undecided"):
        first = undecided[0]
        ends = f"95% interval {wording.points(first.low)} to {wording.points(first.high)}"
        if len(undecided) == 1:
            texts = [f"{first.arm} cannot be told from {reference} ({_points(first)}, {ends})"]
        else:
            largest = f"largest difference: {first.arm}, {_points(first)}, {ends}"
            texts = [f"no arm can be told from {reference} ({largest})"]
    else:
        return "one common seed says nothing of noise" if findings else ""
    if "weak" in found:
        texts.append(f"only before correction: {_each(found['weak'])}")
    return "; ".join(texts)


def _listed(findings: list[Finding], words: str) -> str:
    """Return that arms are better or worse, each with its difference."""
    if len(findings) == 1:
        return f"{findings[0].arm} is {words} ({_points(findings[0])})"
    return f"{_each(findings)} are {words}"


def _each(findings: list[Finding]) -> str:
    """Return arms with their differences; the first one says the unit."""
    first, *others = findings
    texts = [f"{first.arm} ({_points(first)})"]
    texts += [f"{f.arm} ({wording.points(f.difference)})" for f in others]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _points(finding: Finding) -> str:
    return f"{wording.points(finding.difference)} points"


def sentences(arms: list[ArmSummary], meta: dict) -> list[str]:
    """Return a sweep's result in sentences of plain text, the most important first.

    Args:
        arms: Summaries of all arms.
        meta: Content of sweep.json, with the run's config.
    """
    scored = [a for a in arms if a.seeds]
    missing = [a.arm for a in arms if not a.seeds]
    if not scored:
        return [
            "No arm has a finished confirmation trial, so there is no comparison of arms yet.",
            "The search scores below are the best of several settings on one validation set: "
            "not a ranking.",
        ]
    best = max(scored, key=lambda a: a.mIoU.mean)
    lines = [_leading_arm(best, scored), *wording.partial_validation(meta)]
    lines += _against_references(best, scored)
    if len(scored) > 1:
        lines.append(
            "The leading arm was picked on these same seeds, "
            "so its lead is on average a little too large."
        )
        lines.append(wording.equality(scored, wording.matched_quantity(meta)))
    if missing:
        lines.append(f"Not confirmed yet: {', '.join(missing)}.")
    metrics = [name for name, _ in meta.get("objectives") or ()]
    if len(metrics) > 1:
        lines.append(
            f"The search chose each arm's best compromise of {' and '.join(metrics)}; this page "
            "ranks by val/mIoU."
        )
    elif (metric := meta.get("metric") or "val/mIoU") != "val/mIoU":
        lines.append(f"The search chose settings by {metric}; this page ranks by val/mIoU.")
    return lines


def _leading_arm(best: ArmSummary, scored: list[ArmSummary]) -> str:
    """Name the arm with the highest mean, and its score."""
    interval = "one seed, no interval"
    if best.seeds > 1:
        ends = f"{wording.pct(best.mIoU.low)} to {wording.pct(best.mIoU.high)}"
        interval = f"95% t interval {ends}, {best.seeds} seeds"
    score = f"{wording.pct(best.mIoU.mean)}% ({interval})"
    if len(scored) == 1:
        return (
            f"Only {best.arm} has been confirmed: validation mIoU {score}. "
            "Nothing to compare it with."
        )
    setting = wording.setting_text(best.tau, best.rho, best.other)
    return f"In confirmation {best.arm} ({setting}) has the highest mean validation mIoU, {score}."


def _against_references(best: ArmSummary, scored: list[ArmSummary]) -> list[str]:
    """Compare the leading arm, and the best alignment arm, with off and with random."""
    by_name = {a.arm: a for a in scored}
    off = by_name.get("off")
    random = by_name.get("random")
    others = [a for a in scored if a.arm != "off"]
    lines = []
    if best.arm == "off" and others:
        lines.append("No arm that masks has a higher mean than off.")
    aligned = max(
        (a for a in scored if is_alignment_arm(a.arm)), key=lambda a: a.mIoU.mean, default=best
    )
    for arm in [best] if aligned is best else [best, aligned]:
        if off and arm.arm != "off":
            lines.append(wording.versus(arm.arm, "off", arm.vs_off, len(others)))
        if random and arm.arm not in ("off", "random"):
            text = wording.versus(arm.arm, "random", arm.vs_random, len(others) - 1)
            lines.append(f"{text} {wording.hidden_shares(arm, random)}")
    return lines
