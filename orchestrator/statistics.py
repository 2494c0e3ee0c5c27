"""The numbers of a report and what may be said of them: intervals over seeds, tables of a ledger, sentences. No files.

A trial is one ledger line (a dict); every score is a share in [0, 1]. What is missing is NaN, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from orchestrator.differences import mean_interval, paired_difference, pooled_sd, smallest_detectable_difference

__all__ = ["mean_interval", "paired_difference", "pooled_sd", "smallest_detectable_difference"]

NAN = math.nan


def number(value: object) -> float:
    """A float, NaN for None or anything that is not a number."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else NAN


def last(trial: dict, key: str) -> float:
    """The value of `key` in the trial's last epoch; NaN where there is none."""
    history = trial.get("history") or []
    return number(history[-1].get(key)) if history else NAN


def best_so_far(trial: dict) -> float:
    """val/mIoU_best of the last epoch, else the largest val/mIoU seen; NaN where there is none."""
    best = last(trial, "val/mIoU_best")
    seen = [v for v in (number(e.get("val/mIoU")) for e in trial.get("history") or []) if math.isfinite(v)]
    return best if math.isfinite(best) else max(seen, default=NAN)


def epochs_of(trial: dict) -> int:
    """How many epochs the trial finished."""
    return int(trial.get("epochs") or len(trial.get("history") or []))


def other_params(trial: dict) -> dict:
    """The varied leaves besides tau and rho."""
    return {k: v for k, v in (trial.get("params") or {}).items() if k not in ("aml.tau", "aml.rho")}


def by_seed(trials: Iterable[dict], key: str) -> dict[int, float]:
    """seed -> last-epoch value, finite ones only; trials that share a seed are averaged."""
    seeds: dict[int, list[float]] = {}
    for trial in trials:
        if math.isfinite(value := last(trial, key)):
            seeds.setdefault(int(trial.get("seed") or 0), []).append(value)
    return {seed: math.fsum(v) / len(v) for seed, v in seeds.items()}


def arms_of(trials: list[dict], sweep: dict) -> list[str]:
    """Arm names: those the sweep lists, in its order, then those only the ledger knows."""
    return list(dict.fromkeys([*(sweep.get("settings_tried") or {}), *(t["arm"] for t in trials)]))


def is_alignment_arm(arm: str) -> bool:
    return arm.split("/")[0].split("@")[0] == "aml"


def _difference(row: dict, name: str, a: dict, b: dict, comparisons: int) -> None:
    """Write the paired difference a - b into the row as <name>_*, with the verdict at level 1 - 0.05 / comparisons."""
    diff = paired_difference(a, b)
    corrected = paired_difference(a, b, 1 - 0.05 / max(comparisons, 1))
    row.update(
        {
            f"{name}_n": diff.n,
            f"{name}_mean": diff.mean,
            f"{name}_low": diff.low,
            f"{name}_high": diff.high,
            f"{name}_excludes_zero": diff.excludes_zero,
            f"{name}_excludes_zero_corrected": corrected.excludes_zero,
            f"{name}_detectable": smallest_detectable_difference(diff.sd, diff.n),
        }
    )


