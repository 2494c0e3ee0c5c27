"""The settings that an arm has: which dimensions mean something to it, its grid, its draws, its TPE study. Pure, but for Optuna."""

import itertools
import json

import numpy as np

from orchestrator.config import Experiment, base_arm

OFF_DIMENSIONS = ()

BLIND_DIMENSIONS = (
    "tau",
    "rho",
    "rate",
    "block",
    "fill",
    "level",
    "protect_target",
    "clean_weight",
    "warmup_epochs",
    "ramp_epochs",
    "last_epoch",
)

"""Masking's dimensions that mean something where no alignment is read; all do with rate match."""

MASKRIS_DIMENSIONS = ("rate", "block", "fill", "warmup_epochs", "ramp_epochs", "last_epoch")


def distinct_settings(experiment: Experiment, arm: str) -> list[dict]:
    """The grid as the arm sees it (`fold`); `random` has one setting for each product tau * rho. [{}] without a grid."""
    search = experiment.search
    if search.method != "grid":
        return [{}]
    keys = list(search.space)
    every = [
        active_params(experiment, arm, unbundle(dict(zip(keys, values, strict=True))))
        for values in itertools.product(*search.space.values())
    ]
    distinct: dict[str, dict] = {}
    for overrides in every:
        trial = experiment.for_arm(arm, overrides)
        blind = base_arm(arm) == "random" and trial.aml.rate != "match"
        distinct.setdefault(
            json.dumps(
                [round(trial.aml.share, 9) if blind else overrides, _others(overrides)],
                sort_keys=True,
            ),
            overrides,
        )
    return list(distinct.values())


def unbundle(values: dict) -> dict:
    """{"aml": {"source": s, "score": t}} -> {"aml.source": s, "aml.score": t}: keys that go together, each by its dotted name."""
    flat = {}
    for key, value in values.items():
        flat |= (
            {f"{key}.{leaf}": v for leaf, v in value.items()} if "." not in key else {key: value}
        )
    return flat


def active_params(experiment: Experiment, arm: str, overrides: dict) -> dict:
    """The dimensions an arm has: `off` and `two_pass` none of masking's, `random` and `maskris` those that read no alignment."""
    arm = base_arm(arm)
    matched = arm == "random" and "match" in (experiment.aml.rate, overrides.get("aml.rate"))
    known = {
        "off": OFF_DIMENSIONS,
        "two_pass": OFF_DIMENSIONS,
        "random": BLIND_DIMENSIONS,
        "maskris": MASKRIS_DIMENSIONS,
    }.get(arm)
    if known is None or matched:
        return dict(overrides)
    return {
        k: v
        for k, v in overrides.items()
        if not k.startswith("aml.") or k.removeprefix("aml.") in known
    }


def _others(overrides: dict) -> dict:
    return {k: v for k, v in overrides.items() if k not in ("aml.tau", "aml.rho")}


def sample_config(space: dict, key: list[int]) -> dict:
    """One draw of each dimension, the same for every arm."""
    rng = np.random.default_rng(key)
    return {name: quantile(values, rng.random()) for name, values in space.items()}


def _distribution(values):
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(values, list):
        return CategoricalDistribution(values)
    return FloatDistribution(values["low"], values["high"], log=bool(values.get("log")))


def quantile(values, u: float):
    """A value of a dimension at u in [0, 1): out of a list, or between low and high (evenly in the logarithm with log)."""
    if isinstance(values, list):
        return values[int(u * len(values))]
    low, high = values["low"], values["high"]
    return float(low * (high / low) ** u if values.get("log") else low + u * (high - low))
