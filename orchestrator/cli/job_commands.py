"""The command that runs others as jobs of a Ray cluster: submit."""

from functools import partial
from pathlib import Path
from typing import Annotated, cast

import typer
from typer.core import TyperGroup

from aml.errors import UserError
from orchestrator.cli.options import echo

app = typer.Typer()

CODE = Path(__file__).parents[2]
"""The folder that holds the packages aml and orchestrator."""


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
    }
)
def submit(
    context: typer.Context,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="The cluster's dashboard.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Print the job's log until it ends, and leave with its exit code."
        ),
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Hand this variable's value over. May be repeated."),
    ] = None,
    secret_from_env: Annotated[
        bool,
        typer.Option("--secret-from-env", help="Even where --env names what looks like a secret."),
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="The cluster's jobs.")] = False,
    stop_: Annotated[
        str | None, typer.Option("--stop", metavar="ID", help="End a job; its state is saved.")
    ] = None,
    logs: Annotated[str | None, typer.Option(metavar="ID", help="What a job has printed.")] = None,
) -> int:
    """Run train, sweep or evaluate as a job of a Ray cluster: submit [OPTIONS] sweep CONFIG ..."""
    asked = [bool(context.args), list_, stop_ is not None, logs is not None]
    if sum(asked) != 1:
        raise UserError(
            "submit needs one thing to do: a command (train, sweep, evaluate), --list, --stop ID "
            "or --logs ID; give one of them"
        )
    from orchestrator import cluster

    if not context.args:
        client = cluster.connect_jobs(address)
        if list_:
            for text in client.lines() or ["no jobs"]:
                echo(text)
        elif logs is not None:
            echo(client.logs(logs))
        elif stop_ and client.stop(stop_):
            echo(f"asked {stop_} to stop")
        else:
            echo(f"{stop_} is over already")
        return 0
    root = project_root()
    group = cast(TyperGroup, context.find_root().command)
    commands = partial(parameters, group)
    command = cluster.check_command(context.args, commands, root)
    handed = cluster.runtime_environment(env or [], secret_from_env=secret_from_env)
    packed = cluster.package_working_dir(root)
    if checkout() is None:
        echo(f"code        of {CODE}: the job gets it together with the files of {root}")
        packed = packed.with_installed(CODE)
    client = cluster.connect_jobs(address)
    job_id = client.submit(command, packed, handed)
    return client.follow(job_id) if follow else 0


def parameters(commands: TyperGroup, name: str, arguments: list[str]) -> dict:
    """Return the parameters that a command's arguments mean, without running it.

    Args:
        commands: The group that holds the command.
        name: The command.
        arguments: What follows its name. Wrong ones raise the command's own usage error.
    """
    return commands.commands[name].make_context(f"orchestrator {name}", list(arguments)).params


def project_root() -> Path:
    """Return the folder a job gets: the checkout, or the present folder where it is installed."""
    return checkout() or Path.cwd()


def checkout() -> Path | None:
    """Return the checkout that this code runs from, None where the code is installed."""
    return CODE if (CODE / "pyproject.toml").exists() else None
