"""The Tune schedulers of a sweep's arms: one each, so that trials compete inside their arm only.

Tune's schedulers are given what they ask a controller and a trial for, and nothing else: each arm
has a `Controller` that knows the arm's search trials. So a scheduler can be told the results of an
earlier attempt before Tune runs, and stands where it stood.
"""

import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from ray.tune import create_scheduler
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from aml.training import ENDED
from orchestrator import search
from orchestrator.config import AshaScheduler, Experiment, Objective

PAUSE = TrialScheduler.PAUSE
STOP = TrialScheduler.STOP


class Verdict(NamedTuple):
    """Decision of an arm's scheduler at a result or the end of a trial."""

    decision: str
    """CONTINUE, PAUSE or STOP, as Tune spells them, for the trial itself."""
    stopped: tuple[str, ...] = ()
    """Paused trials that are stopped for good."""
    resumed: tuple[str, ...] = ()
    """Paused trials that go on."""


GO_ON = Verdict(TrialScheduler.CONTINUE)


class SearchTrial:
    """A search trial as a Tune scheduler sees it."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
        self.status = Trial.RUNNING
        """RUNNING also where the plan has not started it yet, or is about to continue it."""
        self.is_saving = False
        self.last_result: dict = {}

    def __repr__(self) -> str:
        return self.trial_id


class Controller:
    """Answers what a Tune scheduler asks its controller, for the trials of one arm."""

    def __init__(self) -> None:
        self.trials: dict[str, SearchTrial] = {}
        self.scheduler: Any = None
        self.num_paused = 0
        self.stopped: list[str] = []
        """Trials that the scheduler has stopped since the last verdict."""

    def get_trials(self) -> list[SearchTrial]:
        """Return all trials."""
        return list(self.trials.values())

    def get_live_trials(self) -> list[SearchTrial]:
        """Return the trials that have not ended."""
        return [trial for trial in self.trials.values() if trial.status != Trial.TERMINATED]

    def stop_trial(self, trial: SearchTrial) -> None:
        """Stop a paused trial, as the scheduler asks."""
        if trial.status == Trial.TERMINATED:
            return
        self.num_paused -= trial.status == Trial.PAUSED
        trial.status = Trial.TERMINATED
        self.scheduler.on_trial_remove(self, trial)
        self.stopped.append(trial.trial_id)


class ArmSchedulers:
    """The Tune schedulers of all arms."""

    def __init__(self, experiment: Experiment, epochs: dict[str, int], per_arm: int) -> None:
        """Create the schedulers, and tell each of all search trials of its arm.

        A scheduler that compares trials at a rung then waits for those that have not started, too.

        Args:
            experiment: The settings of the sweep.
            epochs: Epochs of a trial, by arm.
            per_arm: Search trials of an arm.
        """
        self.search = experiment.search
        self.epochs = epochs
        self.by_arm = {arm: self._make(arm, n, per_arm) for arm, n in epochs.items()}

    def on_result(self, trial_id: str, arm: str, epoch: dict) -> Verdict:
        """Tell the arm's scheduler an epoch of a running trial, and return what it decides."""
        controller = self.by_arm[arm]
        if controller is None:
            return GO_ON
        trial = controller.trials[trial_id]
        if trial.status == Trial.TERMINATED:
            return Verdict(STOP)
        controller.num_paused -= trial.status == Trial.PAUSED
        trial.status = Trial.RUNNING
        trial.last_result = self._result(epoch)
        decision = controller.scheduler.on_trial_result(controller, trial, trial.last_result)
        if decision == STOP:
            trial.status = Trial.TERMINATED
            controller.scheduler.on_trial_complete(controller, trial, trial.last_result)
        elif decision == PAUSE:
            trial.status = Trial.PAUSED
            controller.num_paused += 1
        return self._verdict(controller, decision)

    def on_end(self, trial_id: str, arm: str) -> Verdict:
        """Tell the arm's scheduler that a trial has ended by itself, at its last epoch or failed.

        Returns:
            Which paused trials are stopped or go on by that.
        """
        controller = self.by_arm[arm]
        trial = controller.trials.get(trial_id) if controller else None
        if controller is None or trial is None or trial.status == Trial.TERMINATED:
            return GO_ON
        controller.num_paused -= trial.status == Trial.PAUSED
        trial.status = Trial.TERMINATED
        if trial.last_result:
            controller.scheduler.on_trial_complete(controller, trial, trial.last_result)
        else:
            controller.scheduler.on_trial_error(controller, trial)
        return self._verdict(controller, TrialScheduler.CONTINUE)

    def replay(
        self, histories: dict[str, tuple[str, list[dict]]], gone: Iterable[str] = ()
    ) -> tuple[set[str], set[str]]:
        """Tell the schedulers the results of an earlier attempt, so that they stand as they stood.

        Results are told in the order in which their epochs ended.

        Args:
            histories: {trial: (arm, history)}.
            gone: Trials of them that ended before their last epoch and not by a scheduler: they
                failed, or their time was over.

        Returns:
            The trials that are stopped, and those that are paused, both after their last epoch.
        """
        stopped: set[str] = set()
        paused: set[str] = set()
        for trial_id, epoch in in_order({t: history for t, (_, history) in histories.items()}):
            arm = histories[trial_id][0]
            is_last = epoch["epoch"] >= self.epochs[arm]
            verdict = self.on_end(trial_id, arm) if is_last else GO_ON
            if not is_last:
                verdict = self.on_result(trial_id, arm, epoch)
            paused -= {trial_id, *verdict.stopped, *verdict.resumed}
            stopped |= {*verdict.stopped, *([trial_id] if verdict.decision == STOP else [])}
            paused |= {trial_id} if verdict.decision == PAUSE else set()
        for trial_id in gone:
            verdict = self.on_end(trial_id, histories[trial_id][0])
            stopped |= {*verdict.stopped}
            paused -= {trial_id, *verdict.stopped, *verdict.resumed}
        return stopped, paused

    def _verdict(self, controller: Controller, decision: str) -> Verdict:
        stopped, controller.stopped = tuple(controller.stopped), []
        resumed = []
        choose = controller.scheduler.choose_trial_to_run
        while controller.num_paused and (trial := choose(controller)):
            controller.num_paused -= 1
            trial.status = Trial.RUNNING
            resumed.append(trial.trial_id)
        return Verdict(decision, stopped, tuple(resumed))

    def _make(self, arm: str, epochs: int, per_arm: int) -> Controller | None:
        """Return the controller and scheduler of an arm whose trials train so many epochs."""
        if self.search.scheduler.name in ("none", "pbt"):
            return None
        controller = Controller()
        controller.scheduler = make_scheduler(self.search.scheduler, self.search.objective, epochs)
        for index in range(per_arm):
            trial = SearchTrial(search.trial_id(arm, "search", index))
            controller.trials[trial.trial_id] = trial
            controller.scheduler.on_trial_add(controller, trial)
        return controller

    def _result(self, epoch: dict) -> dict:
        """Return what Tune's schedulers read of an epoch.

        They never stop a trial whose metric is NaN, so the worst number stands for NaN.
        """
        metric, mode = self.search.objective
        value = epoch.get(metric)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            value = -1e9 if mode == "max" else 1e9
        number = epoch["epoch"]
        return {"epoch": number, "training_iteration": number, metric: value}


