"""Numbers out of a ledger's records: best, last, by seed, by arm."""

import math
from collections.abc import Iterable

from orchestrator.reporting.significance import paired_difference, smallest_detectable_difference

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
    seen = [
        v
        for v in (number(e.get("val/mIoU")) for e in trial.get("history") or [])
        if math.isfinite(v)
    ]
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


def mean_curve(trials: list[dict], key: str) -> list[tuple[int, float, float, float]]:
    """(epoch, mean, smallest, largest) over the trials, at the epochs that all of them that know the key have."""
    epochs: dict[int, list[float]] = {}
    for row in (row for t in trials for row in t.get("history") or []):
        if math.isfinite(value := number(row.get(key))):
            epochs.setdefault(int(row["epoch"]), []).append(value)
    full = max(map(len, epochs.values()), default=0)
    return [
        (k, math.fsum(v) / len(v), min(v), max(v))
        for k, v in sorted(epochs.items())
        if len(v) == full
    ]
