"""Log the scores of an evaluation on the MLflow run that its checkpoint belongs to."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from aml.errors import UserError
from orchestrator import tracking
from orchestrator.evaluation.results import read_evaluation
from orchestrator.evaluation.robustness import METRICS
from orchestrator.storage import storage_root

if TYPE_CHECKING:
    from orchestrator.tracking.tracker import TrackerBase

logger = logging.getLogger(__name__)

LOGGED_FILES = ("about.json", "metrics.json", "breakdown.json", "robustness.json")
"""Files of an evaluation that MLflow gets; the rows of single sentences stay in its folder."""


def log_evaluation(checkpoint: Path, out: Path) -> None:
    """Log an evaluation on the MLflow run of its checkpoint: see `log_evaluations`.

    Args:
        checkpoint: The checkpoint's folder.
        out: The evaluation's folder.
    """
    log_evaluations({checkpoint: out}, Path(out).absolute().name)


def log_evaluations(outs: Mapping[Path, Path], name: str) -> None:
    """Log evaluations of checkpoints of one run on their MLflow runs.

    The metrics are eval/<data set>/<split>/<protocol>[/<corruption>-<severity>]/<score>, at the
    checkpoint's epoch; the files go under evaluations/<name>. Nothing is logged where the
    checkpoints belong to no run, or their run is not tracked, or was copied elsewhere. A failure of
    MLflow is reported to the person and not raised, as the scores are in the folders in any case.

    Args:
        outs: The evaluation's folder by the checkpoint's folder.
        name: What MLflow calls the evaluation.
    """
    owners = {out: tracking.checkpoint_owner(checkpoint) for checkpoint, out in outs.items()}
    keys = {out: owner[1] for out, owner in owners.items() if owner}
    run = next((owner[0] for owner in owners.values() if owner), None)
    if run is None:
        return
    experiment = run.experiment()
    root = storage_root(experiment.storage.root)
    # MLflow knows a run by its place under the storage root; a copy elsewhere is not that run.
    if experiment.tracking.uri == "none" or root != run.folder.parent:
        return
    uri = tracking.tracking_uri(experiment.tracking.uri, root)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return
    try:
        with run.locked():
            tracker = tracking.open_tracker(run, experiment)
            for out, key in keys.items():
                _log(tracker, key, out, f"evaluations/{name}")
            problem = tracker.close(60 if tracker.ready(30) else 0)
    except UserError as error:
        problem = f"not logged in MLflow: {error}"
    trials = "" if set(keys.values()) == {"train"} else f" {', '.join(keys.values())}"
    logger.info(problem or f"logged on {run.name}{trials} in MLflow")


def _log(tracker: "TrackerBase", key: str, out: Path, folder: str) -> None:
    """Log an evaluation.

    Args:
        tracker: The tracker of its run.
        key: The key of the run, or of the trial in it.
        out: The evaluation's folder.
        folder: Where its files go in MLflow.
    """
    about, metrics = read_evaluation(out)
    source = {"splits": {}} | about["data"]
    described = [
        tracking.describe_dataset(source, split, "evaluation") for split in about["splits"]
    ]
    tracker.data(key, described)
    tracker.metrics(key, about["epoch"] or 0, mlflow_metrics(about, metrics))
    for file in LOGGED_FILES:
        if (Path(out) / file).exists():
            tracker.artifact(key, Path(out) / file, folder)


def mlflow_metrics(about: dict, metrics: dict[str, dict]) -> dict[str, float]:
    """Return the scores under their MLflow names.

    Clean pictures have all their scores, corrupted ones mIoU and oIoU.

    Args:
        about: What about.json holds.
        metrics: What metrics.json holds.
    """
    found: dict[str, float] = {}
    for key, scores in metrics.items():
        split, _, corruption = key.partition("/")
        parts = ["eval", about["data"]["dataset"], split, about["protocol"]]
        if corruption:
            parts.append(corruption.replace(":", "-"))
        prefix = "/".join(parts)
        for name, value in scores.items():
            if not corruption or name in METRICS:
                found[f"{prefix}/{name}"] = value
    return found
