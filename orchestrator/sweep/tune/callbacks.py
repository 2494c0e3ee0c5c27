"""Tune's callbacks: MLflow runs, progress, and trials that time out or lose their process."""

import contextlib
import logging
from typing import Any

from ray.tune import Callback

from orchestrator import cluster, storage
from orchestrator.config import ResourcesConfig
from orchestrator.sweep.ledger import MlflowRuns, SpentTime, TrialEnd, TrialRecorder
from orchestrator.sweep.progress import ProgressTable
from orchestrator.sweep.trial_table import NotPickled, StopRequest, TrialTable

logger = logging.getLogger(__name__)


class MlflowCallback(NotPickled, Callback):
    """Open a trial's MLflow run when the trial starts.

    Epochs and the end of a run are logged with the ledger (TrialRecorder): Tune calls the
    scheduler, which ends trials, before it calls this.
    """

    def __init__(self, mlflow: MlflowRuns, trials: TrialTable) -> None:
        self.mlflow = mlflow
        self.trials = trials

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.mlflow.start_trial(self.trials.running[trial.config["trial"]])


class PendingTrials:
    """Logs once that trials wait for room in the cluster."""

    def __init__(self, resources: ResourcesConfig, trials: TrialTable) -> None:
        self.resources = resources
        self.trials = trials
        self.last: frozenset[str] = frozenset()
        """Trials that waited at the last look."""
        self.is_logged = False

    def log(self, pending: frozenset[str]) -> None:
        """Log trials that waited at the last look too, once until none waits.

        Args:
            pending: Trials that Tune found no room for, or whose room was lost. Not used for
                distributed trials: Tune sees only their drivers, which always have room.
        """
        with contextlib.suppress(Exception):  # Ray's head node does not answer
            if not self.resources.light:
                started = self.trials.started_ids()
                pending = frozenset(name for name in started if cluster.is_pending(name))
            before = self.last
            self.last = pending
            if not before & pending:
                self.is_logged = False
            elif not self.is_logged:
                logger.info(
                    f"{len(pending)} trial(s) wait: each needs "
                    f"{cluster.required_resources(self.resources)}, and the cluster has "
                    f"{cluster.available_resources(self.resources)} free; without room they start "
                    "when others end, or nodes come"
                )
                self.is_logged = True


class ProgressCallback(NotPickled, Callback):
    """Show starts, log an interruption and waiting trials, and save what was spent."""

    def __init__(
        self,
        progress: ProgressTable,
        trials: TrialTable,
        spent: SpentTime,
        pending: PendingTrials,
        stop: StopRequest,
    ) -> None:
        """Create the callback.

        Args:
            progress: The table that shows trials.
            trials: The running trials.
            spent: Saved about once a minute.
            pending: Looked at about once a minute.
            stop: Announced at Tune's next step.
        """
        self.progress = progress
        self.trials = trials
        self.spent = spent
        self.pending = pending
        self.stop = stop

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        """Do what is due; Tune calls this several times a second."""
        self.stop.announce()
        if self.spent.is_due:
            self.spent.save()
            waiting = (t.config["trial"] for t in trials if t.status == t.PENDING)
            self.pending.log(frozenset(waiting))

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.progress.start_trial(self.trials.running[trial.config["trial"]].summary_row)


class LostTrialCallback(NotPickled, Callback):
    """End trials that time out, lose their process, or return before their last epoch."""

    def __init__(
        self,
        run: storage.Run,
        trials: TrialTable,
        recorder: TrialRecorder,
        stop: StopRequest,
        epoch_timeout_s: float | None,
    ) -> None:
        """Create the callback.

        Args:
            run: The run whose trial folders are cleaned up.
            trials: The running trials.
            recorder: Writes the end of a trial.
            stop: A request to stop: trials that end because of it are not failed.
            epoch_timeout_s: Seconds a trial may take for an epoch; None: no limit.
        """
        self.run = run
        self.trials = trials
        self.recorder = recorder
        self.stop = stop
        self.epoch_timeout_s = epoch_timeout_s

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        """Kill running trials that have timed out."""
        for trial in trials:
            if trial.status == trial.RUNNING and self.check_timeout(trial.config["trial"]):
                cluster.kill_trial(trial)

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.trials.start(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """End a trial that Tune gave up after its restarts."""
        trial_id = trial.config["trial"]
        self.fail_trial(trial_id, last_line(trial))
        self.drop_drafts(trial_id)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """End a trial whose function returned before its last epoch without an exception.

        This has not been seen yet, and must not pass in silence.
        """
        self.fail_trial(trial.config["trial"], "the trial ended before its last epoch")

    def check_timeout(self, trial_id: str) -> bool:
        """Fail a trial that has been silent for too long.

        Returns:
            Whether it was, so that its process must be killed.
        """
        limit = self.epoch_timeout_s
        trial = self.trials.get(trial_id)
        if limit is None or trial is None or trial.silent_s() <= limit:
            return False
        error = (
            f"no epoch was finished in {limit:g} s (resources.epoch_timeout_s), so it was killed; "
            "raise that limit if it was only slow"
        )
        self.recorder.complete_trial(trial_id, TrialEnd("failed", "timeout"), error)
        return True

    def fail_trial(self, trial_id: str, error: str) -> None:
        """Fail a trial that still counts as running, unless the sweep was interrupted."""
        if self.trials.get(trial_id) and not self.stop.is_requested:
            self.recorder.complete_trial(trial_id, TrialEnd("failed", "error"), error)

    def drop_drafts(self, trial_id: str) -> None:
        """Delete temporary files left by a trial whose process died for good."""
        storage.drop_drafts(self.run.folder / "trials" / trial_id)


def last_line(trial: Any) -> str:
    """Return the innermost error of a failed Tune trial, in one line."""
    error = trial.get_pickled_error() or trial.get_error()
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    name = type(cause).__name__
    return f"{name}: {lines[-1].strip()[:300]}" if lines else name
