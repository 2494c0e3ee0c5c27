"""The settings an arm tries: its grid and its random samples. Without Ray."""

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.config import Experiment, active_params, masking_arm, unbundle

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Dimension = list | dict[str, Any]
"""Values of one searched setting: a list, or {"low", "high"} and perhaps "log"."""


def distinct_settings(experiment: Experiment, arm: str) -> list[dict]:
    """Return the arm's grid without repetitions (`active_params`); [{}] without a grid.

    The arms random and consistency have one setting for each product tau * rho.
    """
    search = experiment.search
    if search.method.name != "grid":
        return [{}]
    keys = list(search.space)
    all_settings = [
        active_params(experiment.aml.rate, arm, unbundle(dict(zip(keys, values, strict=True))))
        for values in itertools.product(*search.space.values())
    ]
    distinct: dict[str, dict] = {}
    for overrides in all_settings:
        trial = experiment.for_arm(arm, overrides)
        blind = masking_arm(arm) in ("random", "consistency")
        is_share_alone = blind and not trial.aml.method.reads_alignment
        masking = round(trial.aml.share, 9) if is_share_alone else overrides
        key = json.dumps([masking, _without_coordinates(overrides)], sort_keys=True)
        distinct.setdefault(key, overrides)
    return list(distinct.values())


def _without_coordinates(overrides: dict) -> dict:
    return {k: v for k, v in overrides.items() if k not in ("aml.tau", "aml.rho")}


def sample_config(space: dict[str, Any], key: list[int]) -> dict:
    """Return one random value of each dimension; the same key gives the same values."""
    rng = np.random.default_rng(key)
    return {name: quantile(values, rng.random()) for name, values in space.items()}


def optuna_distribution(values: Dimension) -> "BaseDistribution":
    """Return Optuna's distribution of a dimension."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(values, list):
        return CategoricalDistribution(values)
    return FloatDistribution(values["low"], values["high"], log=bool(values.get("log")))


def quantile(values: Dimension, u: float) -> Any:
    """Return the value of a dimension at u in [0, 1).

    A list is divided evenly; a range is evenly spaced, with `log` evenly in the logarithm.
    """
    if isinstance(values, list):
        return values[int(u * len(values))]
    low = values["low"]
    high = values["high"]
    return float(low * (high / low) ** u if values.get("log") else low + u * (high - low))
