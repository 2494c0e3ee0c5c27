"""Records of a sweep that outlive its driver: MLflow runs, ledger.jsonl, generations."""

import contextlib
import logging
import time
from typing import NamedTuple

from aml.errors import NotSaved, RunError
from orchestrator import config, storage, tracking
from orchestrator.config import Experiment
from orchestrator.search import BudgetTracker, Generations, Plan, ThroughputEstimator
from orchestrator.sweep.progress import ProgressTable
from orchestrator.sweep.trial_table import RunningTrial, StopRequest, TrialTable
from orchestrator.tracking import TrackerBase

logger = logging.getLogger(__name__)

SWEEP_KEY = "sweep"
"""The tracker's key of the parent run."""

TRANSIENT_REASONS = ("disk", "away")
"""Trials that ended because the disk was full or shards did not answer: the same command continues
them."""

RESUMABLE_REASONS = ("budget", *TRANSIENT_REASONS)
"""Reasons for which a trial ended that lie outside of the trial."""

SAVE_SPENT_S = 60.0
"""Seconds between two saves of what was spent: a driver that is killed loses no more of it."""


class TrialEnd(NamedTuple):
    """The end of a trial, or of its PBT segment."""

    state: str
    """done, stopped or failed."""
    stopped_by: str


class MlflowRuns:
    """The MLflow runs of a sweep: a parent, and a child for each trial."""

    def __init__(
        self, tracker: TrackerBase, run: storage.Run, experiment: Experiment, plan: Plan
    ) -> None:
        self.tracker = tracker
        self.run = run
        self.experiment = experiment
        self.plan = plan
        self.varying = {
            "seed",
            "aml.tau",
            "aml.rho",
            "aml.mode",
            "aml.preset",
            "aml.rate",
            *experiment.search.dimensions,
        }
        """Settings that differ between trials: params of the children, not of the parent."""

    def start_sweep(self) -> None:
        """Open the parent run.

        Its params are the fixed settings that differ from the defaults; config.yaml, an artifact,
        has all of them.
        """
        defaults = config.defaults_of(self.experiment)
        fixed = self.experiment.params(self.varying).items()
        params = {key: value for key, value in fixed if value != defaults.get(key)}
        tags = tracking.run_tags(self.run) | {"sweep": self.run.name}
        self.tracker.run(SWEEP_KEY, self.run.name, params=params, tags=tags, watch_machine=True)
        tracking.log_dataset(self.tracker, SWEEP_KEY, self.run, self.experiment)
        self.tracker.artifact(SWEEP_KEY, self.run.folder / "config.yaml")

    def start_trial(self, trial: RunningTrial) -> None:
        """Open a trial's run, or open it again after its process was lost.

        Its params are those the trial began with, since MLflow's params cannot change.
        """
        spec = trial.spec
        initial = self.plan.initial_spec(spec)
        leaves = trial.experiment.leaves()
        row = trial.summary_row
        if initial is not spec:
            leaves = initial.experiment(self.experiment).leaves()
            row = initial.describe(self.experiment)
        params = {k: leaves[k] for k in self.varying if k in leaves and k != "seed"}
        params |= row["params"]
        tags = tracking.run_tags(self.run) | {
            "sweep": self.run.name,
            "trial_id": spec.id,
            "seed": spec.seed,
            "arm": spec.arm,
            "stage": spec.stage,
        }
        suffix = " confirm" if spec.stage == "confirm" else ""
        self.tracker.run(
            spec.id,
            f"{spec.arm} tau={row['tau']:g} rho={row['rho']:g} seed={spec.seed}{suffix}",
            parent=SWEEP_KEY,
            params={k: v for k, v in params.items() if v is not None},
            tags=tags,
        )
        tracking.log_dataset(self.tracker, spec.id, self.run, trial.experiment)

    def log_epoch(self, trial: RunningTrial, epoch: dict) -> None:
        """Log an epoch's metrics, and a PBT member's present settings as metrics."""
        metric = self.experiment.search.objective.metric
        metrics = {metric: epoch.get(metric)} | epoch  # MLflow's comparison opens with the first
        if trial.spec.pause_at_epoch:
            overrides = trial.spec.overrides.items()
            metrics |= {f"setting/{k}": v for k, v in overrides if isinstance(v, (int, float))}
        judged = [objective.metric for objective in self.experiment.search.objectives]
        self.tracker.epoch(trial.id, metrics, judged)

    def end_trial(self, trial_id: str, end: TrialEnd, error: str) -> None:
        """Upload the trial's last pictures and close its run."""
        pictures = self.run.folder / "trials" / trial_id / "pictures"
        for picture in sorted(pictures.glob("*.png"))[-1:]:
            self.tracker.artifact(trial_id, picture, "pictures")
        status = "FAILED" if end.state == "failed" else "FINISHED"
        tags = {"stopped_by": end.stopped_by or tracking.COMPLETED}
        if error:
            tags["error"] = error
        self.tracker.end(trial_id, status, tags=tags)


class SpentTime:
    """The time spent, saved in sweep.json for the next attempt."""

    def __init__(self, run: storage.Run, budget: BudgetTracker) -> None:
        self.run = run
        self.budget = budget
        self.saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """True when the last save is older than SAVE_SPENT_S."""
        return time.monotonic() - self.saved_at > SAVE_SPENT_S

    def save(self) -> None:
        """Save it; a full disk is left to the ledger and the trials to report."""
        self.saved_at = time.monotonic()
        with contextlib.suppress(NotSaved):
            self.run.update(spent=self.budget.spent())


