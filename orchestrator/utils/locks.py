"""Mutual exclusion: file locks between the processes of one machine, leases between machines."""

import contextlib
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from aml.errors import UserError
from orchestrator.utils.waits import announced_wait

LOCK = ".lock"
"""Name of the lock file in a folder; it exists while `exclusive_lock` holds the folder."""

PROBE_S = 0.5
"""Seconds for which `process_lock` tries again, since `holder_of` holds the lock for an instant."""


@contextmanager
def exclusive_lock(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder against the other processes and threads of this machine.

    The operating system releases the lock of a process that dies. No lock file is left behind.

    Args:
        folder: is created where it does not exist.
        wait: False: do not wait for a lock that another process holds.

    Yields:
        True while the folder is held; with `wait=False`, False where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        with announced_wait(f"another process to release {folder}"):
            lock.acquire(blocking=wait)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        # Removed while it is held: filelock opens a file anew whose name was removed meanwhile.
        # Windows refuses that, and there filelock removes the file itself.
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()


@contextmanager
def process_lock(path: Path) -> Iterator[bool]:
    """Hold a lock file that names this process, for `holder_of`. A process that dies releases it.

    Yields:
        True while the file is held; False where another process holds it.
    """

    def write_pid(descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        # Windows lets nobody read the first byte, which is the one that filelock locks.
        os.write(descriptor, b" %d" % os.getpid())

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=PROBE_S, on_acquired=write_pid)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def holder_of(path: Path) -> int | None:
    """Return the id of the process that holds a lock file of `process_lock`.

    The process may be on another machine that shares the file system.

    Returns:
        None where no process holds the file, or where it names none.
    """
    if not path.exists():
        return None
    # Network file systems lock only what may be written; another user's file may only be read.
    mode = "r+b" if os.access(path, os.W_OK) else "rb"
    with open(path, mode, buffering=0) as file:
        if not _is_locked(file.fileno()):
            return None
        try:
            text = file.read(64)
        except PermissionError:  # Windows: the first byte is locked
            file.seek(1)
            text = file.read(64)
    return int(text or 0) or None


def _is_locked(descriptor: int) -> bool:
    """Return whether another process holds a file, other than to look at it like this one."""
    deadline = time.monotonic() + PROBE_S / 5
    while True:
        try:
            if filelock.lock_descriptor(descriptor, blocking=False):
                filelock.unlock_descriptor(descriptor)
                return False
        except OSError:  # it cannot be locked without leave to write: nothing says that it is free
            return True
        if time.monotonic() >= deadline:
            return True
        time.sleep(0.01)


def process_exists(pid: int) -> bool:
    """Return whether a process of this id runs on this machine, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def lease_seconds() -> float:
    """Return the seconds between renewals of a lease; a lease four times as old is dead."""
    return seconds_setting("AMLRIS_LEASE_S", 30)


def seconds_setting(name: str, default: float) -> float:
    """Return the seconds that an environment variable sets, or the default where it is unset.

    Raises:
        UserError: the variable is no positive finite number.
    """
    text = os.environ.get(name) or str(default)
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if 0 < seconds < math.inf:
            return seconds
    raise UserError(f"{name} is {text}; give seconds, or unset it for {default:g}")


def lease_text(pid: int | None = None, host: str | None = None, stamp: float | None = None) -> str:
    """Return the text of a lease: `HOST PID SECONDS`, by default of this process and this moment.

    Args:
        pid: the process that holds the lease.
        host: the name of its machine.
        stamp: the time of the renewal, in seconds since the epoch.
    """
    return f"{host or socket.gethostname()} {pid or os.getpid()} {stamp or time.time():.0f}"


def is_dead(text: str) -> bool:
    """Return whether the holder of a lease has died or has not renewed it for four intervals.

    Args:
        text: the lease, as `lease_text` writes it. Whether the process exists can be seen only
            of a holder on this machine.
    """
    host, pid, stamp = text.split()
    if time.time() - float(stamp) > 4 * lease_seconds():
        return True
    return host == socket.gethostname() and not process_exists(int(pid))
