"""Find the Pareto fronts of the arms: cost and score, clean score and score under corruption.

And put the settings of a search by several metrics into the form that the page draws.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.config import Objective
from orchestrator.reporting import numbers, wording
from orchestrator.reporting.numbers import Trial
from orchestrator.reporting.pareto import SearchedSetting, metric_label, undominated
from orchestrator.reporting.robust_arms import CLEAN, MEAN, RobustScore
from orchestrator.reporting.significance import Interval, mean_interval
from orchestrator.reporting.summaries import ArmSummary

Point = tuple[float, float]

FLOPS = "FLOPs of the training, in epochs of off"
MINUTES = "minutes of training, as measured"
VALIDATION = "validation mIoU (%)"
ROBUST = "mean mIoU under corruption (%)"
CLEAN_LABEL = "mIoU on clean pictures (%)"


def pareto_front(points: Mapping[str, Point], *, less_is_better: bool) -> list[str]:
    """Return the names of the points that no other point dominates, by x; in y more is better.

    Args:
        points: (x, y) by name.
        less_is_better: Whether a small x is good, as a cost is, or a large one.
    """
    sign = -1 if less_is_better else 1
    front = undominated({name: (sign * x, y) for name, (x, y) in points.items()})
    return sorted(front, key=lambda name: points[name])


def fronts(
    arms: Sequence[ArmSummary], robust: Sequence[RobustScore], counted: Sequence[Trial]
) -> list[dict[str, Any]]:
    """Return the views of the plot of Pareto fronts that have two points or more.

    Args:
        arms: Summaries of the arms.
        robust: Their scores under corruption, if there are any.
        counted: Trials with the epochs up to the one that counts.

    Returns:
        For each view the labels of x and y, whether less of x is better, the arms on the front by
        x, and the points: arm, x, the interval of y, and in the last view that of x.
    """
    scores = {a.arm: a.mIoU for a in arms if a.seeds}
    corrupted = {s.arm: s.mIoU for s in robust if s.corruption == MEAN}
    clean = {s.arm: s.mIoU for s in robust if s.corruption == CLEAN}
    flops = {a.arm: a.cost_ratio * a.epochs for a in arms if a.seeds}
    minutes = {a.arm: _minutes(a.arm, counted) for a in arms if a.seeds}
    views = []
    for label, cost in ((FLOPS, flops), (MINUTES, minutes)):
        exact = {arm: Interval(1, x, math.nan, math.nan, math.nan) for arm, x in cost.items()}
        for name, score in ((VALIDATION, scores), (ROBUST, corrupted)):
            views.append(_view(label, name, exact, score, less_is_better=True))
    views.append(_view(CLEAN_LABEL, ROBUST, clean, corrupted, less_is_better=False))
    return [view for view in views if len(view["points"]) > 1]


def searched_points(
    settings: Sequence[SearchedSetting], objectives: Sequence[Objective]
) -> dict[str, Any]:
    """Return the plot of the settings of a search by several metrics.

    Args:
        settings: The settings of all arms.
        objectives: The metrics.

    Returns:
        The metrics, each with its label and whether less is better, and the settings: arm, text,
        values, whether it is on its arm's front, number of trials, and of a confirmed one the
        interval of each metric and the number of seeds.
    """
    factors = [100 if wording.is_score(o.metric) else 1 for o in objectives]
    return {
        "metrics": [{"label": metric_label(o.metric), "less": o.mode == "min"} for o in objectives],
        "settings": [
            {
                "arm": s.arm,
                "text": s.text,
                "values": [_shown(f * v) for f, v in zip(factors, s.values, strict=True)],
                "front": s.on_front,
                "trials": len(s.trials),
                "confirmed": [_ends(i, f) for f, i in zip(factors, s.confirmed, strict=False)],
                "seeds": s.seeds,
            }
            for s in settings
        ],
    }


def _minutes(arm: str, counted: Sequence[Trial]) -> float:
    """Return the mean over an arm's confirmed trials of the minutes of training, validation not."""
    done = [t for t in counted if (t["arm"], t["stage"], t["state"]) == (arm, "confirm", "done")]
    return mean_interval(
        sum(numbers.number(e.get("time/train_s")) for e in t.get("history") or []) / 60
        for t in done
    ).mean


def _view(
    x_label: str,
    y_label: str,
    x: Mapping[str, Interval],
    y: Mapping[str, Interval],
    *,
    less_is_better: bool,
) -> dict[str, Any]:
    factor = 1 if less_is_better else 100
    names = [a for a in x if a in y and math.isfinite(x[a].mean) and math.isfinite(y[a].mean)]
    front = pareto_front({a: (x[a].mean, y[a].mean) for a in names}, less_is_better=less_is_better)

    return {
        "x": x_label,
        "y": y_label,
        "less": less_is_better,
        "front": front,
        "points": [
            {"arm": a, "x": _ends(x[a], factor), "y": _ends(y[a], 100), "seeds": y[a].n}
            for a in names
        ],
    }


def _ends(interval: Interval, scale: float) -> list[float | None]:
    """Return mean and ends of an interval in the unit of the page."""
    return [_shown(scale * v) for v in (interval.mean, interval.low, interval.high)]


def _shown(value: float) -> float | None:
    """Return a number with six significant digits; None for NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
