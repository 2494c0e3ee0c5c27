"""Open a run's tracker, log its data set, end the runs of lost processes, deliver what waits."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import storage
from orchestrator.config import Experiment
from orchestrator.storage import Run, storage_root
from orchestrator.tracking import mlflow_server
from orchestrator.tracking.queue import QUEUE

if TYPE_CHECKING:  # imported when a tracker is opened, since the module imports torch
    from orchestrator.tracking.tracker import TrackerBase

logger = logging.getLogger(__name__)

COMPLETED = "completed"
"""What MLflow's tag `stopped_by` says of a run that nothing stopped."""


def end_lost(root: Path, names: set[str] | None = None) -> list[str]:
    """Set the MLflow runs that lost processes left RUNNING to KILLED.

    Each run that is set to KILLED is logged as a warning.

    Args:
        root: Storage root.
        names: Names of the experiments to look at; None: all.

    Returns:
        A sentence for each experiment that could not be looked at.
    """
    problems = []
    for name in [None] if names is None else sorted(names):
        try:
            mlflow_server.reconcile(mlflow_server.tracking_uri(None, root), name)
        except ConnectionError as error:
            problems.append(str(error))
    return problems


def open_tracker(run: Run, experiment: Experiment) -> "TrackerBase":
    """Return a tracker to MLflow, or one in memory if tracking.uri is none."""
    from orchestrator.tracking.mlflow_tracker import Tracker
    from orchestrator.tracking.tracker import MemoryTracker

    uri = experiment.tracking.uri
    if uri == "none":
        return MemoryTracker(run.folder)
    root = storage_root(experiment.storage.root)
    return Tracker(run.folder, uri, experiment.name, root)


def run_tags(run: Run) -> dict[str, Any]:
    """Return the tags that a run and all trials of it have: where code and data are from.

    MLflow shows mlflow.source.name as the source.
    """
    state = run.state
    return {
        "git_sha": state["git_sha"],
        "git_dirty": state["git_dirty"],
        "data_fingerprint": state["data"]["fingerprint"],
        "mlflow.source.name": state["command"],
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": state["git_sha"],
    }


def log_dataset(tracker: "TrackerBase", run_key: str, run: Run, experiment: Experiment) -> None:
    """Log the splits that a run trains and validates on as its inputs in MLflow.

    Args:
        tracker: Tracker of the run folder.
        run_key: Key of the run or trial.
        run: Run, whose state describes the data set.
        experiment: Settings of the run or trial.
    """
    data = run.state["data"]
    contexts = {
        "training": experiment.data.train_split,
        "validation": experiment.data.val_split,
    }
    tracker.data(
        run_key,
        [describe_dataset(data, split, context) for context, split in contexts.items()],
    )


def describe_dataset(data: dict[str, Any], split: str, context: str) -> dict[str, Any]:
    """Return the description of a split that TrackerBase.data takes.

    Args:
        data: uri, dataset, split_by, fingerprint and splits (counts by split) of a data set.
        split: Name of the split.
        context: training, validation or evaluation.
    """
    return {
        "name": f"{data['dataset']}-{data['split_by']}/{split}",
        "digest": data["fingerprint"],
        "uri": data["uri"],
        "counts": data["splits"].get(split, {}),
        "context": context,
    }


def deliver_tracking(run: Run, experiment: Experiment) -> None:
    """Give MLflow and the bucket what they missed of a finished run."""
    for problem in storage.upload_from_every_node(run.folder):
        logger.info(problem)
    if experiment.tracking.uri == "none" or not (run.folder / QUEUE).exists():
        return
    tracker = open_tracker(run, experiment)
    waiting = tracker.pending
    remaining = tracker.close(60 if tracker.ready() else 0)
    logger.info(
        remaining
        or f"MLflow has been given the {waiting} tracking operations of {run.name} that it missed"
    )
