"""The numbers of a report and what may be said of them: intervals over seeds, tables of a ledger, sentences. No files.

A trial is one ledger line (a dict); every score is a share in [0, 1]. What is missing is NaN, never 0.
"""

import math
from collections.abc import Iterable

from orchestrator.reporting.numbers import (
    NAN,
    _difference,
    arms_of,
    best_so_far,
    by_seed,
    epochs_of,
    is_alignment_arm,
    last,
    number,
    other_params,
)
from orchestrator.reporting.significance import mean_interval
from orchestrator.reporting.wording import brief


def arm_rows(trials: list[dict], sweep: dict) -> list[dict]:
    """One row an arm, from confirmation trials that are done (their last epoch); seeds = 0 and NaN scores without one.

    vs_off_* and vs_random_* are paired by seed; <..>_corrected uses level 1 - 0.05 / (confirmed arms - 1).
    """
    arms = arms_of(trials, sweep)
    confirm = {
        arm: [t for t in trials if t["arm"] == arm and t["stage"] == "confirm"] for arm in arms
    }
    done = {arm: [t for t in ts if t["state"] == "done"] for arm, ts in confirm.items()}
    scores = {arm: by_seed(ts, "val/mIoU") for arm, ts in done.items()}
    comparisons = sum(map(bool, scores.values())) - 1
    rows = []
    for arm in arms:
        miou = mean_interval(scores[arm].values())
        settings = sorted(
            {
                (number(t.get("tau")), number(t.get("rho")), *sorted(other_params(t).items()))
                for t in confirm[arm]
            },
            key=str,
        )
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
        for name, key in (
            ("oIoU", "val/oIoU"),
            ("P@0.5", "val/P0.5"),
            ("P@0.7", "val/P0.7"),
            ("P@0.9", "val/P0.9"),
        ):
            row[name] = mean_interval(by_seed(done[arm], key).values()).mean
        for name, other in (("vs_off", "off"), ("vs_random", "random")):
            _difference(
                row, name, scores[arm] if arm != other else {}, scores.get(other, {}), comparisons
            )
        row["settings_tried"] = (
            tried
            if tried is not None
            else len(
                {str(t.get("params")) for t in trials if t["arm"] == arm and t["stage"] == "search"}
            )
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
        cells.setdefault(
            (t["arm"], round(number(t.get("tau")), 6), round(number(t.get("rho")), 6)), []
        ).append(t)
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
    common = min(
        (epochs_of(t) for members in cells.values() for t in members if t["state"] != "failed"),
        default=0,
    )
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
                "mIoU_common": mean_interval(
                    number(e.get("val/mIoU"))
                    for t in kept
                    for e in t.get("history") or []
                    if e["epoch"] == common
                ).mean,
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
    seen = {
        setting: epochs
        for setting, members in by_setting(trials).items()
        if (epochs := by_epoch(members))
    }
    off = by_epoch([t for t in trials if t["arm"] == "off" and t["stage"] == "search"])
    rows = []
    for arm in dict.fromkeys(name for name, *_ in seen if is_alignment_arm(name)):
        left = sorted(
            (round(tau * rho, 6), name, tau, rho)
            for name, tau, rho in seen
            if name in (arm, "random")
        )
        while left:
            r = left[0][0]
            line = [setting for product, *setting in left if product - r <= tolerance]
            left = left[len(line) :]
            shared = set.intersection(*(set(seen[tuple(setting)]) for setting in line))
            if r <= 0 or len(line) < 2 or not shared or all(name != arm for name, *_ in line):
                continue
            epoch = max(shared)
            reference = mean_interval(e["val/mIoU"] for e in off.get(epoch, ())).mean
            for name, tau, rho in sorted(
                line, key=lambda setting: (setting[1], setting[0] == "random")
            ):
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
    keys = sorted(
        {k for t in trials for e in t.get("history") or [] for k in e if k.startswith(prefixes)}
    )
    names = ("trial", "arm", "stage", "seed")
    return [
        {k: t.get(k, "") for k in names} | {"epoch": e.get("epoch")} | {k: e.get(k) for k in keys}
        for t in trials
        for e in t.get("history") or []
    ]


def trial_rows(trials: list[dict]) -> list[dict]:
    """One row a trial: the ledger line without its history, with its last and best scores."""
    names = (
        "trial",
        "arm",
        "stage",
        "seed",
        "tau",
        "rho",
        "state",
        "stopped_by",
        "error",
        "seconds",
    )
    params = sorted({k for t in trials for k in other_params(t)})
    return [
        {k: t.get(k, "") for k in names}
        | {k: other_params(t).get(k, "") for k in params}
        | {
            "epochs": epochs_of(t),
            "mIoU_last": last(t, "val/mIoU"),
            "mIoU_best": best_so_far(t),
            "oIoU_last": last(t, "val/oIoU"),
        }
        for t in trials
    ]