def arm_rows(trials: list[dict], sweep: dict) -> list[dict]:
    """One row an arm, from confirmation trials that are done (their last epoch); seeds = 0 and NaN scores without one.

    vs_off_* and vs_random_* are paired by seed; <..>_corrected uses level 1 - 0.05 / (confirmed arms - 1).
    """
    arms = arms_of(trials, sweep)
    confirm = {arm: [t for t in trials if t["arm"] == arm and t["stage"] == "confirm"] for arm in arms}
    done = {arm: [t for t in ts if t["state"] == "done"] for arm, ts in confirm.items()}
    scores = {arm: by_seed(ts, "val/mIoU") for arm, ts in done.items()}
    comparisons = sum(map(bool, scores.values())) - 1
    rows = []
    for arm in arms:
        miou = mean_interval(scores[arm].values())
        settings = sorted({(number(t.get("tau")), number(t.get("rho")), *sorted(other_params(t).items())) for t in confirm[arm]}, key=str)
        tau, rho, *other = settings[0] if settings else (NAN, NAN)
        tried = (sweep.get("settings_tried") or {}).get(arm)
        row = {
            "arm": arm,
            "tau": tau,
            "rho": rho,
            "settings_confirmed": len(settings),
            "other": "; ".join(f"{k}={brief(v)}" for k, v in other),
            "seeds": miou.n,
            "not_finished": len(confirm[arm]) - len(done[arm]),
            "epochs": max(map(epochs_of, done[arm]), default=0),
            "mIoU": miou.mean,
            "mIoU_low": miou.low,
            "mIoU_high": miou.high,
            "mIoU_sd": miou.sd,
        }
        for name, key in (("oIoU", "val/oIoU"), ("P@0.5", "val/P0.5"), ("P@0.7", "val/P0.7"), ("P@0.9", "val/P0.9")):
            row[name] = mean_interval(by_seed(done[arm], key).values()).mean
        for name, other in (("vs_off", "off"), ("vs_random", "random")):
            _difference(row, name, scores[arm] if arm != other else {}, scores.get(other, {}), comparisons)
        row["settings_tried"] = (
            tried if tried is not None else len({str(t.get("params")) for t in trials if t["arm"] == arm and t["stage"] == "search"})
        )
        hidden = mean_interval(last(t, "aml/hidden") for t in done[arm]).mean
        row["hidden"] = 0.0 if arm == "off" and done[arm] and math.isnan(hidden) else hidden
        row["cost_ratio"] = number(((sweep.get("cost") or {}).get(arm) or {}).get("ratio"))
        rows.append(row)
    return rows


def by_setting(trials: Iterable[dict]) -> dict[tuple[str, float, float], list[dict]]:
    """(arm, tau, rho) -> its search trials, failed ones too; arms in the order of the ledger, settings by tau, then rho."""
    cells: dict[tuple, list[dict]] = {}
    for t in (t for t in trials if t["stage"] == "search"):
        cells.setdefault((t["arm"], round(number(t.get("tau")), 6), round(number(t.get("rho")), 6)), []).append(t)
    order = list(dict.fromkeys(t["arm"] for t in trials))
    return dict(sorted(cells.items(), key=lambda c: (order.index(c[0][0]), *c[0][1:])))


def furthest(trials: list[dict]) -> list[dict]:
    """The trials that finished the most epochs, so that a mean over them is of trials of one length."""
    reached = max(map(epochs_of, trials), default=0)
    return [t for t in trials if epochs_of(t) == reached]


def map_rows(trials: list[dict]) -> list[dict]:
    """One row for each (arm, tau, rho) of the search: over its trials that got furthest, the mean of the best val/mIoU.

    epochs_max is the epoch those reached and `furthest` their number; early is 1 where the scheduler stopped them all.
    seeds, mIoU_best and hidden are theirs alone; trials, stopped and failed count all (trials: but the failed).
    mIoU_common is the mean val/mIoU of all at common_epoch, the last epoch that all search trials reached.
    """
    cells = by_setting(trials)
    common = min((epochs_of(t) for members in cells.values() for t in members if t["state"] != "failed"), default=0)
    rows = []
    for (arm, tau, rho), members in cells.items():
        kept = [t for t in members if t["state"] != "failed"]
        first = furthest(kept)
        best = mean_interval(map(best_so_far, first))
        rows.append(
            {
                "arm": arm,
                "tau": tau,
                "rho": rho,
                "product": round(tau * rho, 6),
                "trials": len(kept),
                "furthest": len(first),
                "seeds": len({t.get("seed") for t in first}),
                "stopped": sum(t["state"] == "stopped" for t in kept),
                "failed": len(members) - len(kept),
                "epochs_min": min(map(epochs_of, kept), default=0),
                "epochs_max": max(map(epochs_of, kept), default=0),
                "early": int(bool(first) and all(t["state"] == "stopped" for t in first)),
                "mIoU_best": best.mean,
                "mIoU_best_sd": best.sd,
                "common_epoch": common,
                "mIoU_common": mean_interval(number(e.get("val/mIoU")) for t in kept for e in t.get("history") or [] if e["epoch"] == common).mean,
                "hidden": mean_interval(last(t, "aml/hidden") for t in first).mean,
            }
        )
    return rows


