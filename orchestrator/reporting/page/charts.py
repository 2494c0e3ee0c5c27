"""Return what the page's script draws: trials, cells of the map, robustness and Pareto fronts.

Everything here becomes JSON. A missing number is None, and scores and other shares are in per
cent, as everywhere on the page. This module reads and writes no files.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from orchestrator.reporting import numbers, wording
from orchestrator.reporting.figures import curves
from orchestrator.reporting.figures.style import style_of
from orchestrator.reporting.numbers import Trial
from orchestrator.reporting.page.fronts import fronts
from orchestrator.reporting.robust_arms import REFERENCES, RobustScore
from orchestrator.reporting.rows import by_setting, furthest
from orchestrator.reporting.significance import Difference, mean_interval
from orchestrator.reporting.summaries import ArmSummary
from orchestrator.utils import TRAINING_PAGES, mlflow_pages

SCORES = {
    "val/mIoU": "mIoU",
    "val/oIoU": "oIoU",
    **{f"val/P0.{i}": f"P@0.{i}" for i in range(5, 10)},
}
"""Name on the page of each validation score."""

OTHERS = {
    "train/loss": "training loss",
    **{d.key: d.title for d in curves.DIAGNOSTICS},
}
"""Name on the page of every other metric that is drawn."""

MOST_NUMBERS = 120_000
"""Numbers in the curves of all trials, above which epochs are left out between the last ones."""

DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
"""Plotly's names of matplotlib's line styles."""

SYMBOLS = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "h": "hexagon",
    "d": "diamond-tall",
    "p": "pentagon",
    "*": "star",
    "H": "hexagon2",
    "<": "triangle-left",
    ">": "triangle-right",
    "8": "octagon",
    "x": "x-thin-open",
}
"""Plotly's names of matplotlib's markers."""


def chart_data(
    trials: list[Trial],
    meta: Mapping[str, Any],
    arms: list[ArmSummary],
    robust: list[RobustScore],
) -> dict[str, Any]:
    """Return all that the script draws.

    Args:
        trials: Trials of the run.
        meta: Content of sweep.json or train.json, with the run's config.
        arms: Summaries of a sweep's arms; none for a training.
        robust: The arms' scores under corruption, if there are any.
    """
    metrics = _metrics(trials)
    step = _epoch_step(trials, metrics)
    return {
        "arms": [_arm(name) for name in numbers.arms_of(trials, {})],
        "metrics": metrics,
        "varied": _varied(trials),
        "trials": [_trial(trial, metrics, step, meta) for trial in trials],
        "step": step,
        "cells": map_points(trials, metrics, arms),
        "robust": [_robust(score) for score in robust],
        "fronts": fronts(arms, robust, numbers.counted(trials, numbers.selected(meta))),
        "diagnostics": [_diagnostic(*found) for found in curves.diagnostic_curves(trials)],
    }


def mlflow_link(meta: Mapping[str, Any], trial: str) -> str:
    """Return the address in MLflow's pages that shows a trial's run; "" where it is not known.

    The pages of a database are those that the command `ui` serves.

    Args:
        meta: Content of sweep.json or train.json.
        trial: Name of the trial.
    """
    store = meta.get("mlflow") or {}
    address = str(store.get("uri") or "")
    experiment = str(store.get("experiment_id") or "")
    pages = mlflow_pages(address)
    # a password is never shown, and without it the address is of no use
    if not address or address == "none" or "***" in pages or not experiment:
        return ""
    runs = f"{pages}/#/experiments/{quote(experiment, safe='')}/runs"
    is_sweep = meta.get("kind") == "sweep"
    run_id = (store.get("children") or {}).get(trial) if is_sweep else store.get("run_id")
    if run_id:
        return f"{runs}/{quote(str(run_id), safe='')}?{TRAINING_PAGES}"
    if not is_sweep:
        return f"{runs}?{TRAINING_PAGES}"
    chosen = f"tags.trial_id = '{trial}' AND tags.sweep = '{meta.get('run')}'"
    return f"{runs}?searchFilter={quote(chosen, safe='')}&{TRAINING_PAGES}"


def map_points(
    trials: list[Trial], metrics: list[dict[str, Any]], arms: list[ArmSummary]
) -> list[dict[str, Any]]:
    """Return each (arm, tau, rho) of the search with every metric, read in two ways.

    `best` is the mean over the trials that got furthest of their best epoch for a validation
    score, of their last epoch for any other metric. `common` is the mean over all trials that did
    not fail at the last epoch that all trials of the search reached.

    Args:
        trials: Trials of the run.
        metrics: Metrics as `chart_data` returns them.
        arms: Summaries of the arms, which say what was confirmed.
    """
    confirmed = {(a.arm, round(a.tau, 6), round(a.rho, 6)) for a in arms if a.settings_confirmed}
    cells = by_setting(trials)
    kept = {
        place: [t for t in members if t["state"] != "failed"] for place, members in cells.items()
    }
    common = min((numbers.epochs_of(t) for ts in kept.values() for t in ts), default=0)
    points = []
    for (arm, tau, rho), members in kept.items():
        first = furthest(members)
        points.append(
            {
                "arm": arm,
                "tau": _json(tau),
                "rho": _json(rho),
                "trials": len(members),
                "failed": len(cells[arm, tau, rho]) - len(members),
                "epochs": max(map(numbers.epochs_of, members), default=0),
                "early": bool(first) and all(t["state"] == "stopped" for t in first),
                "confirmed": (arm, tau, rho) in confirmed,
                "alignment": numbers.is_alignment_arm(arm),
                "epoch": common,
                "best": {m["key"]: _mean(map(_best, first, [m] * len(first))) for m in metrics},
                "common": {m["key"]: _mean(_at(t, m, common) for t in members) for m in metrics},
            }
        )
    return points


def _metrics(trials: list[Trial]) -> list[dict[str, Any]]:
    """Return the metrics that some trial has: key, name with unit, and factor."""
    found = {key for t in trials for epoch in t.get("history") or [] for key in epoch}
    shares = {d.key for d in curves.DIAGNOSTICS if d.factor == 100} | set(SCORES)
    return [
        {
            "key": key,
            "name": f"{name} (%)" if key in shares else name,
            "factor": 100 if key in shares else 1,
            "score": key in SCORES,
        }
        for key, name in (SCORES | OTHERS).items()
        if key in found or _probe(key) in found
    ]


def _probe(key: str) -> str:
    """Return the name of a diagnostic that is measured on the fixed validation probe."""
    return key.replace("aml/", "aml/probe_")


def _value(epoch: Mapping[str, Any], metric: Mapping[str, Any]) -> float:
    """Return a metric of an epoch in its unit; NaN where it is missing."""
    value = numbers.number(epoch.get(metric["key"]))
    if math.isnan(value):
        value = numbers.number(epoch.get(_probe(metric["key"])))
    return metric["factor"] * value


def _best(trial: Trial, metric: Mapping[str, Any]) -> float:
    """Return a trial's best epoch of a score, or the last value of any other metric."""
    values = [_value(epoch, metric) for epoch in trial.get("history") or []]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return math.nan
    return max(values) if metric["score"] else values[-1]


