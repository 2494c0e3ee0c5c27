"""Checkpoints of a run, after and within epochs, and its epochs.jsonl."""

import json
import time
from pathlib import Path

from aml.training import Learner, judged_by, save_checkpoint
from orchestrator.config import Experiment
from orchestrator.storage import add_note
from orchestrator.training.context import RunContext
from orchestrator.utils import atomic_write, without_nan

PREEMPTION_SAVE_S = 30.0
"""Seconds between checkpoints of a run that has been told to shut down or whose node is drained."""


class RunCheckpointer:
    """Save a run into last/ in the middle of an epoch (aml.training.MidEpochCheckpointer).

    It saves every resources.save_every_s. When the run is told to shut down or its node is
    drained, it saves at once and then every PREEMPTION_SAVE_S seconds until the process ends.
    """

    def __init__(
        self, learner: Learner, experiment: Experiment, folder: Path, context: RunContext
    ) -> None:
        self.learner = learner
        self.experiment = experiment
        self.folder = folder
        self.context = context
        self.saved_at = time.monotonic()
        self.saved_for = ""
        """The notice for which the run was saved last."""
        self.every = 1 if learner.world.size == 1 else 16
        """Most steps between two calls of `due`: ranks wait for each other to agree on it."""

    def begin(self) -> None:
        """Answer a notice that came during set-up: no step was done, so nothing is to be saved."""
        self.saved_for = self.context.should_checkpoint()
        if self.saved_for and self.learner.world.rank == 0:
            text = f"{self.saved_for}: nothing is to be saved, as no step was done since the start"
            if self.learner.progress.step or self.learner.progress.epoch:
                text = f"{self.saved_for}: nothing is to be saved, as no step was done since last/"
            add_note(self.folder, text)
            self.context.on_checkpoint()

    def due(self) -> bool:
        """Return whether the run should be saved now."""
        seconds = time.monotonic() - self.saved_at
        save_every_s = self.experiment.resources.save_every_s
        if notice := self.context.should_checkpoint():
            return notice != self.saved_for or seconds >= PREEMPTION_SAVE_S
        return save_every_s is not None and seconds >= save_every_s

    def save(self) -> None:
        """Save the run; only rank 0 writes."""
        self.saved_at = time.monotonic()
        self.saved_for = self.context.should_checkpoint()
        learner = self.learner
        if learner.world.rank != 0:
            return
        progress = learner.progress
        metrics = progress.history[-1] if progress.history else {}
        save_checkpoint(
            self.folder / "last",
            learner.model,
            checkpoint_info(self.experiment, self.context.arm, metrics, "last epoch"),
            learner.state_dict(),
        )
        if self.saved_for:
            where = f"step {progress.step} of epoch {progress.epoch + 1}"
            add_note(self.folder, f"{self.saved_for}: saved at {where}")
        self.context.on_checkpoint()


def checkpoint_info(
    experiment: Experiment, arm: str | None, metrics: dict, selected_by: str
) -> dict:
    """Return the metadata of a checkpoint.

    Args:
        experiment: The settings of the run.
        arm: See `RunContext.arm`.
        metrics: Metrics of the last finished epoch; none before the first has ended.
        selected_by: Why this epoch, in words.
    """
    return {
        "image_size": experiment.data.size,
        "fit": experiment.data.fit,
        "threshold": experiment.evaluate.threshold,
        "precision": experiment.train.precision,
        "arm": arm or experiment.aml.arm,
        "seed": experiment.seed,
        "epoch": metrics.get("epoch", 0),
        "selected_by": selected_by,
        "metrics": without_nan(metrics),
    }


def save_epoch(
    learner: Learner,
    experiment: Experiment,
    folder: Path,
    metrics: dict,
    *,
    is_best: bool,
    arm: str | None = None,
) -> None:
    """Save a finished epoch: best/ if it is the best, last/ with its state, then its line.

    Args:
        learner: The learner after the epoch.
        experiment: The settings of the run.
        folder: The folder of the run or trial.
        metrics: The metrics of the epoch.
        is_best: Whether the epoch has the best validation score so far.
        arm: See `RunContext.arm`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_best:
        best_by = f"best {judged_by(experiment.evaluate.select)}"
        info = checkpoint_info(experiment, arm, metrics, best_by)
        save_checkpoint(folder / "best", learner.model, info)
    info = checkpoint_info(experiment, arm, metrics, "last epoch")
    save_checkpoint(folder / "last", learner.model, info, learner.state_dict())
    write_history(folder, learner)


def write_history(folder: Path, learner: Learner) -> None:
    """Write epochs.jsonl: a line of metrics for each finished epoch."""
    lines = "".join(json.dumps(without_nan(metrics)) + "\n" for metrics in learner.progress.history)
    atomic_write(folder / "epochs.jsonl", lines.encode())