def by_epoch(trials: list[dict]) -> dict[int, list[dict]]:
    """epoch -> the history entries at that epoch of the trials that have a val/mIoU there, each with its trial's seed; failed trials left out."""
    seen: dict[int, list[dict]] = {}
    for t in (t for t in trials if t["state"] != "failed"):
        for e in t.get("history") or []:
            if math.isfinite(number(e.get("val/mIoU"))):
                seen.setdefault(int(e["epoch"]), []).append({**e, "seed": t.get("seed")})
    return seen


def line_rows(trials: list[dict], of_epochs: int, tolerance: float = 1e-6) -> list[dict]:
    """Lines of equal hidden share: the search's points of each alignment arm and r = tau rho, where there are two or more.

    Every point is read at `epoch`, the last one that all points of its line reached: mIoU is the mean val/mIoU at that
    epoch, not the best, over the point's trials that got there (failed ones left out), hidden their mean aml/hidden, off
    the same mean of arm off. The random arm at rho = r is the end tau = 1 of every line at r. `line` is r, `line_arm` the
    alignment arm, `arm` the point's own, `of_epochs` a full run's length. Points of a line are sorted by tau.
    """
    seen = {setting: epochs for setting, members in by_setting(trials).items() if (epochs := by_epoch(members))}
    off = by_epoch([t for t in trials if t["arm"] == "off" and t["stage"] == "search"])
    rows = []
    for arm in dict.fromkeys(name for name, *_ in seen if is_alignment_arm(name)):
        left = sorted((round(tau * rho, 6), name, tau, rho) for name, tau, rho in seen if name in (arm, "random"))
        while left:
            r = left[0][0]
            line = [setting for product, *setting in left if product - r <= tolerance]
            left = left[len(line) :]
            shared = set.intersection(*(set(seen[tuple(setting)]) for setting in line))
            if r <= 0 or len(line) < 2 or not shared or all(name != arm for name, *_ in line):
                continue
            epoch = max(shared)
            reference = mean_interval(e["val/mIoU"] for e in off.get(epoch, ())).mean
            for name, tau, rho in sorted(line, key=lambda setting: (setting[1], setting[0] == "random")):
                read = seen[name, tau, rho][epoch]
                score = mean_interval(e["val/mIoU"] for e in read)
                rows.append(
                    {
                        "line_arm": arm,
                        "line": r,
                        "arm": name,
                        "tau": tau,
                        "rho": rho,
                        "product": round(tau * rho, 6),
                        "epoch": epoch,
                        "of_epochs": of_epochs,
                        "trials": len(read),
                        "seeds": len({e["seed"] for e in read}),
                        "mIoU": score.mean,
                        "mIoU_sd": score.sd,
                        "hidden": mean_interval(number(e.get("aml/hidden")) for e in read).mean,
                        "off": reference,
                    }
                )
    return rows


def curve_rows(trials: list[dict], *prefixes: str) -> list[dict]:
    """One row an epoch of every trial, with the keys that start with one of the prefixes."""
    keys = sorted({k for t in trials for e in t.get("history") or [] for k in e if k.startswith(prefixes)})
    names = ("trial", "arm", "stage", "seed")
    return [
        {k: t.get(k, "") for k in names} | {"epoch": e.get("epoch")} | {k: e.get(k) for k in keys} for t in trials for e in t.get("history") or []
    ]


def trial_rows(trials: list[dict]) -> list[dict]:
    """One row a trial: the ledger line without its history, with its last and best scores."""
    names = ("trial", "arm", "stage", "seed", "tau", "rho", "state", "stopped_by", "error", "seconds")
    params = sorted({k for t in trials for k in other_params(t)})
    return [
        {k: t.get(k, "") for k in names}
        | {k: other_params(t).get(k, "") for k in params}
        | {"epochs": epochs_of(t), "mIoU_last": last(t, "val/mIoU"), "mIoU_best": best_so_far(t), "oIoU_last": last(t, "val/oIoU")}
        for t in trials
    ]


