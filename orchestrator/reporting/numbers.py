"""Read numbers out of ledger records: best, last, by seed, by arm."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from aml.training import counted_epochs
from orchestrator.config import own_settings

NAN = math.nan

Trial = dict[str, Any]
"""One line of a sweep's ledger, or a training as `run_folder.load_run` returns it."""


def number(value: object) -> float:
    """Return `value` as a float; NaN for None and for anything that is not a number."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else NAN


def last(trial: Trial, key: str) -> float:
    """Return the value of `key` in the trial's last epoch; NaN if there is none."""
    history = trial.get("history") or []
    return number(history[-1].get(key)) if history else NAN


def selected(meta: Mapping[str, Any]) -> str | None:
    """Return the setting evaluate.select of a run.

    Args:
        meta: Content of sweep.json or train.json, with the run's config.
    """
    return ((meta.get("config") or {}).get("evaluate") or {}).get("select")


def counted(trials: Iterable[Trial], select: str | None) -> list[Trial]:
    """Return the trials with the epochs up to the one that counts, which is then the last.

    Args:
        trials: Records of the ledger.
        select: The setting evaluate.select.
    """
    return [t | {"history": counted_epochs(t.get("history") or [], select)} for t in trials]


def best_so_far(trial: Trial) -> float:
    """Return val/mIoU_best of the last epoch, else the largest val/mIoU; NaN if there is none."""
    best = last(trial, "val/mIoU_best")
    if math.isfinite(best):
        return best
    values = (number(epoch.get("val/mIoU")) for epoch in trial.get("history") or [])
    return max((v for v in values if math.isfinite(v)), default=NAN)


def epochs_of(trial: Trial) -> int:
    """Return the number of epochs that the trial finished."""
    return int(trial.get("epochs") or len(trial.get("history") or []))


def other_params(trial: Trial) -> dict[str, Any]:
    """Return the searched settings besides tau and rho."""
    return {k: v for k, v in (trial.get("params") or {}).items() if k not in ("aml.tau", "aml.rho")}


def by_seed(trials: Iterable[Trial], key: str) -> dict[int, float]:
    """Return the last epoch's finite values of `key` by seed; trials of one seed are averaged."""
    seeds: dict[int, list[float]] = {}
    for trial in trials:
        value = last(trial, key)
        if math.isfinite(value):
            seeds.setdefault(int(trial.get("seed") or 0), []).append(value)
    return {seed: math.fsum(v) / len(v) for seed, v in seeds.items()}


def arms_of(trials: list[Trial], sweep: dict) -> list[str]:
    """Return the arms that sweep.json lists, in its order, then those only in the ledger."""
    return list(dict.fromkeys([*(sweep.get("settings_tried") or {}), *(t["arm"] for t in trials)]))


def is_alignment_arm(arm: str) -> bool:
    """Tell whether an arm masks by alignment (aml, aml/..., with or without @compute)."""
    return arm.split("/")[0].split("@")[0] == "aml"


def hides_words(arm: str) -> bool:
    """Tell whether an arm hides words in place of blocks, as random(level=words)."""
    return own_settings(arm).get("level") == "words"


def mean_curve(trials: list[Trial], key: str) -> list[tuple[int, float, float, float]]:
    """Return a metric's mean over trials by epoch.

    Args:
        trials: Trials; those without the metric are ignored.
        key: Name of the metric in a trial's history.

    Returns:
        (epoch, mean, smallest, largest), for the epochs that all of the trials reached that have
        the metric.
    """
    epochs: dict[int, list[float]] = {}
    for row in (row for t in trials for row in t.get("history") or []):
        value = number(row.get(key))
        if math.isfinite(value):
            epochs.setdefault(int(row["epoch"]), []).append(value)
    full = max(map(len, epochs.values()), default=0)
    return [
        (k, math.fsum(v) / len(v), min(v), max(v))
        for k, v in sorted(epochs.items())
        if len(v) == full
    ]
