"""Tune's trial scheduler: the arms' own schedulers, the budget, and the ledger.

The budget is checked here and not in a tune.Stopper: Tune asks stoppers first, and a scheduler
never sees a result at which a stopper ends the trial. The ledger is written before Tune is told.
"""

import logging
import time
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from aml.training import vacuous_mask
from orchestrator.config import Experiment
from orchestrator.search import BudgetTracker, Plan, ThroughputEstimator
from orchestrator.sweep.ledger import TrialEnd, TrialRecorder
from orchestrator.sweep.progress import ProgressTable
from orchestrator.sweep.trial_table import NotPickled, RunningTrial, StopRequest, TrialTable
from orchestrator.sweep.tune.arm_schedulers import GO_ON, PAUSE, STOP, ArmSchedulers, Verdict

logger = logging.getLogger(__name__)

METRIC_PREFIXES = ("train", "val", "robust", "aml", "time", "mem", "optim")
"""Families of the loop's metrics; Tune adds keys of its own to each result."""


class PerArmScheduler(NotPickled, FIFOScheduler):
    """Decide on each result whether its trial goes on.

    It has nine collaborators, since every reason to end a trial meets here.
    """

    def __init__(
        self,
        *,
        experiment: Experiment,
        plan: Plan,
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
            plan: Holds paused trials, and continues them.
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
        self.plan = plan
        self.arms = arms
        self.trials = trials
        self.recorder = recorder
        self.budget = budget
        self.estimator = estimator
        self.progress = progress
        self.stop = stop

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Take in a result, write the ledger where the trial has ended, and answer Tune.

        A trial that is done or has failed returns by itself: stopping it would leave a distributed
        trial's workers to be cleaned up.
        """
        end = self.handle_result(trial.config["trial"], result)
        is_stopped = end is not None and end.state == "stopped"
        return TrialScheduler.STOP if is_stopped else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        """Tell the arm's scheduler of a trial that has ended, not of one that is paused."""
        self.take_out(trial.config["trial"])

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Tell the arm's scheduler of a trial that Tune gave up."""
        self.take_out(trial.config["trial"])

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Tell the arm's scheduler of a trial that ended before it ran."""
        self.take_out(trial.config["trial"])

    def take_out(self, trial_id: str) -> None:
        """Take an ended search trial out of its arm's scheduler, where it has one."""
        if self.stop.is_requested or trial_id in self.plan.held:
            return
        arm, stage, _ = self.plan.counts.parse(trial_id)
        if stage == "search":
            self._follow(self.arms.on_end(trial_id, arm))

    def _follow(self, verdict: Verdict) -> None:
        """Stop and continue the paused trials that a verdict names."""
        for trial_id in verdict.stopped:
            if not self.stop.error:
                self.recorder.complete_held(trial_id, self.experiment.search.scheduler.name)
        for trial_id in verdict.resumed:
            self.plan.resume_trial(trial_id)

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
        # The arm's scheduler is asked before anything that only cuts the trial short.
        verdict = GO_ON
        if spec.stage == "search":
            verdict = self.arms.on_result(spec.id, spec.arm, epoch)
        reason = ""
        if verdict.decision == STOP:
            reason = self.experiment.search.scheduler.name
        elif self.stop.is_requested:
            return TrialEnd("stopped", "interrupt")  # not in the ledger: the trial goes on later
        elif self._is_over_time(spec.id):
            reason = "time"
        elif self.budget.check("running", ""):
            reason = "budget"
        end = None
        if reason:
            stopped = TrialEnd("stopped", reason)
            end = self.recorder.complete_trial(spec.id, stopped, last_epoch=number)
        elif verdict.decision == PAUSE:
            end = self.recorder.hold_trial(spec.id, epoch)
        self._follow(verdict)
        if end is not None:
            return end
        if spec.pause_at_epoch and number >= spec.pause_at_epoch:
            return self.recorder.pause_trial(spec.id, epoch)
        return None

    def _is_over_time(self, trial_id: str) -> bool:
        limit = self.experiment.search.budget.trial_hours
        return limit is not None and self.trials.seconds(trial_id) > limit * 3600
