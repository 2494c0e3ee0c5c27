"""Tune's trial scheduler: one Tune scheduler for each arm, the budget, and the ledger.

The budget is checked here and not in a tune.Stopper: Tune asks stoppers first, and a scheduler
never sees a result at which a stopper ends the trial. The ledger is written before Tune is told.
"""

import itertools
import logging
import math
import time
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from aml.training import ENDED, vacuous_mask
from orchestrator.config import Experiment
from orchestrator.search import BudgetTracker, ThroughputEstimator
from orchestrator.sweep.ledger import TrialEnd, TrialRecorder
from orchestrator.sweep.progress import ProgressTable
from orchestrator.sweep.trial_table import NotPickled, RunningTrial, StopRequest, TrialTable

logger = logging.getLogger(__name__)

METRIC_PREFIXES = ("train", "val", "aml", "time", "mem", "optim")
"""Families of the loop's metrics; Tune adds keys of its own to each result."""


class _TrialId:
    """The only attribute of a Tune trial that ASHA reads."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class ArmSchedulers:
    """One Tune scheduler for each arm, so that trials compete inside their arm only."""

    def __init__(self, experiment: Experiment, epochs: dict[str, int]) -> None:
        """Create the schedulers.

        Args:
            experiment: The settings of the sweep.
            epochs: Epochs of a trial, by arm.
        """
        self.search = experiment.search
        self.epochs = epochs
        self.by_arm = {arm: make_scheduler(experiment, n) for arm, n in epochs.items()}

    def add(self, trial_id: str, arm: str) -> None:
        """Tell the arm's scheduler of a new trial."""
        if scheduler := self.by_arm[arm]:
            scheduler.on_trial_add(None, _TrialId(trial_id))  # type: ignore[arg-type]  # ASHA

    def stops(self, trial_id: str, arm: str, epoch: dict) -> bool:
        """Return whether the arm's scheduler stops the trial at this epoch."""
        scheduler = self.by_arm[arm]
        if scheduler is None:
            return False
        result = self._result(epoch)
        trial: Any = _TrialId(trial_id)
        decision = scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]  # ASHA
        return decision == TrialScheduler.STOP

    def replay(self, histories: dict[str, tuple[str, list[dict]]]) -> set[str]:
        """Tell the schedulers the results of an earlier attempt, so that rungs stand as they stood.

        Results are told in the order in which their epochs ended.

        Args:
            histories: {trial: (arm, history)}.

        Returns:
            The trials that are stopped at their last epoch.
        """
        for trial_id, (arm, _) in histories.items():
            self.add(trial_id, arm)
        is_stopped = {}
        for trial_id, epoch in in_order({t: history for t, (_, history) in histories.items()}):
            arm = histories[trial_id][0]
            is_last = epoch["epoch"] >= self.epochs[arm]
            is_stopped[trial_id] = not is_last and self.stops(trial_id, arm, epoch)
        return {trial_id for trial_id, stops in is_stopped.items() if stops}

    def _result(self, epoch: dict) -> dict:
        """Return what ASHA reads of an epoch.

        ASHA never stops a trial whose metric is NaN, so the worst number stands for NaN.
        """
        value = epoch.get(self.search.metric)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            value = -1e9 if self.search.mode == "max" else 1e9
        number = epoch["epoch"]
        return {"epoch": number, "training_iteration": number, self.search.metric: value}


