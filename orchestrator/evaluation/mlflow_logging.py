"""Log the scores of an evaluation on the MLflow run that its checkpoint belongs to."""

import logging
from pathlib import Path

from aml.errors import UserError
from orchestrator import tracking
from orchestrator.evaluation.results import read_evaluation
from orchestrator.evaluation.robustness import METRICS
from orchestrator.storage import storage_root

logger = logging.getLogger(__name__)

LOGGED_FILES = ("about.json", "metrics.json", "breakdown.json", "robustness.json")
"""Files of an evaluation that MLflow gets; the rows of single sentences stay in its folder."""


def log_evaluation(checkpoint: Path, out: Path) -> None:
    """Log an evaluation on the MLflow run of its checkpoint.

    The metrics are eval/<data set>/<split>/<protocol>[/<corruption>-<severity>]/<score>, at the
    checkpoint's epoch; the files go under evaluations/<name of OUT>. Nothing is logged where the
    checkpoint belongs to no run, or its run is not tracked, or was copied elsewhere. A failure of
    MLflow is reported to the person and not raised, as the scores are in OUT in any case.

    Args:
        checkpoint: The checkpoint's folder.
        out: The evaluation's folder.
    """
    owner = tracking.checkpoint_owner(checkpoint)
    if owner is None:
        return
    run, key = owner
    experiment = run.experiment()
    root = storage_root(experiment.storage.root)
    # MLflow knows a run by its place under the storage root; a copy elsewhere is not that run.
    if experiment.tracking.uri == "none" or root != run.folder.parent:
        return
    uri = tracking.tracking_uri(experiment.tracking.uri, root)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return
    about, metrics = read_evaluation(out)
    try:
        with run.locked():
            tracker = tracking.open_tracker(run, experiment)
            source = {"splits": {}} | about["data"]
            described = [
                tracking.describe_dataset(source, split, "evaluation") for split in about["splits"]
            ]
            tracker.data(key, described)
            tracker.metrics(key, about["epoch"] or 0, mlflow_metrics(about, metrics))
            for name in LOGGED_FILES:
                if (Path(out) / name).exists():
                    folder = f"evaluations/{Path(out).absolute().name}"
                    tracker.artifact(key, Path(out) / name, folder)
            problem = tracker.close(60 if tracker.ready(30) else 0)
    except UserError as error:
        problem = f"not logged in MLflow: {error}"
    logger.info(problem or f"logged on {run.name}{'' if key == 'train' else f' {key}'} in MLflow")


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