def _at(trial: Trial, metric: Mapping[str, Any], number: int) -> float:
    history = trial.get("history") or []
    return next((_value(e, metric) for e in history if e.get("epoch") == number), math.nan)


def _mean(values: Iterable[float]) -> float | None:
    return _json(mean_interval(values).mean)


def _json(value: float) -> float | None:
    """Return a number with six significant digits, which the page never shows; None for NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _arm(name: str) -> dict[str, str]:
    style = style_of(name)
    return {
        "name": name,
        "color": style["color"],
        "dash": DASHES[style["linestyle"]],
        "symbol": SYMBOLS[style["marker"]],
    }


def _settings(trial: Trial) -> dict[str, Any]:
    """Return a trial's settings by name: tau and rho where it has them, then the others."""
    own = {"τ": trial.get("tau"), "ρ": trial.get("rho")}
    own = {name: value for name, value in own.items() if math.isfinite(numbers.number(value))}
    return own | numbers.other_params(trial)


def _varied(trials: list[Trial]) -> list[dict[str, Any]]:
    """Return the settings of which trials have different values, each with its kind of axis.

    The kinds are number, log (of positive numbers a factor of 50 and more apart), and choice,
    whose `values` are in order; a trial without the setting has "–".
    """
    settings = [_settings(trial) for trial in trials]
    axes: list[dict[str, Any]] = []
    for name in dict.fromkeys(name for own in settings for name in own):
        values = [own.get(name) for own in settings]
        shown = {wording.brief(value) if value is not None else "–" for value in values}
        if len(shown) < 2:
            continue
        found = [numbers.number(value) for value in values]
        if all(map(math.isfinite, found)):
            low, high = min(found), max(found)
            axes.append({"name": name, "kind": "log" if low > 0 and high >= 50 * low else "number"})
        else:
            axes.append({"name": name, "kind": "choice", "values": sorted(shown, key=_order)})
    return axes


