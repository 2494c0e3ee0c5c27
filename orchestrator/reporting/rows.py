"""Summarise a ledger: arms, cells of the map, points of the lines, and rows of CSV tables.

A trial is one ledger line (a dict); every score is a share in [0, 1]. A value that is missing is
NaN, never 0. This module reads and writes no files.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.reporting.numbers import (
    NAN,
    Trial,
    arms_of,
    best_so_far,
    by_seed,
    counted,
    epochs_of,
    is_alignment_arm,
    last,
    number,
    other_params,
    selected,
)
from orchestrator.reporting.significance import (
    LEVEL,
    holm,
    mean_interval,
    paired_difference,
    seed_difference,
    smallest_detectable_difference,
)
from orchestrator.reporting.summaries import ArmDifference, ArmSummary, LinePoint, MapCell
from orchestrator.reporting.wording import brief

PRECISIONS = {"P@0.5": "val/P0.5", "P@0.7": "val/P0.7", "P@0.9": "val/P0.9"}
"""Column of arms.csv and metric of the history."""

Setting = tuple[str, float, float]
"""Arm, tau and rho."""


# Arms


def arm_summaries(trials: list[Trial], sweep: dict) -> list[ArmSummary]:
    """Summarise each arm over its confirmation trials that are done, at the epoch that counts.

    An arm without such a trial has `seeds` 0 and NaN scores. The differences to off and to random
    are paired by seed, and those to each of the two corrected for their number (Holm).

    Args:
        trials: Trials of the ledger.
        sweep: Content of sweep.json.
    """
    arms = arms_of(trials, sweep)
    confirmed = {
        arm: [t for t in trials if t["arm"] == arm and t["stage"] == "confirm"] for arm in arms
    }
    select = selected(sweep)
    done = {
        arm: counted((t for t in ts if t["state"] == "done"), select)
        for arm, ts in confirmed.items()
    }
    scores = {arm: by_seed(ts, "val/mIoU") for arm, ts in done.items()}
    vs_off, vs_random = (arm_differences(scores, reference) for reference in ("off", "random"))

    def mean(arm: str, metric: str) -> float:
        return mean_interval(by_seed(done[arm], metric).values()).mean

    summaries = []
    for arm in arms:
        settings = _settings(confirmed[arm])
        tau, rho, other = settings[0] if settings else (NAN, NAN, [])
        summaries.append(
            ArmSummary(
                arm=arm,
                tau=tau,
                rho=rho,
                settings_confirmed=len(settings),
                other="; ".join(f"{k}={brief(v)}" for k, v in other),
                not_finished=len(confirmed[arm]) - len(done[arm]),
                epochs=max(map(epochs_of, done[arm]), default=0),
                mIoU=mean_interval(scores[arm].values()),
                oIoU=mean(arm, "val/oIoU"),
                precision={name: mean(arm, metric) for name, metric in PRECISIONS.items()},
                vs_off=vs_off[arm],
                vs_random=vs_random[arm],
                settings_tried=_settings_tried(arm, trials, sweep),
                hidden=_hidden_share(arm, done[arm]),
                cost_ratio=number(((sweep.get("cost") or {}).get(arm) or {}).get("ratio")),
            )
        )
    return summaries


def arm_differences(
    scores: Mapping[str, Mapping[int, float]], reference: str
) -> dict[str, ArmDifference]:
    """Return each arm's difference to one of them, paired by seed.

    The p values of the arms that have two seeds in common with it are corrected together (Holm). Of
    off only the difference by itself counts, since that of random to off says the same.

    Args:
        scores: Score by seed of each arm.
        reference: Name of the arm that the others are compared with; its own difference is empty.
    """
    own = {arm: by_seed if arm != reference else {} for arm, by_seed in scores.items()}
    other = scores.get(reference, {})
    intervals = {arm: paired_difference(by_seed, other) for arm, by_seed in own.items()}
    tests = {arm: seed_difference(own[arm], other).p for arm, i in intervals.items() if i.n > 1}
    family = [arm for arm in tests if arm != "off"]
    corrected = dict(zip(family, holm([tests[arm] for arm in family]), strict=True))
    return {
        arm: ArmDifference(
            interval,
            {**tests, **corrected}.get(arm, NAN) < LEVEL,
            smallest_detectable_difference(interval.sd, interval.n),
        )
        for arm, interval in intervals.items()
    }


def _settings(trials: list[Trial]) -> list[tuple[float, float, list[tuple[str, Any]]]]:
    """Return the different settings of trials as tau, rho and the other values, sorted."""
    settings: set[tuple[Any, ...]] = {
        (number(t.get("tau")), number(t.get("rho")), *sorted(other_params(t).items()))
        for t in trials
    }
    return [(tau, rho, other) for tau, rho, *other in sorted(settings, key=str)]


def _settings_tried(arm: str, trials: list[Trial], sweep: dict) -> int:
    """Return how many settings sweep.json says were tried, else how many the ledger holds."""
    recorded = (sweep.get("settings_tried") or {}).get(arm)
    if recorded is not None:
        return recorded
    searched = [t for t in trials if t["arm"] == arm and t["stage"] == "search"]
    return len({str(t.get("params")) for t in searched})


def _hidden_share(arm: str, done: list[Trial]) -> float:
    """Return the mean measured hidden share; 0 for arm off, which measures none."""
    hidden = mean_interval(last(t, "aml/hidden") for t in done).mean
    return 0.0 if arm == "off" and done and math.isnan(hidden) else hidden


# The map over tau and rho


def by_setting(trials: Iterable[Trial]) -> dict[Setting, list[Trial]]:
    """Return the search trials of each (arm, tau, rho), the failed ones included.

    Arms are in the order of the ledger, an arm's settings sorted by tau, then by rho.
    """
    cells: dict[Setting, list[Trial]] = {}
    for t in (t for t in trials if t["stage"] == "search"):
        setting = (t["arm"], round(number(t.get("tau")), 6), round(number(t.get("rho")), 6))
        cells.setdefault(setting, []).append(t)
    order = list(dict.fromkeys(t["arm"] for t in trials))
    return dict(sorted(cells.items(), key=lambda c: (order.index(c[0][0]), *c[0][1:])))


def furthest(trials: list[Trial]) -> list[Trial]:
    """Return the trials that finished the most epochs: a mean over them is of equal lengths."""
    reached = max(map(epochs_of, trials), default=0)
    return [t for t in trials if epochs_of(t) == reached]


def map_cells(trials: list[Trial]) -> list[MapCell]:
    """Summarise each (arm, tau, rho) of the search over its trials that got furthest."""
    cells = by_setting(trials)
    everyone = (t for members in cells.values() for t in members)
    common = min((epochs_of(t) for t in everyone if t["state"] != "failed"), default=0)
    return [_map_cell(setting, members, common) for setting, members in cells.items()]


def _map_cell(setting: Setting, members: list[Trial], common_epoch: int) -> MapCell:
    arm, tau, rho = setting
    kept = [t for t in members if t["state"] != "failed"]
    first = furthest(kept)
    best = mean_interval(map(best_so_far, first))
    at_common_epoch = (
        number(epoch.get("val/mIoU"))
        for t in kept
        for epoch in t.get("history") or []
        if epoch["epoch"] == common_epoch
    )
    return MapCell(
        arm=arm,
        tau=tau,
        rho=rho,
        product=round(tau * rho, 6),
        trials=len(kept),
        furthest=len(first),
        seeds=len({t.get("seed") for t in first}),
        stopped=sum(t["state"] == "stopped" for t in kept),
        failed=len(members) - len(kept),
        epochs_min=min(map(epochs_of, kept), default=0),
        epochs_max=max(map(epochs_of, kept), default=0),
        early=int(bool(first) and all(t["state"] == "stopped" for t in first)),
        mIoU_best=best.mean,
        mIoU_best_sd=best.sd,
        common_epoch=common_epoch,
        mIoU_common=mean_interval(at_common_epoch).mean,
        hidden=mean_interval(last(t, "aml/hidden") for t in first).mean,
    )


# Lines of equal hidden share


def by_epoch(trials: list[Trial]) -> dict[int, list[dict]]:
    """Return the history entries with a val/mIoU by epoch, each with its trial's seed.

    Failed trials are left out.
    """
    seen: dict[int, list[dict]] = {}
    for t in (t for t in trials if t["state"] != "failed"):
        for epoch in t.get("history") or []:
            if math.isfinite(number(epoch.get("val/mIoU"))):
                seen.setdefault(int(epoch["epoch"]), []).append({**epoch, "seed": t.get("seed")})
    return seen


def line_points(trials: list[Trial], of_epochs: int, tolerance: float = 1e-6) -> list[LinePoint]:
    """Return the lines of equal hidden share in the search, of two points or more.

    A line belongs to one alignment arm and one r = tau rho. Every point is read at the last epoch
    that all points of its line reached: its score is the mean val/mIoU at that epoch, not the best
    so far, over the point's trials that got there (failed ones are left out). The random arm at
    rho = r is the end tau = 1 of every line at r. Points of a line are sorted by tau.

    Args:
        trials: Trials of the ledger.
        of_epochs: Epochs of a full run.
        tolerance: Difference up to which two products tau rho count as the same r.
    """
    histories = {setting: by_epoch(members) for setting, members in by_setting(trials).items()}
    histories = {setting: epochs for setting, epochs in histories.items() if epochs}
    off = by_epoch([t for t in trials if t["arm"] == "off" and t["stage"] == "search"])
    points = []
    for line_arm in dict.fromkeys(arm for arm, *_ in histories if is_alignment_arm(arm)):
        for r, line in _equal_products(line_arm, histories, tolerance):
            shared = set.intersection(*(set(histories[setting]) for setting in line))
            if r <= 0 or len(line) < 2 or not shared or all(arm != line_arm for arm, *_ in line):
                continue
            epoch = max(shared)
            reference = mean_interval(e["val/mIoU"] for e in off.get(epoch, ())).mean
            for arm, tau, rho in sorted(line, key=lambda s: (s[1], s[0] == "random")):
                entries = histories[arm, tau, rho][epoch]
                score = mean_interval(e["val/mIoU"] for e in entries)
                points.append(
                    LinePoint(
                        line_arm=line_arm,
                        line=r,
                        arm=arm,
                        tau=tau,
                        rho=rho,
                        product=round(tau * rho, 6),
                        epoch=epoch,
                        of_epochs=of_epochs,
                        trials=len(entries),
                        seeds=len({e["seed"] for e in entries}),
                        mIoU=score.mean,
                        mIoU_sd=score.sd,
                        hidden=mean_interval(number(e.get("aml/hidden")) for e in entries).mean,
                        off=reference,
                    )
                )
    return points


def _equal_products(
    arm: str, settings: Iterable[Setting], tolerance: float
) -> list[tuple[float, list[Setting]]]:
    """Group the settings of `arm` and of random by their product tau rho, smallest first."""
    left = sorted(
        (round(tau * rho, 6), name, tau, rho)
        for name, tau, rho in settings
        if name in (arm, "random")
    )
    groups = []
    while left:
        r = left[0][0]
        line = [(name, tau, rho) for product, name, tau, rho in left if product - r <= tolerance]
        left = left[len(line) :]
        groups.append((r, line))
    return groups


# Tables of trials and epochs


def curve_rows(trials: list[Trial], *prefixes: str) -> list[dict]:
    """Return one row an epoch of every trial, with the metrics that start with a prefix."""
    keys = sorted(
        {k for t in trials for e in t.get("history") or [] for k in e if k.startswith(prefixes)}
    )
    names = ("trial", "arm", "stage", "seed")
    return [
        {k: t.get(k, "") for k in names} | {"epoch": e.get("epoch")} | {k: e.get(k) for k in keys}
        for t in trials
        for e in t.get("history") or []
    ]


def trial_rows(trials: list[Trial]) -> list[dict]:
    """Return one row a trial: its ledger line, with last and best scores in place of history."""
    names = ["trial", "arm", "stage", "seed", "tau", "rho", "state"]
    names += ["stopped_by", "error", "seconds"]
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
