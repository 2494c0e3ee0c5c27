"""The lease by which one machine at a time works on a run in a bucket, and requests to stop it."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aml.errors import UserError
from orchestrator import utils
from orchestrator.storage import paths
from orchestrator.storage.snapshot import TRIAL
from orchestrator.storage.synced_folder import SyncedFolder

if TYPE_CHECKING:
    from orchestrator.storage.filesystem import Filesystem

logger = logging.getLogger(__name__)

LEASE = "lease"
STOP = "STOP"
"""Objects in the folder of a run: its lease, and a request to stop it."""


def request_stop(run: Path, stop: bool) -> None:
    """Ask the processes that train a run on other machines to stop, or take the request back.

    Nothing is done where the run is in no bucket, or where its bucket does not answer.

    Args:
        run: the folder of the run.
        stop: False takes the request back.
    """
    if not paths.root_of(run):
        return
    store = SyncedFolder(run, TRIAL).remote.store
    with contextlib.suppress(OSError, UserError):
        if stop:
            write_object(store, STOP, "")
        elif store.read(STOP) is not None:
            store.fs.delete_file(store.join(STOP))


def stop_requested(run: Path) -> bool:
    """Return whether a run was asked to stop; False while its bucket does not answer."""
    with contextlib.suppress(UserError):
        if paths.root_of(run):
            return SyncedFolder(run, TRIAL).remote.store.read(STOP) is not None
    return False


@contextmanager
def bucket_lease(run: Path) -> Iterator[None]:
    """Hold the lease of a run in its bucket; nothing is done where the run is in no bucket.

    A process that dies loses its lease after four intervals of renewal. Two processes that begin in
    the same second may both see it free: each reads what it wrote once more, which leaves a gap of
    one round trip.

    Raises:
        UserError: a process of another machine holds the lease.
    """
    if not paths.root_of(run):
        yield
        return
    from orchestrator.storage.filesystem import Filesystem

    store = Filesystem(paths.bucket_of(run) or "", impatient=True)
    mine = utils.lease_text()
    _wait_until_free(store, run.name)
    _make_folder(store)
    write_object(store, LEASE, mine)
    if store.read(LEASE) != mine.encode():
        raise UserError(
            f"{run.name} is being worked on by another machine, which began in the same moment; "
            "wait for it, or stop it"
        )
    released = threading.Event()
    thread = threading.Thread(target=_renew, args=(store, released), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        released.set()
        thread.join()
        with contextlib.suppress(OSError):  # otherwise the lease runs out
            store.fs.delete_file(store.join(LEASE))


def lease_of(run: Path) -> str:
    """Return the lease of a run as `utils.lease_text` writes it.

    Returns:
        An empty text where no process works on the run, or the run is in no bucket.
    """
    if not paths.root_of(run):
        return ""
    from orchestrator.storage.filesystem import Filesystem

    store = Filesystem(paths.bucket_of(run) or "", impatient=True)
    found = (store.read(LEASE) or b"").decode()
    return "" if not found or utils.is_dead(found) else found


def write_object(store: "Filesystem", name: str, text: str) -> None:
    """Write a small object into a folder of a bucket.

    Raises:
        Unreachable: the bucket takes nothing.
    """
    try:
        with store.answering(), store.fs.open_output_stream(store.join(name)) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise store.unreachable(error, name) from None


def _make_folder(store: "Filesystem") -> None:
    """Make the folder of a run, which is not listed without that at gs://."""
    try:
        with store.answering():
            store.fs.create_dir(store.path)
    except OSError as error:
        raise store.unreachable(error) from None


def _wait_until_free(store: "Filesystem", name: str) -> None:
    """Wait for the end of a lease whose holder has died; raise UserError where it is renewed."""
    found = first = (store.read(LEASE) or b"").decode()
    if found and not utils.is_dead(found):
        host, pid, _ = found.split()
        logger.info(
            f"{name} was being worked on by process {pid} of {host}; "
            "waiting to see whether it still is"
        )
    while found and not utils.is_dead(found):
        time.sleep(min(1.0, utils.lease_seconds()))
        found = (store.read(LEASE) or b"").decode()
        if found and found != first:
            host, pid, _ = found.split()
            raise UserError(
                f"{name} is being worked on by process {pid} of {host}; "
                "wait for it, stop it, or start another with --fresh"
            )


def _renew(store: "Filesystem", released: threading.Event) -> None:
    while not released.wait(utils.lease_seconds()):
        # A bucket that is away gets the next renewal, or the lease runs out.
        with contextlib.suppress(UserError):
            write_object(store, LEASE, utils.lease_text())
