"""The lease by which one process at a time works on a run in a bucket, and requests to stop it."""

import contextlib
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from aml.errors import Unreachable, UserError
from orchestrator import utils
from orchestrator.storage import paths, uri
from orchestrator.storage.snapshot import TRIAL
from orchestrator.storage.synced_folder import SyncedFolder
from orchestrator.utils import redact

LEASE, STOP, PROBE = "lease", "STOP", "probe"

"""Objects beside bundles."""

AWAY_S = 30.0

"""A bucket that did not answer is not asked again for so long by who can do without it; outboxes go on trying, and hear first that it answers."""

_SILENT: dict[Path, tuple[float, str]] = {}

"""Working root -> until when (monotonic), why: of this process."""


@contextmanager
def _asking(folder: Path, *, insisting: bool):
    """Around what asks the bucket of a folder. Unreachable at once where it was silent just now, unless somebody insists."""
    root = paths.root_of(folder)
    until, why = _SILENT.get(root, (0.0, ""))
    if not insisting and time.monotonic() < until:
        raise Unreachable(
            f"{redact(paths.bucket_of(folder))} is not asked for: the bucket did not answer just now ({why})"
        )
    try:
        yield
    except Exception as error:
        if isinstance(error, Unreachable) or "AWS Error" in str(error):
            _SILENT[root] = time.monotonic() + AWAY_S, " ".join(redact(error).split())[:200]
        raise
    _SILENT.pop(root, None)


def request_stop(run: Path, please: bool) -> None:
    """A word in the bucket to those who train a run on other machines, or taken back. Nothing where the bucket does not answer."""
    if paths.root_of(run):
        bundle = SyncedFolder(run, TRIAL)
        with contextlib.suppress(OSError, UserError):
            if please:
                _write(bundle.store, "", STOP)
            elif bundle.store.read(STOP) is not None:
                bundle.store.fs.delete_file(bundle.store.join(STOP))


def stop_requested(run: Path) -> bool:
    """Whether somebody has; not while the bucket does not answer."""
    with contextlib.suppress(UserError):
        return bool(paths.root_of(run)) and SyncedFolder(run, TRIAL).store.read(STOP) is not None
    return False


@contextmanager
def bucket_lease(run: Path, say):
    """Hold a run in its bucket. UserError where a process of another machine does; one that has died lets go after four renewals.

    Two that begin in the same second may both see it free: each reads again what it wrote, which leaves a gap of one round trip.
    """
    if not paths.root_of(run):
        yield
        return
    from orchestrator.storage.filesystem import Filesystem

    store, mine = Filesystem(paths.bucket_of(run), impatient=True), utils.lease_text()
    _wait_until_free(store, run.name, say)
    _write(store, mine)
    if store.read(LEASE) != mine.encode():
        raise UserError(
            f"{run.name} is being worked on by another machine, which began in the same moment; wait for it, or stop it"
        )
    over = threading.Event()
    thread = threading.Thread(target=_renew, args=(store, over), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):  # else it runs out
            store.fs.delete_file(store.join(LEASE))


def lease_of(run: Path) -> str:
    """Who works on a run, as orchestrator.locks.lease; nothing where nobody does, or it is in no bucket."""
    if not paths.root_of(run):
        return ""
    from orchestrator.storage.filesystem import Filesystem

    found = (Filesystem(paths.bucket_of(run), impatient=True).read("lease") or b"").decode()
    return "" if not found or utils.is_dead(found) else found


def _wait_until_free(store, name: str, say) -> None:
    """Until the lease of one that has died has run out. UserError where it is renewed."""
    found = first = (store.read(LEASE) or b"").decode()
    if found and not utils.is_dead(found):
        say(
            f"{name} was being worked on by process {found.split()[1]} of {found.split()[0]}; waiting to see whether it still is"
        )
    while found and not utils.is_dead(found):
        time.sleep(min(1.0, utils.lease_seconds()))
        found = (store.read(LEASE) or b"").decode()
        if found and found != first:
            host, pid, _ = found.split()
            raise UserError(
                f"{name} is being worked on by process {pid} of {host}; wait for it, stop it, or start another with --fresh"
            )


def _renew(store, over: threading.Event) -> None:
    while not over.wait(utils.lease_seconds()):
        with contextlib.suppress(UserError):  # the bucket is away: the next renewal, or it runs out
            _write(store, utils.lease_text())


def _write(store, text: str, name: str = LEASE) -> None:
    """UserError where the bucket takes nothing."""
    try:
        with store.fs.open_output_stream(store.join(name)) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise store.away(uri.join_uri(store.uri, name), error) from None
