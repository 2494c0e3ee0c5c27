"""Functions for notebooks; each does what the command of its name does, and returns the result."""

from pathlib import Path

from aml.conditions import parse_corruptions
from orchestrator import config, data, evaluation, reporting, storage, tracking
from orchestrator.config import Experiment
from orchestrator.notebook.messages import said_in_a_notebook
from orchestrator.notebook.tables import Evaluation, RunResult, Table

COMPARED = ("a", "b", "difference", "low", "high", "p", "p_holm", "n")
"""Columns of a comparison that a notebook shows."""


@said_in_a_notebook
def load(experiment: str | Path, *overrides: str) -> Experiment:
    """Return the settings of an experiment.

    Args:
        experiment: A YAML file.
        overrides: Settings that replace those of the file, as "aml.tau=0.4".

    Raises:
        UserError: The file cannot be read, or a setting is unknown or means nothing.
    """
    return config.load(experiment, overrides)


@said_in_a_notebook
def runs() -> Table:
    """Return the runs of the storage root, the newest first."""
    root = storage.storage_root()
    rows = [storage.run_facts(run) for run in storage.list_runs(root)]
    return Table(rows, f"Runs under {root}")


@said_in_a_notebook
def run_result(run: str) -> RunResult:
    """Return a run as it is, by its name or its experiment's.

    Raises:
        UserError: There is no such run.
    """
    return RunResult(storage.find_run(storage.storage_root(), run))


@said_in_a_notebook
def report(run: str, out: str | Path | None = None) -> RunResult:
    """Write a run's page and tables again, and return the run.

    Args:
        run: Its name, or its experiment's.
        out: Folder; None is the run's own report/.

    Raises:
        UserError: There is no such run, or `out` holds other files.
    """
    found = storage.find_run(storage.storage_root(), run)
    page = reporting.write_report(found.folder, None if out is None else Path(out))
    return RunResult(found, page.absolute().parent)


@said_in_a_notebook
def compare(*sides: str, metric: str = "val/mIoU") -> Table:
    """Tell whether A is better than B; the words are printed, a row for each pair is returned.

    Args:
        sides: Runs, "RUN:ARM" of a sweep, or folders of evaluations.
        metric: Of runs, the validation metric of the epoch that counts.

    Raises:
        UserError: There is nothing to compare, or the sides were not measured alike.
    """
    found = reporting.compare_runs(list(sides), storage.storage_root(), metric=metric)
    rows = found["comparisons"]
    shown = [name for name in COMPARED if rows and name in rows[0]]
    return Table(rows, "Differences a - b, shares in [0, 1], with their 95 % interval", shown)


@said_in_a_notebook
def evaluate(
    checkpoint: str,
    shards: str,
    *,
    out: str | Path,
    splits: str = "val",
    corrupt: str = "",
    protocol: str = "square",
    track: bool = True,
) -> Evaluation:
    """Score a checkpoint on every sentence of splits.

    Args:
        checkpoint: A folder, a run, or models:/NAME@champion.
        shards: A folder of shards, a data set of the storage root, or an address in a bucket.
        out: Folder of the results; new, or filled by an evaluation before.
        splits: As "val,testA".
        corrupt: Corruptions beside the clean pictures, as "fog:3,noise:1"; empty for none.
        protocol: "square" or "original".
        track: Log the scores on the MLflow run that the checkpoint belongs to.

    Raises:
        UserError: One of these is unknown, or `out` holds other files.
    """
    root = storage.storage_root()
    folder = tracking.find_checkpoint(checkpoint, root, None).absolute()
    request = evaluation.EvaluationRequest(
        checkpoint=folder,
        shards=data.named_shards(shards, root),
        splits=[split.strip() for split in splits.split(",")],
        out=Path(out),
        protocol=protocol,
        corruptions=parse_corruptions(corrupt) if corrupt else [],
    )
    scores = evaluation.evaluate_checkpoint(request)
    reporting.write_intervals(Path(out))
    if track:
        evaluation.log_evaluation(folder, Path(out))
    return Evaluation(Path(out), scores)
