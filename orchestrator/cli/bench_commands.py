"""Commands that measure; each prints JSON on its last line.

bench trial, scale, search, data, readers.
"""

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import typer

from aml.errors import UserError
from orchestrator.cli.options import echo

app = typer.Typer()
bench_app = typer.Typer(no_args_is_help=True, help="Measure; JSON on the last line.")
app.add_typer(bench_app, name="bench")


@bench_app.command()
def trial(
    epochs: Annotated[int, typer.Option(help="Alternating epochs of each loop.")] = 10,
    distributed: Annotated[
        bool,
        typer.Option("--distributed/--no-distributed", help="Also start one distributed trial."),
    ] = True,
) -> None:
    """Measure a trial's start-up, and its epoch against the plain loop's."""
    from orchestrator import benchmarks

    echo(json.dumps(benchmarks.measure_trial(epochs=epochs, distributed=distributed)))


@bench_app.command()
def scale(
    trials: Annotated[
        list[int] | None,
        typer.Option(
            help="Trials of a sweep; repeat it for several sizes. Default: 100, 1000 and 10000."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="grid, random or tpe.")] = "random",
) -> None:
    """Measure the driver's time, memory and MLflow calls for sweeps of many trivial trials."""
    from orchestrator import benchmarks

    echo(json.dumps(benchmarks.measure_scale(trials or [100, 1000, 10000], method)))


@bench_app.command()
def search(
    ledger: Annotated[
        Path,
        typer.Argument(
            metavar="LEDGER", help="ledger.jsonl of a sweep that trained a whole grid, seeds too."
        ),
    ],
    arm: Annotated[
        str | None, typer.Option(help="The arm that is read. Default: the only one.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="A metric of every epoch of which more is better.")
    ] = "val/mIoU",
    repetitions: Annotated[int, typer.Option(help="Searches of each kind.")] = 20,
) -> None:
    """Measure after how many epochs each search method and scheduler has found a good setting."""
    from orchestrator import benchmarks

    found = benchmarks.measure_search(ledger, arm, metric=metric, repetitions=repetitions)
    echo(json.dumps(found))


@bench_app.command()
def data(
    images: Annotated[int, typer.Option(help="Generated pictures of 640 px.")] = 2000,
    size: Annotated[int, typer.Option(metavar="PX", help="Side of the network image.")] = 448,
    samples: Annotated[
        int, typer.Option(help="Of the published way, about so many are timed.")
    ] = 3000,
) -> None:
    """Measure reading of data, in samples a second and core, against a DataLoader as published."""
    from orchestrator import benchmarks

    if importlib.util.find_spec("moto") is None:
        raise UserError(
            "bench data reads from an S3 server of its own, and moto, which has it, is not "
            "installed; install requirements-dev.txt (make env)"
        )
    echo(json.dumps(benchmarks.measure_data(images=images, size=size, samples=samples)))


@bench_app.command()
def readers(
    images: Annotated[
        list[int] | None,
        typer.Option(help="Numbers of images; repeat it. Default: 2000, 20000 and 200000."),
    ] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="PX", help="Sides of the network image; repeat it. Default: 64, 224 and 448."
        ),
    ] = None,
    processes: Annotated[
        list[int] | None,
        typer.Option(
            "--readers",
            help="Processes that read at a time; repeat it. Default: 1, 2, 4 and 8.",
        ),
    ] = None,
    side: Annotated[
        int, typer.Option(metavar="PX", help="Longer side of the generated pictures.")
    ] = 640,
    samples: Annotated[int, typer.Option(help="Samples that each reader takes, about.")] = 3000,
) -> None:
    """Measure how time and memory of reading grow with images, image size and readers."""
    from orchestrator import benchmarks

    found = benchmarks.measure_readers(
        images or [2000, 20000, 200000],
        size or [64, 224, 448],
        processes or [1, 2, 4, 8],
        side=side,
        samples=samples,
    )
    echo(json.dumps(found))
