"""Open a run's tracker, log its data set, end the runs of lost processes, deliver what was missed."""

from pathlib import Path

from orchestrator import storage
from orchestrator.config import Experiment
from orchestrator.storage import Run, storage_root


def end_lost(root: Path, names: set[str] | None = None) -> list[str]:
    """MLflow's runs (of some experiments; None: of all) that a process which is gone left RUNNING become KILLED, which MLflow's log says.

    -> why they could not be looked at
    """
    from orchestrator.tracking.mlflow_server import reconcile, tracking_uri

    problems = []
    for name in [None] if names is None else sorted(names):
        try:
            reconcile(tracking_uri(None, root), name)
        except ConnectionError as error:
            problems.append(str(error))
    return problems


def open_tracker(run: Run, experiment: Experiment):
    """MLflow as the experiment says, or its double in memory for tracking.uri none."""
    from orchestrator.tracking.queue import Tracker
    from orchestrator.tracking.tracker import MemoryTracker

    if experiment.tracking.uri == "none":
        return MemoryTracker(run.folder)
    return Tracker(
        run.folder, experiment.tracking.uri, experiment.name, storage_root(experiment.storage.root)
    )


def log_dataset(tracker, key: str, run: Run, experiment: Experiment) -> None:
    """The splits that a run trains and validates on, as its inputs in MLflow."""
    data = run.state["data"]
    read = ((experiment.data.train_split, "training"), (experiment.data.val_split, "validation"))
    tracker.data(key, [describe_dataset(data, split, context) for split, context in read])


def describe_dataset(data: dict, split: str, context: str) -> dict:
    """A split as the tracker takes it.   data: uri, dataset, split_by, fingerprint, splits (counts by split)"""
    name = f"{data['dataset']}-{data['split_by']}/{split}"
    return {
        "name": name,
        "digest": data["fingerprint"],
        "uri": data["uri"],
        "counts": data["splits"].get(split, {}),
        "context": context,
    }


def deliver_tracking(run: Run, experiment: Experiment, say) -> None:
    """Give MLflow and the bucket what they missed of a finished run, where anything waits."""
    from orchestrator.tracking.queue import QUEUE

    for problem in storage.upload_from_every_node(run.folder):
        say(problem)
    if experiment.tracking.uri == "none" or not (run.folder / QUEUE).exists():
        return
    tracker = open_tracker(run, experiment)
    waiting = tracker.pending
    remaining = tracker.close(60 if tracker.ready() else 0)
    say(
        remaining
        or f"MLflow has been given the {waiting} tracking operations of {run.name} that it had missed"
    )
