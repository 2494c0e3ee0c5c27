"""Commands that show results and surroundings: compare, report, ui, doctor."""

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Json, echo, echo_written, result_place

app = typer.Typer()


@app.command()
def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...",
            help="Runs, RUN:ARM of a sweep, or folders made by evaluate --out.",
        ),
    ],
    metric: Annotated[
        str, typer.Option(help="Of runs: a metric of the epoch that counts, as train/loss.")
    ] = "val/mIoU",
    as_json: Json = False,
) -> None:
    """Tell whether A is better than B, by how much, and how sure that is."""
    from orchestrator import reporting, storage

    found = reporting.compare_runs(sides, storage.storage_root(), metric=metric)
    if as_json:
        echo(json.dumps(found))


@app.command()
def report(
    run: str,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; default: the run's own report/.", parser=result_place),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Show this evaluation too, besides those in the run's folder. May be repeated.",
        ),
    ] = None,
) -> None:
    """Write a run's page and tables again, from its folder alone."""
    from orchestrator import reporting, storage

    folder = Path(run)
    if not folder.is_dir():
        folder = storage.find_run(storage.storage_root(), run).folder
    echo_written(reporting.write_report(folder, out, evaluation or []))


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    host: str = "127.0.0.1",
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Address of a store, as a sweep's last lines give it. Default: MLFLOW_TRACKING_URI"
            ", else mlflow.db in the storage root.",
        ),
    ] = None,
) -> int:
    """Serve the MLflow UI of the tracking store in use, or of another."""
    from orchestrator.cli.surroundings import serve_mlflow_ui

    return serve_mlflow_ui(host, port, store)


@app.command()
def doctor() -> int:
    """Check what is installed, what is reachable, what is missing."""
    from orchestrator.cli.surroundings import check_surroundings

    return check_surroundings()
