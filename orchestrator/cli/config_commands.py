"""Commands about settings: init, config show, explain, schema, reference."""

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator import config as settings
from orchestrator.cli.examples import program
from orchestrator.cli.options import Config, Overrides, echo, echo_written

app = typer.Typer()
config_app = typer.Typer(
    no_args_is_help=True, help="Settings: what an experiment resolves to, what may be set."
)
app.add_typer(config_app, name="config")


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Of the experiment; NAME.yaml is written here.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where your data are: REFER's files, a table, or shards. Default: the current "
            "folder, and generated scenes where it holds none.",
        ),
    ] = None,
) -> None:
    """Write a commented experiment for your data and this machine; it asks nothing."""
    from orchestrator import proposal, storage

    root = storage.storage_root()
    echo_written(proposal.write_experiment(name, data, root, program=program()))


@config_app.command()
def show(config: Config, overrides: Overrides = None) -> None:
    """Print the resolved settings as YAML, each with what set it."""
    echo(settings.show_settings(config, overrides or []))


@config_app.command()
def explain(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="A setting or a section; default: all.")
    ] = None,
) -> None:
    """Explain a setting: its meaning, type, bounds and default."""
    echo(settings.explain_settings(key))


@config_app.command()
def schema() -> None:
    """Print a JSON Schema of experiment files, for editors."""
    print(json.dumps(settings.json_schema(), indent=1))


@config_app.command()
def reference() -> None:
    """Print the settings reference, which is docs/settings.md."""
    print(settings.settings_reference(), end="")
