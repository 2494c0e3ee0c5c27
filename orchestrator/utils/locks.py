"""One process at a time where two would spoil each other's work: on one machine by a lock, between machines by a lease."""

import contextlib
import fcntl
import math
import os
import socket
import time
from contextlib import contextmanager
from pathlib import Path

from aml.errors import UserError


@contextmanager
def exclusive_lock(folder: Path, *, wait: bool = True):
    """Hold the folder itself (no lock file is left behind), waiting while another process does; one that dies lets go.

    -> True; with wait False, False where another holds it
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _locked(handle, wait)
    finally:
        os.close(handle)


def _locked(handle: int, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    except BlockingIOError:
        return False


def lease_seconds() -> float:
    """Seconds between renewals of a lease; a lease four times as old is dead."""
    return seconds_setting("AMLRIS_LEASE_S", 30)


def seconds_setting(name: str, usual: float) -> float:
    """What an environment variable sets. UserError where it is no positive number."""
    text = os.environ.get(name) or str(usual)
    with contextlib.suppress(ValueError):
        if 0 < (found := float(text)) < math.inf:
            return found
    raise UserError(f"{name} is {text}; give seconds, or unset it for {usual:g}")


def lease_text(pid: int | None = None, host: str | None = None, stamp: float | None = None) -> str:
    return f"{host or socket.gethostname()} {pid or os.getpid()} {stamp or time.time():.0f}"


def is_dead(text: str) -> bool:
    """Whether the holder of a lease has died or has been silent for too long."""
    host, pid, stamp = text.split()
    if time.time() - float(stamp) > 4 * lease_seconds():
        return True
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