def mean_curve(trials: list[dict], key: str) -> list[tuple[int, float, float, float]]:
    """(epoch, mean, smallest, largest) over the trials, at the epochs that all of them that know the key have."""
    epochs: dict[int, list[float]] = {}
    for row in (row for t in trials for row in t.get("history") or []):
        if math.isfinite(value := number(row.get(key))):
            epochs.setdefault(int(row["epoch"]), []).append(value)
    full = max(map(len, epochs.values()), default=0)
    return [(k, math.fsum(v) / len(v), min(v), max(v)) for k, v in sorted(epochs.items()) if len(v) == full]


# ---- what may be said ----


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
    a, b = (row["hidden"], random["hidden"]) if measured else (row["tau"] * row["rho"], random["tau"] * random["rho"])
    same = abs(a - b) <= (max(0.01, 0.05 * b) if measured else 1e-6)
    shares = f"{num(a)} and {num(b)}, {'measured' if measured else 'nominal'}"
    if same:
        return f"Both hide the same share of the image ({shares})."
    return f"They hide different shares of the image ({shares}), so this is not a matched comparison."


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
    lines = [f"In confirmation {best['arm']} ({setting_text(best)}) has the highest mean validation mIoU, {score}."]
    if len(scored) == 1:
        lines[0] = f"Only {best['arm']} has been confirmed: validation mIoU {score}. Nothing to compare it with."
    aligned = max((a for a in scored if is_alignment_arm(a["arm"])), key=lambda a: a["mIoU"], default=None)
    if best["arm"] == "off" and len(scored) > 1:
        lines.append("No arm that masks has a higher mean than off.")
    for arm in [best] + ([aligned] if aligned and aligned is not best else []):
        if arm["arm"] != "off" and "off" in by_name:
            lines.append(versus(arm, by_name["off"], "vs_off", len(scored) - 1))
        if arm["arm"] not in ("off", "random") and "random" in by_name:
            random = by_name["random"]
            lines.append(f"{versus(arm, random, 'vs_random', len(scored) - 1)} {matched(arm, random)}")
    if len(scored) > 1:
        lines.append("The leading arm was picked on these same seeds, so its lead is on average a little too large.")
        lines.append(equality(best, scored, (meta["config"].get("search") or {}).get("equal") or "epochs"))
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
        text = f"The arms were run for equal {equal}; epochs: " + ", ".join(f"{a['arm']} {a['epochs']}" for a in scored)
    costs = ", ".join(f"{a['arm']} {num(a['cost_ratio'])}" for a in scored if math.isfinite(a["cost_ratio"]))
    return f"{text}; " + (f"computation of one training step relative to off: {costs}." if costs else "the cost of a step was not measured.")


def by_line(line: list[dict]) -> list[tuple[str, float, list[dict]]]:
    """(alignment arm, r, its points by tau) of each line of `line_rows`."""
    names = dict.fromkeys((row["line_arm"], row["line"]) for row in line)
    return [(*name, [row for row in line if (row["line_arm"], row["line"]) == name]) for name in names]


def at_epoch(spots: list[dict]) -> str:
    """At which epoch the points of a line (or of several, read at the same epoch) are read, in words."""
    epoch, full = spots[0]["epoch"], spots[0]["of_epochs"]
    return "at the last epoch" if epoch >= full else f"at epoch {epoch} of {full}"


def line_text(r: float, spots: list[dict]) -> str:
    """The epoch and the two ends of a line in words."""
    left, right, seeds = spots[0], spots[-1], min(p["seeds"] for p in spots)
    ends = (f"{pct(p['mIoU'])} at τ {p['tau']:.2g}{' (random)' * (p['arm'] == 'random')}" for p in (left, right))
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
