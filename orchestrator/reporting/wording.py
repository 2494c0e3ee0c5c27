"""Sentences of a report: differences, verdicts, notes."""

import math

from orchestrator.reporting.numbers import is_alignment_arm, number
from orchestrator.reporting.significance import LEVEL, Difference


def _sure(d: Difference, p: float, tests: int) -> str:
    corrected = f", {p:.3g} after Holm's correction for {tests} tests" if tests > 1 else ""
    return f"95% interval {points(d.low)} to {points(d.high)}, p {d.p:.3g}{corrected}"


def verdict(d: Difference, p: float) -> str:
    """better or worse: also after correction; weak: only taken alone; undecided."""
    if math.isnan(d.p) or d.p >= LEVEL:
        return "undecided"
    return ("better" if d.difference > 0 else "worse") if p < LEVEL else "weak"


def _verdict_words(d: Difference, p: float, tests: int, noise: str, what: str) -> str:
    found = verdict(d, p)
    if found == "undecided":
        return f"not distinguishable; {what} would show a true difference of {pct(d.detectable)} points four times in five."
    also = ", also after correction" if tests > 1 else ""
    if found == "weak":
        return f"more than {noise} explains taken alone, but not after correction for {tests} tests: weak evidence."
    return f"{found}, by more than {noise} explains{also} (smallest detectable difference {pct(d.detectable)} points)."


