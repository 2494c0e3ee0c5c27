"""Population-based training (PBT) of one arm, in generations: bookkeeping without Ray.

Every member trains `interval` epochs. Then the worst continue from copies of the best, with
explored settings (Jaderberg et al. 2017, "Population Based Training of Neural Networks"). A
generation waits for all of its members, so that exploits depend on scores and seed alone, on any
number of machines and however often the sweep was killed.
"""

import math
import zlib
from collections.abc import Iterable

import numpy as np

from orchestrator.config import Experiment, PbtScheduler, SearchConfig
from orchestrator.search.methods.space import quantile

FACTORS = (0.8, 1.2)
"""`explore` multiplies a number by one of these (Jaderberg et al.)."""


class Population:
    """The members of an arm, their settings from each epoch on, and their scores."""

    def __init__(
        self,
        experiment: Experiment,
        arm: str,
        size: int,
        epochs: int,
        decisions: Iterable[dict] = (),
    ) -> None:
        """Create a population after its earlier generations.

        Args:
            experiment: The settings of the sweep.
            arm: The arm whose trials are the members.
            size: The number of members.
            epochs: The number of epochs a member trains.
            decisions: The decisions of earlier generations, as `decide` returned them.
        """
        self.search = experiment.search
        self.scheduler = pbt_settings(experiment.search)
        self.arm = arm
        self.seed = experiment.seed
        self.size = size
        self.epochs = epochs
        self.decisions = list(decisions)
        self.initial_configs: dict[str, dict] = {}
        """Settings that each member began with."""
        self.scores: dict[str, float | None] = {}
        """Scores of the members that have finished the current generation."""
        self.terminated: set[str] = set()
        """Members that failed, finished, or were stopped for good."""

    @property
    def generation_start(self) -> int:
        """Number of finished epochs at which the current generation began."""
        return self.scheduler.interval * len(self.decisions)

    @property
    def generation_end(self) -> int:
        """Number of finished epochs at which the current generation ends."""
        return min(self.epochs, self.generation_start + self.scheduler.interval)

    @property
    def active(self) -> set[str]:
        """Members that have not ended."""
        return self.initial_configs.keys() - self.terminated

    def is_complete(self, search_ended: bool = False) -> bool:
        """Return whether all members have finished the current generation.

        Args:
            search_ended: No further member will join.
        """
        has_all_members = search_ended or len(self.initial_configs) == self.size
        return (
            has_all_members
            and bool(self.active)
            and self.generation_end < self.epochs
            and self.active <= self.scores.keys()
        )

    def decide(self) -> dict:
        """End a complete generation and choose the exploits.

        As many of the worst exploit as there are sources among the best: the quantile of the
        members, rounded up, at most half of them. A member without a score is the worst.

        Returns:
            The decision as generations.jsonl holds it: {"epoch", "scores",
            "moves": {member: {"from": source, "overrides": settings}}}.
        """
        scores = {m: self.scores[m] for m in sorted(self.scores.keys() - self.terminated)}

        def rank(member: str) -> float:
            score = scores[member]
            return -math.inf if score is None else self.search.objective.gain(score)

        ranked = sorted(scores, key=rank)  # stable: members of equal score stay in name order
        count = min(len(ranked) // 2, math.ceil(self.scheduler.quantile * len(ranked)))
        rng = np.random.default_rng([self.seed, zlib.crc32(self.arm.encode()), len(self.decisions)])
        exploits = {}
        for member in ranked[:count]:
            source = ranked[len(ranked) - count + int(rng.integers(count))]
            overrides = explore(self.search, self.config(source), rng)
            exploits[member] = {"from": source, "overrides": overrides}
        decision = {"epoch": self.generation_end, "scores": scores, "moves": exploits}
        self.decisions.append(decision)
        self.scores = {}
        return decision

    def config(self, member: str) -> dict:
        """Return the settings that the member trains with now."""
        return self.config_history(member)[-1][1]

    def config_history(self, member: str) -> list[list]:
        """Return how the member's present weights were trained.

        Returns:
            [[finished epochs, settings from there on], ...], through the sources of its exploits.
        """
        return self._config_history(member, len(self.decisions))

    def _config_history(self, member: str, generations: int) -> list[list]:
        for index in range(generations - 1, -1, -1):
            decision = self.decisions[index]
            if exploit := decision["moves"].get(member):
                change = [decision["epoch"], exploit["overrides"]]
                return [*self._config_history(exploit["from"], index), change]
        return [[0, self.initial_configs[member]]]


def pbt_settings(search: SearchConfig) -> PbtScheduler:
    """Return the settings of the scheduler pbt."""
    assert isinstance(search.scheduler, PbtScheduler)
    return search.scheduler


def explore(search: SearchConfig, config: dict, rng: np.random.Generator) -> dict:
    """Return explored settings.

    A searched number is multiplied by 0.8 or 1.2 and kept within its range, a listed value
    becomes one of its neighbours, and some values are drawn anew from the search space.

    Args:
        search: The settings of the search, with its space.
        config: The settings to start from.
        rng: The source of randomness.

    Returns:
        The settings with every searched dimension explored.
    """
    resample = pbt_settings(search).resample
    explored = dict(config)
    for key in sorted(search.space.keys() & config.keys()):
        values = search.space[key]
        is_resampled = rng.random() < resample
        goes_up = int(rng.integers(2))
        u = rng.random()
        if is_resampled:
            explored[key] = quantile(values, u)
        elif isinstance(values, list):
            index = values.index(config[key]) + (1 if goes_up else -1)
            explored[key] = values[min(max(index, 0), len(values) - 1)]
        else:
            scaled = config[key] * FACTORS[goes_up]
            explored[key] = float(min(max(scaled, values["low"]), values["high"]))
    return explored
