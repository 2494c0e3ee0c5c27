"""The command line: puts the commands together, and turns errors into sentences and exit codes.

A command imports what it needs when it runs, so that --help and refusals answer at once.
Exit codes: 0 done; 1 the run failed; 2 the input is wrong, with one sentence; 130 interrupted,
state saved.
"""

import errno
import signal
import sys
import threading
import traceback

import typer
from typer.core import TyperGroup

from aml.errors import RunError, UserError
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
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Alignment-aware masked learning, measured honestly.",
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


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code.

    Args:
        arguments: The command and its arguments; None: those of the process.
    """
    utils.print_messages()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, utils.stop_at_once)
    try:
        sys.exit(app(arguments, standalone_mode=False) or 0)
    except (UserError, RunError) as error:
        print(f"error: {utils.redact(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except Interrupted:
        print("interrupted; give the same command again", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # typer brings its own copy of click, whose usage errors are known by these attributes
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(error.exit_code)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            print(
                f"error: {error.filename or 'a file'} could not be written ({error.strerror}); "
                "make room, then give the same command again",
                file=sys.stderr,
            )
        else:
            print(utils.redact(traceback.format_exc()), file=sys.stderr, end="")
        sys.exit(1)