def num(value: float, digits: int = 2, scale: float = 1.0, sign: bool = False) -> str:
    """A number with a true minus, or a dash where there is none."""
    value = number(value)
    if not math.isfinite(value):
        return "–"
    return f"{scale * value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def brief(value) -> str:
    """A setting as a person reads it: four digits of a number; trials.csv has all."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pct(share: float, digits: int = 2) -> str:
    return num(share, digits, 100)


def points(share: float) -> str:
    return num(share, 2, 100, sign=True)


def setting_text(row: dict) -> str:
    extra = f"; {row['other']}" if row.get("other") else ""
    return f"τ {num(row['tau'])}, ρ {num(row['rho'])}{extra}"


def versus(row: dict, other: dict, key: str, comparisons: int) -> str:
    """One sentence on the paired difference of two arms: how large, how sure, never more than the seeds carry."""
    n, mean, name = row[f"{key}_n"], row[f"{key}_mean"], other["arm"]
    if n == 0:
        return f"{row['arm']} and {name} share no confirmation seed, so no paired difference can be given."
    lead = f"{row['arm']} is {pct(abs(mean))} points {'above' if mean >= 0 else 'below'} {name}"
    if n == 1:
        return f"{lead} on the one seed they share: not distinguishable from {name}, as one seed says nothing of noise."
    lead += f" (95% t interval {points(row[f'{key}_low'])} to {points(row[f'{key}_high'])}, {n} paired seeds): "
    if not row[f"{key}_excludes_zero"]:
        return lead + (
            f"not distinguishable from {name} with {n} seeds; these seeds would show a true difference of "
            f"{pct(row[f'{key}_detectable'])} points four times in five."
        )
    verdict = "above" if mean > 0 else "below"
    if comparisons < 2:
        return f"{lead}{verdict} {name} by more than seed noise explains."
    if row[f"{key}_excludes_zero_corrected"]:
        return f"{lead}{verdict} {name} by more than seed noise explains, also when corrected for {comparisons} comparisons (Bonferroni)."
    return f"{lead}{verdict} {name} taken alone, but not when corrected for {comparisons} comparisons (Bonferroni): weak evidence."


def matched(row: dict, random: dict) -> str:
    """Whether the random arm hides as much as the arm it is held against, as a sentence."""
    measured = math.isfinite(row["hidden"]) and math.isfinite(random["hidden"])
    a, b = (
        (row["hidden"], random["hidden"])
        if measured
        else (row["tau"] * row["rho"], random["tau"] * random["rho"])
    )
    same = abs(a - b) <= (max(0.01, 0.05 * b) if measured else 1e-6)
    shares = f"{num(a)} and {num(b)}, {'measured' if measured else 'nominal'}"
    if same:
        return f"Both hide the same share of the image ({shares})."
    return (
        f"They hide different shares of the image ({shares}), so this is not a matched comparison."
    )


def summary(arms: list[dict], meta: dict) -> list[str]:
    """The result in sentences (plain text), the most important first."""
    scored = [a for a in arms if a["seeds"]]
    missing = [a["arm"] for a in arms if not a["seeds"]]
    if not scored:
        return [
            "No arm has a finished confirmation trial, so there is no comparison of arms yet.",
            "The search scores below are the best of several settings on one validation set: not a ranking.",
        ]
    by_name = {a["arm"]: a for a in scored}
    best = max(scored, key=lambda a: a["mIoU"])
    score = f"{pct(best['mIoU'])}% (one seed, no interval)"
    if best["seeds"] > 1:
        score = f"{pct(best['mIoU'])}% (95% t interval {pct(best['mIoU_low'])} to {pct(best['mIoU_high'])}, {best['seeds']} seeds)"
    lines = [
        f"In confirmation {best['arm']} ({setting_text(best)}) has the highest mean validation mIoU, {score}."
    ]
    if len(scored) == 1:
        lines[0] = (
            f"Only {best['arm']} has been confirmed: validation mIoU {score}. Nothing to compare it with."
        )
    aligned = max(
        (a for a in scored if is_alignment_arm(a["arm"])), key=lambda a: a["mIoU"], default=None
    )
    if best["arm"] == "off" and len(scored) > 1:
        lines.append("No arm that masks has a higher mean than off.")
    for arm in [best] + ([aligned] if aligned and aligned is not best else []):
        if arm["arm"] != "off" and "off" in by_name:
            lines.append(versus(arm, by_name["off"], "vs_off", len(scored) - 1))
        if arm["arm"] not in ("off", "random") and "random" in by_name:
            random = by_name["random"]
            lines.append(
                f"{versus(arm, random, 'vs_random', len(scored) - 1)} {matched(arm, random)}"
            )
    if len(scored) > 1:
        lines.append(
            "The leading arm was picked on these same seeds, so its lead is on average a little too large."
        )
        lines.append(
            equality(best, scored, (meta["config"].get("search") or {}).get("equal") or "epochs")
        )
    if missing:
        lines.append(f"Not confirmed yet: {', '.join(missing)}.")
    metric = meta.get("metric") or "val/mIoU"
    if metric != "val/mIoU":
        lines.append(f"The search chose settings by {metric}; this page ranks by val/mIoU.")
    return lines


def equality(best: dict, scored: list[dict], equal: str) -> str:
    """Which equality holds between the arms, with the cost of a step."""
    epochs = {a["epochs"] for a in scored}
    if len(epochs) == 1 and equal == "epochs":
        text = f"All arms were compared at equal epochs ({epochs.pop()}), not at equal compute"
    else:
        text = f"The arms were run for equal {equal}; epochs: " + ", ".join(
            f"{a['arm']} {a['epochs']}" for a in scored
        )
    costs = ", ".join(
        f"{a['arm']} {num(a['cost_ratio'])}" for a in scored if math.isfinite(a["cost_ratio"])
    )
    return f"{text}; " + (
        f"computation of one training step relative to off: {costs}."
        if costs
        else "the cost of a step was not measured."
    )


def by_line(line: list[dict]) -> list[tuple[str, float, list[dict]]]:
    """(alignment arm, r, its points by tau) of each line of `line_rows`."""
    names = dict.fromkeys((row["line_arm"], row["line"]) for row in line)
    return [
        (*name, [row for row in line if (row["line_arm"], row["line"]) == name]) for name in names
    ]


def at_epoch(spots: list[dict]) -> str:
    """At which epoch the points of a line (or of several, read at the same epoch) are read, in words."""
    epoch, full = spots[0]["epoch"], spots[0]["of_epochs"]
    return "at the last epoch" if epoch >= full else f"at epoch {epoch} of {full}"


def line_text(r: float, spots: list[dict]) -> str:
    """The epoch and the two ends of a line in words."""
    left, right, seeds = spots[0], spots[-1], min(p["seeds"] for p in spots)
    ends = (
        f"{pct(p['mIoU'])} at τ {p['tau']:.2g}{' (random)' * (p['arm'] == 'random')}"
        for p in (left, right)
    )
    return (
        f"r = {r:.2g}, {at_epoch(spots)}: {' against '.join(ends)}, {points(left['mIoU'] - right['mIoU'])} points "
        f"({seeds} seed{'s' if seeds > 1 else ''}{' or more' if any(p['seeds'] > seeds for p in spots) else ' each'})."
    )


def line_notes(line: list[dict]) -> list[str]:
    """Where a line is not what it should be: its points hid different shares."""
    notes = []
    for arm in dict.fromkeys(row["line_arm"] for row in line):
        unequal = []
        for _, r, spots in by_line([row for row in line if row["line_arm"] == arm]):
            hidden = [p["hidden"] for p in spots if math.isfinite(p["hidden"])]
            if hidden and max(hidden) - min(hidden) > max(0.02, 0.1 * r):
                unequal.append(f"r = {r:.2g}: {min(hidden):.2f} to {max(hidden):.2f}")
        if unequal:
            notes.append(
                f"{arm}: the measured hidden shares are not equal ({'; '.join(unequal)}), so these lines "
                "say nothing about alignment; τρ is that share only with quantile thresholds and blocks."
            )
    return notes
