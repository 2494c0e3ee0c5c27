"""Measure how soon a search finds a good setting: python -m orchestrator bench search LEDGER

The trainings are those of a ledger in which a whole grid was trained, as in tabular benchmarks of
architecture search: a search is played through the project's own plan and the arms' own schedulers,
and an epoch of a trial is looked up instead of trained. Neither Ray nor a model starts.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aml.errors import UserError
from aml.training import ENDED
from orchestrator.benchmarks.search_table import SearchTable, Setting, are_numbers, read_table
from orchestrator.config import PACKAGES, Experiment, from_dict
from orchestrator.search import Plan, TrialSpec
from orchestrator.sweep import PAUSE, STOP, ArmSchedulers

logger = logging.getLogger(__name__)

METHODS = ("grid", "random", "tpe", "hyperopt", "bayesopt")

SCHEDULERS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "asha, grace 1": {"name": "asha", "grace": 1, "reduction": 3},
    "asha, grace 2": {"name": "asha", "grace": 2, "reduction": 3},
    "median, grace 1": {"name": "median_stopping_rule", "grace_period": 1},
    "median, grace 2": {"name": "median_stopping_rule", "grace_period": 2},
    "hyperband": {"name": "hyperband", "reduction_factor": 3},
}
"""The schedulers that are played, and their settings.

Population-based training is not among them: its trials change their settings on the way, and no
table has what a setting scores when it goes on from another's checkpoint.
"""

BUDGETS = (0.125, 0.25, 0.5, 1.0)
"""Parts of the whole grid's epochs after which the best known setting is looked at."""

CONCURRENT = 2
"""Trials that run at a time; each takes as long for an epoch as any other."""


class Found(NamedTuple):
    """The best setting that a search knew of when one of its trials had ended."""

    epochs: int
    """Epochs that all its trials had been trained by then."""
    setting: Setting


