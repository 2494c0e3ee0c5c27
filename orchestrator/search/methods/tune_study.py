"""A search method that Ray Tune brings, asked for one arm."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.config import Experiment, active_params
from orchestrator.search.methods.space import Dimension, sample_config

SEED_ARGUMENTS = {"hyperopt": "random_state_seed", "bayesopt": "random_state"}
"""The argument by which each method's class takes a seed."""


class TuneStudy:
    """One arm's search by a Searcher of Tune.

    A suggestion depends on the seed, its index, the settings asked for before and the results of
    those that have ended, and not on how often the sweep was restarted: for each suggestion a new
    Searcher is given the earlier settings as points to evaluate first, and their results. A trial
    that ended without a result counts as one under way, so that its setting is not proposed again.
    """

    reads_stopped = False
    """Whether it is told the score of a trial that the arm's scheduler stopped."""

    def __init__(self, experiment: Experiment, arm: str) -> None:
        """Prepare the study.

        Args:
            experiment: The settings of the sweep.
            arm: The arm, whose active dimensions are searched.
        """
        search = experiment.search
        active = active_params(experiment.aml.rate, arm, search.space)
        self.space: dict[str, Dimension] = {k: v for k, v in search.space.items() if k in active}
        self.method = search.method
        self.seed = experiment.seed
        self.settings: dict[str, dict] = {}
        """Settings by trial, in the order in which they were asked for."""
        self.values: dict[str, float | None] = {}
        """Values of trials that have ended; None where one has none to read."""

    def ask(self, trial_id: str, index: int) -> dict:
        """Return the settings of a new trial; random ones where the method has none to suggest.

        Args:
            trial_id: Its id.
            index: Its index among the arm's search trials.
        """
        found = self._suggest(trial_id, index) if self.space else {}
        if not isinstance(found, dict):
            found = sample_config(self.space, [self.seed, index])
        self.settings[trial_id] = {key: _plain(value) for key, value in found.items()}
        return dict(self.settings[trial_id])

    def join(self, trial_id: str, overrides: dict) -> None:
        """Take in a trial that an earlier attempt asked for and that has not ended."""
        self.settings.setdefault(trial_id, {k: v for k, v in overrides.items() if k in self.space})

    def tell(self, record: dict, values: Sequence[float] | None) -> None:
        """Take in how a trial ended.

        Args:
            record: The trial's record in the ledger.
            values: The one value to maximise; None where there is none to read.
        """
        self.join(record["trial"], record["overrides"])
        value = values[0] if values else None
        self.values[record["trial"]] = value if value is not None and math.isfinite(value) else None

    def _suggest(self, trial_id: str, index: int) -> Any:
        from ray import tune

        ended = {t: value for t, value in sorted(self.values.items()) if value is not None}
        without = sorted(self.settings.keys() - ended.keys())
        points = [dict(self.settings[earlier]) for earlier in [*ended, *without]]
        seed = int(np.random.default_rng([self.seed, index]).integers(2**31))
        space = {key: _domain(tune, values) for key, values in self.space.items()}
        arguments = self.method.to_dict()
        name = arguments.pop("name")
        searcher = tune.create_searcher(
            name,
            points_to_evaluate=points or None,
            **arguments,
            **{SEED_ARGUMENTS[name]: seed},
        )
        searcher.set_search_properties("value", "max", space)
        for earlier in [*ended, *without]:
            searcher.suggest(earlier)
            if earlier in ended:
                result = {"value": ended[earlier], "training_iteration": 1}
                searcher.on_trial_complete(earlier, result)
        return searcher.suggest(trial_id)


def _domain(tune: Any, values: Dimension) -> Any:
    """Return Tune's domain of a dimension."""
    if isinstance(values, list):
        return tune.choice(values)
    draw = tune.loguniform if values.get("log") else tune.uniform
    return draw(values["low"], values["high"])


def _plain(value: Any) -> Any:
    """Return a number of NumPy as Python's."""
    return value.item() if isinstance(value, np.generic) else value
