"""Commands that start runs and look after them: train, sweep, reproduce, runs, stop, prune."""

import json
import os
import signal
from typing import Annotated

import typer

from aml.errors import UserError
from orchestrator.cli.options import (
    Config,
    Fresh,
    Json,
    Overrides,
    Resume,
    echo,
    initial_weights,
)

app = typer.Typer()


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = None,
    fresh: Fresh = False,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT", help="Start from these weights; a published .pth file will do."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and start nothing.")
    ] = False,
) -> int:
    """Train one model with the settings of CONFIG, on one or many workers."""
    from orchestrator.config import load

    experiment = load(config, overrides or [])
    announce(experiment)
    from orchestrator import training

    return training.train(
        experiment, resume=resume, fresh=fresh, init=initial_weights(init), dry_run=dry_run
    )


@app.command()
def sweep(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = None,
    fresh: Fresh = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print trials, placement, estimated time and the seeds that differences between "
            "arms need; start nothing.",
        ),
    ] = False,
    difference: Annotated[
        list[float] | None,
        typer.Option(
            metavar="POINTS",
            help="With --dry-run: the difference in mIoU to plan for. May be repeated. "
            "Default: 0.5, 1, 2, 3.",
        ),
    ] = None,
    seed_spread: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="With --dry-run: the standard deviation over seeds of two arms' difference. "
            "Default: that of earlier runs of this experiment.",
        ),
    ] = None,
) -> int:
    """Search settings in every arm, confirm the best on fresh seeds, compare, report.

    A CONFIG with a section `matrix` names data sets and models: each pair is a sweep of its own,
    whose arms are then scored on the test splits, and one table is written of all.
    """
    if (difference or seed_spread is not None) and not dry_run:
        raise UserError(
            "--difference and --seed-spread ask about a plan; give --dry-run with them, or set "
            "search.seeds.confirm"
        )
    from orchestrator.config import load, load_matrix

    matrix = load_matrix(config, overrides or [])
    if matrix and (resume or fresh):
        raise UserError(
            "--resume and --fresh are about one run, and a matrix has many; give the matrix "
            "another name=NAME to start it anew"
        )
    experiment = matrix.cells[0].experiment if matrix else load(config, overrides or [])
    announce(experiment, matrix.name if matrix else "")
    from orchestrator import search

    asked = bool(difference) or seed_spread is not None
    question = search.power_question(difference or [], seed_spread, config) if dry_run else None
    if matrix:
        from orchestrator.matrix import describe_matrix, run_matrix

        if not dry_run:
            return run_matrix(matrix)
        echo(describe_matrix(matrix, question if asked else None))
        return 0
    from orchestrator.sweep import run_sweep

    return run_sweep(experiment, resume=resume, fresh=fresh, plan_for=question).code


def announce(experiment, name: str = "") -> None:
    """Print, before anything starts, where the results of an experiment go.

    Args:
        experiment: Its settings.
        name: Of a matrix that the experiment is part of.
    """
    from orchestrator import storage, tracking

    root = storage.storage_root(experiment.storage.root)
    bucket = storage.bucket_of(root)
    place = f"{bucket}, by way of {root}" if bucket else root
    echo(f"{name or experiment.name}: results go to {place}")
    if not bucket or experiment.tracking.uri == "none":
        return
    store = tracking.tracking_uri(experiment.tracking.uri, root)
    if store.startswith("sqlite:"):
        echo(
            f"note: MLflow's store is a file of this machine ({store}); set MLFLOW_TRACKING_URI "
            "to a server that outlives it"
        )


@app.command()
def reproduce(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A training, or one trial of a sweep as RUN:TRIAL.")
    ],
    as_json: Json = False,
) -> int:
    """Train a run or trial again and compare its metrics; exit code 1 where they differ."""
    from orchestrator import storage
    from orchestrator.sweep import reproduce_run

    found = reproduce_run(run, storage.storage_root())
    if as_json:
        echo(json.dumps(found))
    return 0 if found["agrees"] else 1


@app.command()
def runs() -> None:
    """List the runs: state, best score, disk."""
    from orchestrator import storage

    root = storage.storage_root()
    found = storage.list_runs(root)
    for run in found:
        echo(storage.run_line(run))
    lost = {str(run.state.get("name")) for run in found if storage.is_lost(run)}
    if lost:
        from orchestrator import tracking

        for text in tracking.end_lost(root, lost):
            echo(text)
    if not found:
        echo(f"no runs under {root}")


@app.command()
def stop(name: str) -> None:
    """Interrupt a run of this machine; its state is saved and the same command continues it."""
    from orchestrator import storage

    root = storage.storage_root()
    live = [
        run
        for run in storage.list_runs(root)
        if storage.lock_holder(run) and run.state.get("name") == name
    ]
    run = live[0] if live else storage.find_run(root, name)
    pid = storage.lock_holder(run)
    if pid is None:
        raise UserError(
            f"{run.name} is not being worked on by any process of this machine; nothing to stop"
        )
    os.kill(pid, signal.SIGINT)
    echo(f"asked process {pid} to stop {run.name}")


@app.command()
def prune() -> None:
    """Remove what only unfinished runs need from finished ones: training states, logs."""
    from orchestrator import storage

    for text in storage.prune_runs(storage.storage_root()) or ["nothing to remove"]:
        echo(text)
