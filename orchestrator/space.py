"""The settings that an arm has: which dimensions mean something to it, its grid, its draws, its TPE study. Pure, but for Optuna."""

import itertools
import json

import numpy as np

from orchestrator.config import Experiment, base_arm

OFF_DIMENSIONS = ()
BLIND_DIMENSIONS = ("tau", "rho", "rate", "block", "fill", "level", "protect_target", "clean_weight", "warmup_epochs", "ramp_epochs", "last_epoch")
"""Masking's dimensions that mean something where no alignment is read; all do with rate match."""
MASKRIS_DIMENSIONS = ("rate", "block", "fill", "warmup_epochs", "ramp_epochs", "last_epoch")


def distinct_settings(experiment: Experiment, arm: str) -> list[dict]:
    """The grid as the arm sees it (`fold`); `random` has one setting for each product tau * rho. [{}] without a grid."""
    search = experiment.search
    if search.method != "grid":
        return [{}]
    keys = list(search.space)
    every = [fold(experiment, arm, unbundle(dict(zip(keys, values, strict=True)))) for values in itertools.product(*search.space.values())]
    distinct: dict[str, dict] = {}
    for overrides in every:
        trial = experiment.for_arm(arm, overrides)
        blind = base_arm(arm) == "random" and trial.aml.rate != "match"
        distinct.setdefault(json.dumps([round(trial.aml.share, 9) if blind else overrides, _others(overrides)], sort_keys=True), overrides)
    return list(distinct.values())


def unbundle(values: dict) -> dict:
    """{"aml": {"source": s, "score": t}} -> {"aml.source": s, "aml.score": t}: keys that go together, each by its dotted name."""
    flat = {}
    for key, value in values.items():
        flat |= {f"{key}.{leaf}": v for leaf, v in value.items()} if "." not in key else {key: value}
    return flat


def fold(experiment: Experiment, arm: str, overrides: dict) -> dict:
    """The dimensions an arm has: `off` and `two_pass` none of masking's, `random` and `maskris` those that read no alignment."""
    arm = base_arm(arm)
    matched = arm == "random" and "match" in (experiment.aml.rate, overrides.get("aml.rate"))
    known = {"off": OFF_DIMENSIONS, "two_pass": OFF_DIMENSIONS, "random": BLIND_DIMENSIONS, "maskris": MASKRIS_DIMENSIONS}.get(arm)
    if known is None or matched:
        return dict(overrides)
    return {k: v for k, v in overrides.items() if not k.startswith("aml.") or k.removeprefix("aml.") in known}


def _others(overrides: dict) -> dict:
    return {k: v for k, v in overrides.items() if k not in ("aml.tau", "aml.rho")}


def sample(space: dict, key: list[int]) -> dict:
    """One draw of each dimension, the same for every arm."""
    rng = np.random.default_rng(key)
    return {name: draw(values, rng.random()) for name, values in space.items()}


def _distribution(values):
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(values, list):
        return CategoricalDistribution(values)
    return FloatDistribution(values["low"], values["high"], log=bool(values.get("log")))


def draw(values, u: float):
    """A value of a dimension at u in [0, 1): out of a list, or between low and high (evenly in the logarithm with log)."""
    if isinstance(values, list):
        return values[int(u * len(values))]
    low, high = values["low"], values["high"]
    return float(low * (high / low) ** u if values.get("log") else low + u * (high - low))


TPE_BEST, TPE_KEPT = 25, 300
"""TPE reads all trials for each suggestion. Its good ones are at most the best 25 (Optuna's default), so those and the latest are enough."""


class Study:
    """One Optuna study an arm: TPE over the dimensions the arm has."""

    def __init__(self, experiment: Experiment, arm: str):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.arm, self.optuna = arm, optuna
        self.space = {k: _distribution(v) for k, v in experiment.search.space.items() if k in fold(experiment, arm, experiment.search.space)}
        self.sampler = optuna.samplers.TPESampler(seed=experiment.seed, n_startup_trials=4)
        self.study = optuna.create_study(direction="maximize", sampler=self.sampler)
        self.told = 0
        self.asked: dict[str, object] = {}

    def ask(self, trial_id: str) -> dict:
        self.asked[trial_id] = trial = self.study.ask(self.space)
        return dict(trial.params)

    def tell(self, record: dict, value: float | None) -> None:
        """Also of trials that this study was not asked for: it learns of them as they are."""
        state = self.optuna.trial.TrialState
        trial = self.asked.pop(record["trial"], None)
        if trial is not None:
            self.study.tell(trial, value, state=state.COMPLETE if value is not None else state.FAIL)
        elif value is not None:
            params = {k: v for k, v in record["overrides"].items() if k in self.space}
            self.study.add_trial(self.optuna.trial.create_trial(params=params, distributions=self.space, value=value))
        self.told += 1
        if self.told >= 2 * TPE_KEPT:
            self._thin()

    def _thin(self) -> None:
        """A new study of the best and the latest trials; what is still asked for will be told to it as another's."""
        done = self.study.get_trials(deepcopy=False, states=[self.optuna.trial.TrialState.COMPLETE])
        best = sorted(done[:-TPE_KEPT], key=lambda t: -t.value)[:TPE_BEST]
        self.study = self.optuna.create_study(direction="maximize", sampler=self.sampler)
        self.study.add_trials([*best, *done[-TPE_KEPT:]])
        self.told = TPE_BEST + TPE_KEPT
        self.asked.clear()
