"""Messages to a person: modules log them, the command line prints them."""

import logging
import os
import shlex
import shutil
import sys
import threading
from pathlib import Path

from orchestrator.utils.progress import has_spoken, progress_logger
from orchestrator.utils.redaction import redact

SILENT_S = 1.5
"""Seconds after which a person at a terminal is told that a command has begun."""


class _Screen(logging.Handler):
    """Print each message on the standard output of the moment, secrets removed.

    A live table of rich stays below what is printed, since it redirects the standard output.
    """

    def emit(self, record: logging.LogRecord) -> None:
        has_spoken.set()
        print(redact(self.format(record)), flush=True)


def print_messages() -> None:
    """Print what this project's modules log, from level INFO. A second call changes nothing."""
    for name in ("aml", "orchestrator"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _Screen) for handler in logger.handlers):
            logger.addHandler(_Screen())


def called_as() -> str:
    """Return the beginning of a command that calls this program again from the same shell.

    Where the shell's `python` is another, as after `make`, this process's own is named by its path.
    """
    if os.path.basename(sys.argv[0]) == "amlris":
        return "amlris"
    own = Path(sys.executable)
    found = shutil.which("python")
    if found and Path(found).parent.resolve() == own.parent.resolve():
        return "python -m orchestrator"
    if own.is_relative_to(Path.cwd()):
        own = own.relative_to(Path.cwd())
    return f"{shlex.quote(str(own))} -m orchestrator"


def break_silence() -> None:
    """Say on a terminal that the command loads its libraries, if nothing is said in `SILENT_S`."""
    if sys.stderr.isatty() and progress_logger.isEnabledFor(logging.INFO):
        threading.Thread(target=_speak, name="first word", daemon=True).start()


def _speak() -> None:
    if not has_spoken.wait(SILENT_S):
        print("loading ...", file=sys.stderr, flush=True)
