"""What is known of a cell of a matrix before it runs: its data, its run, the splits to score."""

from dataclasses import replace
from pathlib import Path

from aml.errors import UserError
from orchestrator import config, data, evaluation, reporting, storage
from orchestrator.config import Cell

NOT_YET = "has not run yet"


def results_root(cell: Cell) -> Path:
    """Return the folder in which a cell's run lies."""
    return storage.storage_root(cell.experiment.storage.root)


def shards_of(cell: Cell) -> storage.Filesystem:
    """Return the shards whose splits a cell is scored on."""
    return storage.Filesystem(cell.experiment.data.val_uri, results_root(cell))


def unscored(cell: Cell) -> reporting.CellScores:
    """Return the scores of a cell that has none.

    `problem` says why: it has not run yet, or it cannot run since its settings or data, whose
    manifest is then empty, are not as they must be.
    """
    experiment = cell.experiment
    found = reporting.CellScores(
        data=cell.data,
        model=cell.model,
        network=experiment.model["name"],
        arms=experiment.search.arms,
        protocol=cell.protocol,
        size=experiment.data.size,
        select=experiment.evaluate.select,
        splits=cell.splits or [],
        problem=NOT_YET,
    )
    try:
        config.check_sweep(experiment)
        sources = data.check_sources(experiment.data, results_root(cell))
        return found if sources is None else with_splits(cell, found)
    except UserError as error:
        return replace(found, problem=str(error))


def with_splits(cell: Cell, scores: reporting.CellScores) -> reporting.CellScores:
    """Return scores with the manifest of the shards, and the splits that are scored there.

    Raises:
        UserError: There are no shards, or they lack a split.
    """
    shards = shards_of(cell)
    manifest = data.read_manifest(shards)
    validates = cell.experiment.data.val_split
    every = [s for s in manifest["splits"] if data.is_evaluation(s, cell.experiment.data)]
    every.sort(key=lambda split: split != validates)
    splits = evaluation.chosen_splits(cell.splits or every, manifest, shards)
    return replace(scores, manifest=manifest, splits=splits)


def run_of(cell: Cell) -> storage.Run | None:
    """Return the run of a cell on this machine; None where it has not begun.

    Raises:
        UserError: The cell's data cannot be used.
    """
    root = results_root(cell)
    sources = data.check_sources(cell.experiment.data, root)
    if sources is None:
        return None
    name = cell.experiment.run_name(sources.manifest["fingerprint"])
    run = storage.Run(root / name, "sweep")
    return run if run.state else None
