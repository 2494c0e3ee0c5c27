"""Population-based training of one arm, in generations: pure bookkeeping.

Every member trains `interval` epochs; then the worst go on from copies of the best, with settings perturbed (Jaderberg et al. 2017,
"Population Based Training of Neural Networks"). A generation waits for all of its members, so that who copies whom depends on scores and
seed alone, on any number of machines and however often the sweep was killed.
"""

import math
import zlib

import numpy as np

from orchestrator.config import Experiment
from orchestrator.search.space import quantile

FACTORS = (0.8, 1.2)

"""A number is multiplied by one of them (Jaderberg et al.)."""


class Population:
    """The members of an arm, what they were set to from which epoch on, and who has finished the generation."""

    def __init__(
        self, experiment: Experiment, arm: str, size: int, epochs: int, decisions: list[dict] = ()
    ):
        """decisions: of earlier generations, as `decide` gave them."""
        self.search, self.seed, self.arm, self.size, self.epochs = (
            experiment.search,
            experiment.seed,
            arm,
            size,
            epochs,
        )
        self.sign = 1 if self.search.mode == "max" else -1
        self.decisions = list(decisions)
        self.starts: dict[str, dict] = {}
        """Settings that each member began with."""
        self.scores: dict[str, float | None] = {}
        """Of the members that have finished this generation."""
        self.gone: set[str] = set()
        """Members that failed, or were stopped for good."""

    @property
    def begun(self) -> int:
        """Epochs done when the generation began."""
        return self.search.pbt.interval * len(self.decisions)

    @property
    def until(self) -> int:
        """Epochs done when it ends."""
        return min(self.epochs, self.begun + self.search.pbt.interval)

    @property
    def staying(self) -> set[str]:
        """Members that have not ended."""
        return self.starts.keys() - self.gone

    def complete(self, closed: bool = False) -> bool:
        """Whether all members have finished the generation.   closed: no member joins any more"""
        joined = closed or len(self.starts) == self.size
        return (
            joined
            and bool(self.staying)
            and self.until < self.epochs
            and self.staying <= self.scores.keys()
        )

    def decide(self) -> dict:
        """End a complete generation.   -> {"epoch", "scores", "moves": {trial: {"from": trial, "overrides": settings}}}

        As many of the worst as of the best: the quantile of the members, rounded up, at most half of them. A member without a score is worst.
        """
        alive = {trial: self.scores[trial] for trial in sorted(self.scores.keys() - self.gone)}
        ranked = sorted(
            alive, key=lambda trial: -math.inf if alive[trial] is None else self.sign * alive[trial]
        )  # stable: equal ones by name
        count = min(len(ranked) // 2, math.ceil(self.search.pbt.quantile * len(ranked)))
        rng = np.random.default_rng([self.seed, zlib.crc32(self.arm.encode()), len(self.decisions)])
        moves = {}
        for trial in ranked[:count]:
            donor = ranked[len(ranked) - count + int(rng.integers(count))]
            moves[trial] = {
                "from": donor,
                "overrides": explore(self.search, self.settings(donor), rng),
            }
        decision = {"epoch": self.until, "scores": alive, "moves": moves}
        self.decisions.append(decision)
        self.scores = {}
        return decision

    def settings(self, trial: str) -> dict:
        """What the member trains with now."""
        return self.path(trial)[-1][1]

    def path(self, trial: str) -> list[list]:
        """[[epochs done, settings from there on], ...]: how the weights that the member now has were trained."""
        return self._path(trial, len(self.decisions))

    def _path(self, trial: str, generations: int) -> list[list]:
        for k in range(generations - 1, -1, -1):
            if move := self.decisions[k]["moves"].get(trial):
                return [
                    *self._path(move["from"], k),
                    [self.decisions[k]["epoch"], move["overrides"]],
                ]
        return [[0, self.starts[trial]]]


def explore(search, settings: dict, rng: np.random.Generator) -> dict:
    """Each searched number times 0.8 or 1.2 within its range, each listed value to a neighbour; some drawn anew from the space."""
    changed = dict(settings)
    for key in sorted(search.space.keys() & settings.keys()):
        values, anew, up, u = (
            search.space[key],
            rng.random() < search.pbt.resample,
            int(rng.integers(2)),
            rng.random(),
        )
        if anew:
            changed[key] = quantile(values, u)
        elif isinstance(values, list):
            place = values.index(settings[key]) + (1 if up else -1)
            changed[key] = values[min(max(place, 0), len(values) - 1)]
        else:
            changed[key] = float(
                min(max(settings[key] * FACTORS[up], values["low"]), values["high"])
            )
    return changed
