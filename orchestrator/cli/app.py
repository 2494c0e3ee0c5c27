"""The command line: puts the commands together, and turns errors into sentences and exit codes.

A command imports what it needs when it runs, so that --help and refusals answer at once.
Exit codes: 0 done; 1 the run failed; 2 the input is wrong, with one sentence; 130 interrupted,
state saved.
"""

import io
import signal
import sys
import threading
import traceback
from pathlib import Path

import typer
from typer.core import TyperGroup

from aml import files
from aml.errors import RunError, UserError
from aml.schema import shown
from orchestrator import utils
from orchestrator.cli import (
    bench_commands,
    config_commands,
    data_commands,
    job_commands,
    model_commands,
    report_commands,
    run_commands,
)
from orchestrator.cli.examples import add_examples, first_steps, program

QUIET = "--quiet"
"""Argument of every command that leaves progress out."""


class Interrupted(Exception):
    """SIGINT reached a command that says nothing of interruptions itself."""


class Commands(TyperGroup):
    """Group of commands that tells an interruption from an end: typer would print nothing."""

    def invoke(self, ctx):
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error


app = typer.Typer(
    cls=Commands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    help="Alignment-aware masked learning, measured honestly.",
    epilog=f"With {QUIET}, at any place, a command says what came out and not how it goes.",
)
for commands in (
    data_commands,
    config_commands,
    run_commands,
    model_commands,
    report_commands,
    job_commands,
    bench_commands,
):
    app.add_typer(commands.app)
add_examples(app)


@app.callback()
def without_command(context: typer.Context) -> None:
    """Say how to begin where no command was given."""
    if context.invoked_subcommand is None:
        print(first_steps())


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code.

    Args:
        arguments: The command and its arguments; None: those of the process.
    """
    utils.print_messages()
    utils.learn_secrets(*(sys.argv[1:] if arguments is None else arguments))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, utils.stop_at_once)
    try:
        given = sys.argv[1:] if arguments is None else arguments
        _refuse_empty(given)
        _refuse_completion(given)
        told = _quietened(given)
        utils.break_silence()
        sys.exit(app(told, standalone_mode=False) or 0)
    except (UserError, RunError) as error:
        print(f"error: {utils.redact(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except Interrupted:
        print("interrupted; give the same command again", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # typer brings its own copy of click, whose usage errors are known by these attributes
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            said = io.StringIO()
            error.show(file=said)
            print(utils.redact(said.getvalue()), file=sys.stderr, end="")
            sys.exit(error.exit_code)
        if isinstance(error, OSError) and (text := _failed_place(error)):
            print(f"error: {utils.redact(text)}", file=sys.stderr)
        else:
            print(utils.redact(traceback.format_exc()), file=sys.stderr, end="")
        sys.exit(1)


def _quietened(arguments: list[str]) -> list[str]:
    """Return the arguments without --quiet, which every command takes, at any place.

    `submit` hands it on to the command that it submits.
    """
    if QUIET not in arguments or arguments[0] == "submit":
        return arguments
    utils.quieten()
    return [argument for argument in arguments if argument != QUIET]


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse an empty argument, which would pass for the current folder, or for any run's name."""
    for before, text in zip(["the command", *arguments], arguments, strict=False):
        empty = not text.strip() or (text.startswith("--") and text.endswith("="))
        if empty:
            place = f"the argument after {shown(before)}" if not text.strip() else shown(text)
            raise UserError(
                f"{place} is empty, perhaps of a shell variable that is not set; give a value, or "
                "leave it out"
            )


def _refuse_completion(arguments: list[str]) -> None:
    """Refuse to install completion for what no shell can complete."""
    asked = next((a for a in arguments[:1] if a.endswith("-completion")), "")
    if asked and program() != "amlris":
        raise UserError(
            f"{asked} is for the command amlris, and a shell cannot complete {program()}; pip "
            f"install . gives that command, then run amlris {asked}"
        )


def _failed_place(error: OSError) -> str:
    """Return a sentence about a file that was refused; empty where it is no matter of places."""
    if error.errno in files.FULL and error.filename:
        return files.write_failure(Path(error.filename), error, 0)
    if error.errno in files.FULL:
        why = f"a file could not be written ({error.strerror})"
        return f"{why}; make room and give the same command again"
    if error.errno in files.REFUSED and error.filename:
        return (
            f"{error.filename} cannot be used ({error.strerror}); mend that or choose another place"
        )
    return ""