def measure_search(
    ledger: Path, arm: str | None = None, metric: str = "val/mIoU", repetitions: int = 20
) -> dict[str, Any]:
    """Play every search method with every scheduler, log the results and return them.

    A search has found a good setting when the best that it knows (`Plan`'s own choice: the best
    last score among the trials that got furthest) lies within the interval around the best of the
    table (`SearchTable.margin`) and does so from then on. Each search has as many trials as the
    grid has settings.

    Args:
        ledger: ledger.jsonl of a sweep that trained a whole grid, with second seeds.
        arm: The arm whose trials are read; None where the ledger has one alone.
        metric: A metric of every epoch of which more is better.
        repetitions: Searches of each kind. They differ in the seed of the method, in the order in
            which the grid's values are listed, and in the seed whose training a trial gets.

    Returns:
        What the table holds, and under "rows" for each method and scheduler: `epochs` (the median
        over the repetitions, and the quartiles) until a good setting was found, null where that
        many did not find one; `ratio`, the median divided by that of the grid without a scheduler;
        `ratio_to_whole`, the median divided by the epochs of the whole grid, after which alone a
        grid knows its best setting; `good_at`, for each of BUDGETS the share of repetitions whose
        best known setting was good when they had trained such a part of the whole grid's epochs;
        `found`, the share of repetitions that ended at a good setting; `searched`, the epochs of a
        whole search, as a mean.

    Raises:
        UserError: The ledger makes no table, or repetitions is below 1.
    """
    if repetitions < 1:
        raise UserError(f"bench search was asked for {repetitions} repetitions; give 1 or more")
    table = read_table(ledger, arm, metric)
    best = dict(zip(table.space, table.best, strict=True))
    logger.info(
        f"{table.arm}: {len(table.curves)} settings of {', '.join(table.space)}, "
        f"{table.trainings} trainings of {table.epochs} epochs; the best is {best} with {metric} "
        f"{table.score(table.best):.4f} +- {table.margin:.4f}, and {len(table.good)} settings lie "
        "within that"
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it comments on small brackets
    rows: list[dict[str, Any]] = []
    for method in _methods(table):
        for scheduler in SCHEDULERS:
            rows.append(_row(table, method, scheduler, repetitions, rows))
            logger.info(_line(rows[-1]))
    return {
        "arm": table.arm,
        "metric": metric,
        "settings": len(table.curves),
        "trainings": table.trainings,
        "epochs": table.epochs,
        "best": best,
        "score": round(table.score(table.best), 5),
        "margin": round(table.margin, 5),
        "good": len(table.good),
        "repetitions": repetitions,
        "concurrent": CONCURRENT,
        "rows": rows,
    }


def _methods(table: SearchTable) -> Iterator[str]:
    """Yield the methods that can be played, and log why another is left out."""
    for method in METHODS:
        module, package = PACKAGES.get(method, ("", ""))
        if module and find_spec(module) is None:
            logger.info(f"{method} is left out: it needs pip install {package}")
        elif method == "bayesopt" and not all(map(are_numbers, table.space.values())):
            logger.info("bayesopt is left out: it takes ranges, and the grid is not of numbers")
        else:
            yield method


def _row(
    table: SearchTable, method: str, scheduler: str, repetitions: int, before: list[dict]
) -> dict[str, Any]:
    """Return the row of a method with a scheduler; the first of `before` is the grid's."""
    needed, searched = [], []
    good = dict.fromkeys(BUDGETS, 0)
    whole = len(table.curves) * table.epochs
    for repetition in range(repetitions):
        found = replay(table, method, scheduler, repetition)
        needed.append(epochs_until_good(table, found))
        searched.append(found[-1].epochs)
        for part in BUDGETS:
            good[part] += is_good_at(table, found, part * whole)
    low, middle, high = (float(q) for q in np.quantile(needed, (0.25, 0.5, 0.75), method="higher"))
    grid = before[0]["epochs"][0] if before else middle
    return {
        "method": method,
        "scheduler": scheduler,
        "epochs": [_finite(middle), _finite(low), _finite(high)],
        "ratio": round(middle / grid, 3) if grid and math.isfinite(middle) else None,
        "ratio_to_whole": round(middle / whole, 3) if math.isfinite(middle) else None,
        "good_at": {part: round(count / repetitions, 3) for part, count in good.items()},
        "found": round(sum(map(math.isfinite, needed)) / repetitions, 3),
        "searched": round(statistics.fmean(searched), 1),
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _line(row: dict[str, Any]) -> str:
    middle, low, high = ("never" if n is None else f"{n:.0f}" for n in row["epochs"])
    ratios = (row["ratio"], row["ratio_to_whole"])
    parts = (
        "" if None in ratios else " ({:.2f} of the grid's, {:.2f} of a whole grid)".format(*ratios)
    )
    shares = ", ".join(f"{share:.0%} at {part:g}" for part, share in row["good_at"].items())
    return (
        f"{row['method']:<9} {row['scheduler']:<16} {middle:>5} epochs, quartiles {low} to {high}"
        f"{parts}; good: {shares} of a whole grid's epochs, {row['found']:.0%} at the end, "
        f"which is at {row['searched']:.0f} epochs"
    )


def epochs_until_good(table: SearchTable, found: list[Found]) -> float:
    """Return the epochs after which a search's best setting was good and stayed so; inf: never.

    Args:
        table: The table that says what is good.
        found: The best settings known, in the order of time.
    """
    needed = math.inf
    for step in reversed(found):
        if step.setting not in table.good:
            break
        needed = step.epochs
    return needed


def is_good_at(table: SearchTable, found: list[Found], epochs: float) -> bool:
    """Return whether the best setting that a search knew after so many epochs was good.

    A search that has ended before keeps what it knew.

    Args:
        table: The table that says what is good.
        found: The best settings known, in the order of time.
        epochs: Epochs that all trials together had been trained.
    """
    known = [step for step in found if step.epochs <= epochs]
    return bool(known) and known[-1].setting in table.good


def settings_of(table: SearchTable, method: str, scheduler: str, repetition: int) -> Experiment:
    """Return the settings of a sweep that searches the table's space.

    Args:
        table: The table.
        method: Search method. A grid lists its values in an order of the repetition, since a
            person does not know at which end the good ones are; bayesopt takes ranges, and its
            proposals are rounded to the nearest setting of the table.
        scheduler: One of SCHEDULERS.
        repetition: The seed of the sweep.
    """
    draw = np.random.default_rng([repetition, 1])
    space: dict[str, Any] = {
        key: [values[i] for i in draw.permutation(len(values))]
        for key, values in table.space.items()
    }
    if method == "bayesopt":
        space = {k: {"low": min(values), "high": max(values)} for k, values in space.items()}
    return from_dict(
        {
            "name": "replay",
            "seed": repetition,
            "data": {"train": "none"},
            "train": {"epochs": table.epochs},
            "search": {
                "arms": [table.arm],
                "space": space,
                "method": method,
                "scheduler": SCHEDULERS[scheduler],
                "trials": len(table.curves),
                "metric": table.metric,
                "seeds": {"confirm": 0},
            },
        }
    )


def replay(table: SearchTable, method: str, scheduler: str, repetition: int) -> list[Found]:
    """Play one search to its end and return the best settings it knew on the way."""
    return Replay(table, settings_of(table, method, scheduler, repetition)).run()


class Replay:
    """One search whose epochs are looked up.

    The trials that run take turns, an epoch each.
    """

    def __init__(self, table: SearchTable, experiment: Experiment) -> None:
        self.table = table
        self.plan = Plan(experiment)
        self.arms = ArmSchedulers(experiment, self.plan.epochs, self.plan.search.per_arm)
        self.draw = np.random.default_rng([experiment.seed, 2])
        self.curves: dict[str, list[float]] = {}
        self.specs: dict[str, TrialSpec] = {}
        self.histories: dict[str, list[dict]] = {}
        self.epochs = 0
        self.found: list[Found] = []

    def run(self) -> list[Found]:
        running: deque[TrialSpec] = deque()
        while True:
            while len(running) < CONCURRENT and (spec := self.plan.suggest()):
                self._begin(spec)
                running.append(spec)
            if not running:
                return self.found
            spec = running.popleft()
            if self._train_epoch(spec):
                running.append(spec)

    def _begin(self, spec: TrialSpec) -> None:
        if spec.id in self.specs:  # it was paused
            return
        seeds = self.table.curves[self.table.nearest(spec.overrides)]
        self.specs[spec.id] = spec
        self.curves[spec.id] = seeds[self.draw.integers(len(seeds))]
        self.histories[spec.id] = []

    def _train_epoch(self, spec: TrialSpec) -> bool:
        """Look up the next epoch of a trial and return whether it runs on."""
        self.epochs += 1
        history = self.histories[spec.id]
        score = self.curves[spec.id][len(history)]
        epoch = {"epoch": len(history) + 1, self.table.metric: score, ENDED: float(self.epochs)}
        history.append(epoch)
        runs_on = False
        if len(history) == self.table.epochs:
            self._end(spec.id, "done")
            verdict = self.arms.on_end(spec.id, spec.arm)
        else:
            verdict = self.arms.on_result(spec.id, spec.arm, epoch)
            if verdict.decision == STOP:
                self._end(spec.id, "stopped")
            elif verdict.decision == PAUSE:
                self.plan.hold_trial(spec, len(history))
            else:
                runs_on = True
        for trial_id in verdict.stopped:
            self._end(trial_id, "stopped")
        for trial_id in verdict.resumed:
            self.plan.resume_trial(trial_id)
        return runs_on

    def _end(self, trial_id: str, state: str) -> None:
        spec, history = self.specs[trial_id], self.histories[trial_id]
        record = {
            "trial": trial_id,
            "arm": spec.arm,
            "stage": spec.stage,
            "state": state,
            "stopped_by": self.plan.experiment.search.scheduler.name if state == "stopped" else "",
            "overrides": spec.overrides,
            "epochs": len(history),
            "history": history,
        }
        self.plan.on_trial_complete(record)
        best = self.plan.results.best_record(spec.arm)
        assert best is not None  # every epoch of the table has a score
        self.found.append(Found(self.epochs, self.table.nearest(best["overrides"])))
