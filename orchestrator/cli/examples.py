"""An example of every command, which its --help ends with, and what is said without a command."""

import os
import sys
from collections.abc import Iterator

import typer
from typer.models import CommandInfo

EXAMPLES = {
    "init": "init mine --data REFER",
    "synth": "synth scenes --dataset refcoco --images 2000",
    "shard": "shard --refer-root REFER --images COCO --dataset refcoco --out data/refcoco",
    "data show": "data show data/refcoco --split val --n 12 --out data.html",
    "data diff": "data diff data/refcoco data/refcoco_of_a_colleague --run scores",
    "data audit": "data audit data/refcoco data/mine",
    "config show": "config show experiments/quickstart.yaml aml.tau=0.4",
    "config explain": "config explain aml.tau",
    "config schema": "config schema",
    "config reference": "config reference",
    "train": "train experiments/quickstart.yaml aml.tau=0.4 aml.rho=0.5",
    "sweep": "sweep experiments/quickstart.yaml --dry-run",
    "reproduce": "reproduce quickstart:off-confirm-000",
    "runs": "runs",
    "stop": "stop quickstart",
    "prune": "prune",
    "evaluate": "evaluate quickstart --data data/quickstart --splits val,testA --out scores",
    "predict": 'predict quickstart --image picture.jpg --text "the red star" --out mask.png',
    "demo": "demo quickstart --beside quickstart/off-confirm-000",
    "preview": "preview experiments/quickstart.yaml aml.tau=0.4 --n 16 --out preview.html",
    "rank": "rank quickstart --data data/quickstart --limit 200",
    "compare": "compare quickstart:aml/calibrated quickstart:off",
    "report": "report quickstart --out page",
    "ui": "ui --port 5000",
    "doctor": "doctor",
    "submit": "submit --follow sweep experiments/quickstart.yaml",
    "bench trial": "bench trial --epochs 10",
    "bench scale": "bench scale --trials 100 --method tpe",
    "bench search": "bench search experiments/results/search_grid.ledger.jsonl",
    "bench data": "bench data --images 2000",
    "bench readers": "bench readers --images 2000 --size 224 --readers 2",
}
"""A line for each command as a person types it after the program's name."""

FIRST = (
    ("sweep experiments/quickstart.yaml", "does masking help? a sweep on generated scenes"),
    ("init mine --data FOLDER", "an experiment for your own data and this machine"),
    ("demo quickstart", "drop a picture, type a sentence, see what the model finds"),
)
"""What is shown to a person who gives no command, each with what it does."""


def program() -> str:
    """Return how this process was called, as a person would type it again."""
    own = os.path.basename(sys.argv[0]) == "amlris"
    return "amlris" if own else "python -m orchestrator"


def first_steps() -> str:
    """Return what is said where no command is given."""
    called = program()
    lines = [f"  {called} {command}\n      {what}\n" for command, what in FIRST]
    last = f"{called} --help lists all commands; the --help of each has an example."
    return "\n".join(
        ["Alignment-aware masked learning, measured honestly. Begin with\n", *lines, last]
    )


def commands_of(app: typer.Typer, above: str = "") -> Iterator[tuple[str, CommandInfo]]:
    """Yield the name of each command, with those of its groups, and what typer knows of it."""
    for command in app.registered_commands:
        called = command.name or getattr(command.callback, "__name__", "").replace("_", "-")
        yield f"{above}{called}", command
    for group in app.registered_groups:
        if group.typer_instance:
            name = f"{group.name} " if isinstance(group.name, str) else ""
            yield from commands_of(group.typer_instance, above + name)


def add_examples(app: typer.Typer) -> None:
    """End the help of every command with its example, and that of a group with its first one."""
    for name, command in commands_of(app):
        command.epilog = _example(name)
    said = [app.info.epilog] if isinstance(app.info.epilog, str) else []
    app.info.epilog = " ".join([*said, _example("sweep")])
    for package in app.registered_groups:
        for group in package.typer_instance.registered_groups if package.typer_instance else ():
            first = next(name for name in EXAMPLES if name.startswith(f"{group.name} "))
            group.epilog = _example(first)


def _example(name: str) -> str:
    return f"Example: {program()} {EXAMPLES[name]}" if name in EXAMPLES else ""