class GenerationStep:
    """End generations of the sweep's populations, in the plan and on disk."""

    def __init__(
        self, plan: Plan, generations: Generations, trials: TrialTable, stop: StopRequest
    ) -> None:
        self.plan = plan
        self.generations = generations
        self.trials = trials
        self.stop = stop

    def finish_complete(self) -> bool:
        """Finish each PBT generation whose members have all reported.

        The decision is on disk, and its exploits are made, before any member resumes.

        Returns:
            Whether a generation was finished.
        """
        count = 0
        while not self.stop.error and (finished := self.plan.finish_generation()):
            count += 1
            try:
                for text in self.generations.finish(*finished):
                    logger.info(text)
            except RunError as error:
                self.stop.fail(error)
            # Making exploits may have taken a minute, in which the driver heard no report.
            self.trials.forgive_silence()
        return count > 0 and not self.stop.error


class TrialRecorder:
    """Write what trials report and how they end: MLflow first, then the ledger, then the plan.

    In that order a driver that is killed between the first two trains the trial again, which opens
    its MLflow run again. The other way round nobody would close the MLflow run of a trial that is
    in the ledger. Tune is told by the caller, after the ledger is written.
    """

    def __init__(
        self,
        *,
        run: storage.Run,
        plan: Plan,
        trials: TrialTable,
        mlflow: MlflowRuns,
        estimator: ThroughputEstimator,
        progress: ProgressTable,
        spent: SpentTime,
        generation_step: GenerationStep,
        stop: StopRequest,
    ) -> None:
        self.run = run
        self.plan = plan
        self.trials = trials
        self.mlflow = mlflow
        self.estimator = estimator
        self.progress = progress
        self.spent = spent
        self.generation_step = generation_step
        self.stop = stop

    def record_epoch(self, trial: RunningTrial, epoch: dict) -> None:
        """Add an epoch that is not known yet to the trial's history and to MLflow."""
        trial.add_epoch(epoch)
        self.mlflow.log_epoch(trial, epoch)

    def log_notes(self, trial: RunningTrial) -> None:
        """Log the notes of the trial's process that are new."""
        notes = storage.read_notes(self.run.folder / "trials" / trial.id)
        for text in notes[trial.notes_logged :]:
            logger.info(f"note: {trial.id}: {text}")
        trial.notes_logged = len(notes)

    def pause_trial(self, trial_id: str, epoch: dict) -> TrialEnd:
        """Take in that a member of a population waits for the others of its generation."""
        trial = self.trials.pause(trial_id)
        # Its next segment begins with this history.
        self._download_history(trial_id)
        self.plan.pause_trial(trial.spec, epoch)
        self.progress.pause_trial(trial_id)
        self.generation_step.finish_complete()
        return TrialEnd("stopped", "turn")

    def hold_trial(self, trial_id: str, epoch: dict) -> TrialEnd:
        """Take in that its arm's scheduler pauses a trial, which goes on from its checkpoint."""
        trial = self.trials.pause(trial_id)
        self._download_history(trial_id)
        self.plan.hold_trial(trial.spec, epoch["epoch"])
        self.progress.pause_trial(trial_id)
        if not self.plan.experiment.resources.light:
            self.trials.release_placement_group(trial_id)
        return TrialEnd("stopped", "pause")

    def complete_held(self, trial_id: str, scheduler: str) -> None:
        """Complete a paused trial that its arm's scheduler stops for good."""
        spec, last_epoch = self.plan.held[trial_id]
        history = storage.read_history(self.run.folder / "trials" / trial_id)
        self.trials.add(spec, spec.experiment(self.plan.experiment), history)
        self.complete_trial(trial_id, TrialEnd("stopped", scheduler), last_epoch=last_epoch)

    def complete_trial(
        self, trial_id: str, end: TrialEnd, error: str = "", *, last_epoch: int | None = None
    ) -> TrialEnd:
        """Write a trial's end to MLflow and the ledger, then tell the plan.

        Args:
            trial_id: The trial.
            end: How it ended.
            error: Why it failed.
            last_epoch: The epoch after which it was stopped. A distributed trial's workers train
                on meanwhile, and their later epochs are not part of its result. None: all epochs.

        Returns:
            `end`.
        """
        trial, seconds = self.trials.remove(trial_id)
        # The report downloads it again; until then the history of what was reported is enough.
        self._download_history(trial_id)
        self.log_notes(trial)
        record = self._record(trial, end, error, seconds, last_epoch)
        self.mlflow.end_trial(trial_id, end, error)
        try:
            self.run.append(record)
        except NotSaved as not_saved:  # the next command continues the trial
            self.stop.fail(not_saved)
            return end
        self.plan.on_trial_complete(record)
        self.estimator.add_trial(record)
        self.spent.save()
        self.progress.complete_trial(record)
        if end.state != "done" and not self.plan.experiment.resources.light:
            self.trials.release_placement_group(trial_id)
        self.generation_step.finish_complete()
        return end

    def _download_history(self, trial_id: str) -> None:
        folder = self.run.folder / "trials" / trial_id
        storage.try_download(folder, wanted=storage.without_checkpoints, wait=False)

    def _record(
        self,
        trial: RunningTrial,
        end: TrialEnd,
        error: str,
        seconds: float,
        last_epoch: int | None,
    ) -> dict:
        """Return the trial's ledger record."""
        on_disk = storage.read_history(self.run.folder / "trials" / trial.id)
        epochs = trial.history | {epoch["epoch"]: epoch for epoch in on_disk}
        history = [
            epochs[number]
            for number in sorted(epochs)
            if last_epoch is None or number <= last_epoch
        ]
        record = trial.summary_row | {
            "overrides": trial.spec.overrides,
            "state": end.state,
            "stopped_by": end.stopped_by,
            "error": error,
            "seconds": seconds,
            "epochs": len(history),
            "history": history,
        }
        if path := trial.spec.config_history or self.plan.config_history(trial.id):
            record["path"] = path
        return record