class PerArmScheduler(NotPickled, FIFOScheduler):
    """Decide on each result whether its trial goes on.

    It has eight collaborators, since every reason to end a trial meets here.
    """

    def __init__(
        self,
        *,
        experiment: Experiment,
        arms: ArmSchedulers,
        trials: TrialTable,
        recorder: TrialRecorder,
        budget: BudgetTracker,
        estimator: ThroughputEstimator,
        progress: ProgressTable,
        stop: StopRequest,
    ) -> None:
        """Create the scheduler.

        Args:
            experiment: The settings of the sweep.
            arms: The Tune schedulers of the arms.
            trials: The running trials.
            recorder: Writes epochs and ends to MLflow and the ledger.
            budget: The limits of the sweep.
            estimator: Learns the seconds of an epoch.
            progress: Shows each epoch.
            stop: A request to end trials at their next epoch.
        """
        super().__init__()
        self.experiment = experiment
        self.arms = arms
        self.trials = trials
        self.recorder = recorder
        self.budget = budget
        self.estimator = estimator
        self.progress = progress
        self.stop = stop

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tell the arm's scheduler of a search trial."""
        spec = self.trials.running[trial.config["trial"]].spec
        if spec.stage == "search":
            self.arms.add(spec.id, spec.arm)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Take in a result, write the ledger where the trial has ended, and answer Tune.

        A trial that is done or has failed returns by itself: stopping it would leave a distributed
        trial's workers to be cleaned up.
        """
        end = self.handle_result(trial.config["trial"], result)
        is_stopped = end is not None and end.state == "stopped"
        return TrialScheduler.STOP if is_stopped else TrialScheduler.CONTINUE

    def handle_result(self, trial_id: str, metrics: dict) -> TrialEnd | None:
        """Take in an epoch or the failure of a trial.

        Args:
            trial_id: The trial.
            metrics: What it reported.

        Returns:
            How the trial ended, if it did: decided, and in the ledger. None: it goes on.
        """
        trial = self.trials.get(trial_id)
        if trial is None:  # the result was on its way when the trial was ended
            return None
        self.stop.announce()  # no step of Tune may follow where this is the last running trial
        trial.last_report_time = time.monotonic()
        self.recorder.log_notes(trial)
        if metrics.get("failed"):
            end = TrialEnd("failed", metrics["kind"])
            return self.recorder.complete_trial(trial_id, end, metrics["failed"])
        epoch = {
            key: value
            for key, value in metrics.items()
            if key == "epoch" or key.split("/")[0] in METRIC_PREFIXES
        }
        if epoch["epoch"] not in trial.history:
            self._take_in(trial, epoch)
        return self._decide(trial, epoch)

    def _take_in(self, trial: RunningTrial, epoch: dict) -> None:
        """Record and show an epoch that is not known yet."""
        self.recorder.record_epoch(trial, epoch)
        self.estimator.add_epoch(trial.spec.arm, epoch["time/epoch_s"])
        self.progress.on_epoch(trial.summary_row, epoch)
        in_progress = self.budget.epochs_in_progress()
        if text := self.estimator.correction(in_progress, self.budget.spent()):
            logger.info(text)
        if text := vacuous_mask(trial.experiment.aml, epoch):
            logger.info(f"warning: {trial.id}: {text}")

    def _decide(self, trial: RunningTrial, epoch: dict) -> TrialEnd | None:
        """Return how the trial ends at this epoch, if it does."""
        spec = trial.spec
        number = epoch["epoch"]
        if number >= self.arms.epochs[spec.arm]:
            return self.recorder.complete_trial(spec.id, TrialEnd("done", ""))
        reason = ""
        # The arm's scheduler is asked before anything that only cuts the trial short.
        if spec.stage == "search" and self.arms.stops(spec.id, spec.arm, epoch):
            reason = self.experiment.search.scheduler.name
        elif self.stop.is_requested:
            return TrialEnd("stopped", "interrupt")  # not in the ledger: the trial goes on later
        elif self._is_over_time(spec.id):
            reason = "time"
        elif self.budget.check("running", ""):
            reason = "budget"
        if reason:
            end = TrialEnd("stopped", reason)
            return self.recorder.complete_trial(spec.id, end, last_epoch=number)
        if spec.pause_at_epoch and number >= spec.pause_at_epoch:
            return self.recorder.pause_trial(spec.id, epoch)
        return None

    def _is_over_time(self, trial_id: str) -> bool:
        limit = self.experiment.search.budget.trial_hours
        return limit is not None and self.trials.seconds(trial_id) > limit * 3600


def make_scheduler(experiment: Experiment, epochs: int) -> ASHAScheduler | None:
    """Return ASHA for an arm whose trials train `epochs` epochs; None without ASHA."""
    search = experiment.search
    if search.scheduler.name != "asha":
        return None
    return ASHAScheduler(
        time_attr="epoch",
        metric=search.metric,
        mode=search.mode,
        max_t=epochs,
        grace_period=min(search.scheduler.grace, max(1, epochs - 1)),
        reduction_factor=search.scheduler.reduction,
    )


def in_order(histories: dict[str, list[dict]]) -> list[tuple[str, dict]]:
    """Return (trial, epoch) in the order in which epochs ended.

    A trial's own epochs stay in their order, whatever the clocks of its machines showed.
    """
    told = []
    for trial_id, history in histories.items():
        ended = itertools.accumulate((epoch.get(ENDED) or 0.0 for epoch in history), max)
        told += [(when, trial_id, epoch) for when, epoch in zip(ended, history, strict=True)]
    return [(trial_id, epoch) for _, trial_id, epoch in sorted(told, key=lambda entry: entry[0])]