def make_scheduler(settings: Any, judged_by: Objective, epochs: int) -> TrialScheduler:
    """Return Tune's scheduler of these settings for trials of so many epochs.

    Args:
        settings: `search.scheduler`, with the names and arguments of Tune; asha has its own.
        judged_by: The metric that trials are compared by.
        epochs: Epochs of a trial.
    """
    arguments = settings.to_dict()
    name = arguments.pop("name")
    if isinstance(settings, AshaScheduler):
        name = "async_hyperband"
        arguments = {"grace_period": settings.grace, "reduction_factor": settings.reduction}
    if "grace_period" in arguments:
        arguments["grace_period"] = min(arguments["grace_period"], max(1, epochs - 1))
    if name != "median_stopping_rule":
        arguments["max_t"] = epochs
    return create_scheduler(
        name, time_attr="epoch", metric=judged_by.metric, mode=judged_by.mode, **arguments
    )


def in_order(histories: dict[str, list[dict]]) -> list[tuple[str, dict]]:
    """Return (trial, epoch) in the order in which epochs ended.

    A trial's own epochs stay in their order, whatever the clocks of its machines showed.
    """
    told = []
    for trial, history in histories.items():
        ended = itertools.accumulate((epoch.get(ENDED) or 0.0 for epoch in history), max)
        told += [(when, trial, epoch) for when, epoch in zip(ended, history, strict=True)]
    return [(trial, epoch) for _, trial, epoch in sorted(told, key=lambda entry: entry[0])]