def _order(text: str) -> tuple[bool, float, str]:
    """Return the place of a choice: missing, then numbers by value, then texts."""
    try:
        return text != "–", float(text), ""
    except ValueError:
        return text != "–", math.inf, text


def _epoch_step(trials: list[Trial], metrics: list[dict]) -> int:
    """Return n, where every n-th epoch is drawn so that the page stays small."""
    count = len(metrics) * sum(len(t.get("history") or []) for t in trials)
    return max(1, math.ceil(count / MOST_NUMBERS))


def _trial(trial: Trial, metrics: list[dict], step: int, meta: Mapping[str, Any]) -> dict[str, Any]:
    history = trial.get("history") or []
    drawn = [e for i, e in enumerate(history, 1) if i % step == 0 or i == len(history)]
    values = {m["key"]: [_json(_value(e, m)) for e in drawn] for m in metrics}
    return {
        "trial": trial["trial"],
        "arm": trial["arm"],
        "stage": trial["stage"],
        "seed": trial.get("seed", ""),
        "state": trial["state"],
        "by": trial.get("stopped_by") or "",
        "settings": {
            name: value if isinstance(value, int) else _shown(value)
            for name, value in _settings(trial).items()
        },
        "link": mlflow_link(meta, trial["trial"]),
        "epochs": [e.get("epoch") for e in drawn],
        "values": {key: v for key, v in values.items() if any(x is not None for x in v)},
        "best": {m["key"]: _json(_best(trial, m)) for m in metrics},
    }


def _shown(value: object) -> float | str:
    """Return a setting as the page shows it: numbers to four digits, all else as text."""
    text = wording.brief(value)
    return float(text) if isinstance(value, float) and math.isfinite(value) else text


def _robust(score: RobustScore) -> dict[str, Any]:
    def ends(difference: Difference) -> list[float | None]:
        parts = (difference.difference, difference.low, difference.high)
        return [_json(100 * part) for part in parts]

    return {
        "arm": score.arm,
        "corruption": score.corruption,
        "severities": score.severities,
        "seeds": score.mIoU.n,
        "drop": _json(100 * score.drop),
        "score": [_json(100 * v) for v in (score.mIoU.mean, score.mIoU.low, score.mIoU.high)],
        **{name: ends(score.differences[name]) for name in REFERENCES if name in score.differences},
    }


def _diagnostic(diagnostic: curves.Diagnostic, found: dict[str, curves.Curve]) -> dict[str, Any]:
    return {
        "title": diagnostic.title,
        "unit": diagnostic.unit,
        "reference": diagnostic.reference,
        "meaning": diagnostic.meaning,
        "curves": {
            arm: [[row[0] for row in curve], [_json(diagnostic.factor * row[1]) for row in curve]]
            for arm, curve in found.items()
        },
    }
