"""Uploads to the bucket of a storage root, and downloads from it.

Uploads go on in the background and are repeated until they succeed; a failure is reported once.
Where a folder is in no bucket every function does nothing, so that callers need not ask.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from aml.errors import NotSaved, Unreachable, UserError
from aml.files import write_failure
from orchestrator import utils
from orchestrator.storage import paths
from orchestrator.storage.circuit_breaker import circuit_breaker, reset_circuit
from orchestrator.storage.lease import write_object
from orchestrator.storage.snapshot import DRIVER, SYNC_FOLDER, TRIAL, Manifest, Snapshot
from orchestrator.storage.synced_folder import Select, SyncedFolder
from orchestrator.utils import redact

LONGEST_PAUSE_S = 10.0
"""Seconds between two tries of an upload, at most."""

AT_END_S = utils.seconds_setting("AMLRIS_PATIENCE_S", 30)
"""Seconds for which a command that is over goes on trying to upload."""

ANSWER_S = AT_END_S
"""Seconds to wait for what must not be lost (a line of the ledger, a trial's last epoch) where the
bucket neither takes nor refuses it."""

PROBE = "probe"
"""Object that is written, read and deleted to see whether a bucket can be used."""


class BackgroundUploader:
    """Upload snapshots of a folder in a thread.

    A snapshot that still waits is replaced by the next one. Where the folder is in no bucket every
    method does nothing and reports success.
    """

    def __init__(self, folder: Path, notify: Callable[[str], None], kind: str = TRIAL) -> None:
        """Start the thread.

        Args:
            folder: a folder of a run or trial.
            notify: receives one sentence when uploads begin to fail.
            kind: the writer of the files, `snapshot.DRIVER` or `snapshot.TRIAL`.
        """
        self.folder = SyncedFolder(folder, kind) if paths.root_of(folder) else None
        self.notify = notify
        self.problem = ""
        """Why the last upload failed; empty where it succeeded."""
        self._changed = threading.Condition()
        self._next: Snapshot | None = None
        self._submitted_at = 0  # Snapshot.at of the last one submitted
        self._tried_at = 0  # Snapshot.at of the last one tried
        self._closed = False
        self._hurry = False  # end the pause between two tries
        if self.folder:
            thread = threading.Thread(target=self._work, name=f"upload-{kind}", daemon=True)
            thread.start()

    def submit(self) -> None:
        """Have the present files uploaded; return at once.

        To be called by the process that writes the files, between two writes.

        Raises:
            NotSaved: the disk takes no more.
        """
        if not self.folder:
            return
        try:
            snapshot = self.folder.snapshot()
        except OSError as error:
            raise NotSaved(write_failure(self.folder.state_folder, error, 0)) from error
        with self._changed:
            if self._next:
                self._next.close()
            self._next = snapshot
            self._submitted_at = snapshot.at
            self._hurry = True
            self._changed.notify_all()

    def wait(self, timeout: float = ANSWER_S) -> bool:
        """Wait for the upload of what was submitted, but no longer than until a try fails.

        Args:
            timeout: seconds.

        Returns:
            Whether the bucket has it.
        """
        with self._announced(), self._changed:
            self._changed.wait_for(
                lambda: self.problem or self._tried_at >= self._submitted_at, timeout
            )
            return not self.problem and self._tried_at >= self._submitted_at

    def flush(self, timeout: float = AT_END_S) -> bool:
        """Upload what was submitted, trying again after failures until the time is up.

        Args:
            timeout: seconds.

        Returns:
            Whether the bucket has it.
        """
        with self._announced(), self._changed:
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: not self.problem and self._tried_at >= self._submitted_at, timeout
            )

    def close(self) -> None:
        """Let the thread end after one more try to upload what waits; do not wait for it."""
        with self._changed:
            self._closed = True
            self._hurry = True
            self._changed.notify_all()

    def _announced(self) -> contextlib.AbstractContextManager[None]:
        if not self.folder:
            return contextlib.nullcontext()
        return utils.announced_wait(f"{redact(self.folder.remote.uri)} to take what was written")

    def _work(self) -> None:
        pause = 0.0
        while True:
            with self._changed:
                if pause:
                    self._changed.wait_for(lambda: self._hurry, pause)
                self._changed.wait_for(lambda: self._next or self._closed)
                self._hurry = False
                snapshot = self._next
                self._next = None
            if not snapshot:
                return
            problem = self._upload(snapshot)
            with self._changed:
                pause = min(LONGEST_PAUSE_S, 2 * pause or 1.0) if problem else 0.0
                if problem and not self._next:
                    self._next = snapshot
                else:
                    snapshot.close()
                first = bool(problem and not self.problem)
                self.problem = problem
                self._tried_at = snapshot.at
                self._changed.notify_all()
                if problem and self._closed:
                    return
            if first:
                with contextlib.suppress(NotSaved):  # a full disk must not end this thread
                    self.notify(
                        f"{problem}; training goes on, and what waits here is uploaded when the "
                        "bucket answers"
                    )

    def _upload(self, snapshot: Snapshot) -> str:
        """Return why a snapshot could not be uploaded, or an empty text."""
        assert self.folder
        try:
            with circuit_breaker(self.folder.folder, force=True):
                self.folder.upload(snapshot)
            return ""
        except Exception as error:  # none may end the training or this thread
            return upload_failure(self.folder.folder, error)


def upload_failure(folder: Path, error: Exception) -> str:
    """Return a sentence about a folder that could not be uploaded."""
    return f"{folder} could not be uploaded to {redact(paths.bucket_of(folder))} ({_why(error)})"


def without_checkpoints(manifest: Manifest) -> set[str]:
    """Select all files but checkpoints, and of the pictures the last one."""
    pictures = sorted(name for name in manifest if name.startswith("pictures/"))
    others = {name for name in manifest if not name.startswith(("last", "best", "pictures/"))}
    return others | set(pictures[-1:])


def weights_only(manifest: Manifest) -> set[str]:
    """Select checkpoints, without the state from which training would go on."""
    return {
        name
        for name in manifest
        if name.startswith(("last", "best")) and not name.endswith("state.pt")
    }


def run_metadata(manifest: Manifest) -> set[str]:
    """Select what a list of runs shows of a run."""
    return {
        name
        for name in manifest
        if name in ("sweep.json", "train.json", "config.yaml", "ledger.jsonl")
    }


def download(
    folder: Path,
    kind: str = TRIAL,
    wanted: Select = set,
    *,
    exact: bool = False,
    wait: bool = True,
    force: bool = False,
) -> None:
    """Download what the bucket has of a folder: see `SyncedFolder.download`.

    Args:
        folder: a folder of a run or trial; nothing is done where it is in no bucket.
        kind: the writer of the files, `snapshot.DRIVER` or `snapshot.TRIAL`.
        wanted: selects the names to download of a manifest; all by default.
        exact: take the bucket's version even of files that have changed here.
        wait: False: do nothing while a process of this machine uploads the folder.
        force: ask a bucket that did not answer just now; `exact` does, too.

    Raises:
        Unreachable: the bucket does not answer.
    """
    if not paths.root_of(folder):
        return
    try:
        with circuit_breaker(folder, force=exact or force):
            SyncedFolder(folder, kind).download(wanted, exact=exact, wait=wait)
    except OSError as error:
        raise Unreachable(
            f"{redact(paths.bucket_of(folder))} cannot be read ({_why(error)})"
        ) from None


def try_download(
    folder: Path,
    kind: str = TRIAL,
    wanted: Select = set,
    *,
    exact: bool = False,
    wait: bool = True,
    force: bool = False,
    retry: bool = False,
) -> str:
    """Download as `download` does, but return a problem instead of raising it.

    Args:
        folder: a folder of a run or trial.
        kind: the writer of the files.
        wanted: selects the names to download of a manifest.
        exact: take the bucket's version even of files that have changed here.
        wait: False: do nothing while a process of this machine uploads the folder.
        force: ask a bucket that did not answer just now.
        retry: repeat a failed download for `ANSWER_S` seconds.

    Returns:
        Why the files could not be downloaded, or an empty text.
    """
    deadline = time.monotonic() + (ANSWER_S if retry else 0)
    while True:
        try:
            download(folder, kind, wanted, exact=exact, wait=wait, force=force)
            return ""
        except UserError as error:
            if time.monotonic() >= deadline:
                return str(error)
        time.sleep(1.0)


def bucket_problem(root: Path) -> str:
    """Return why the bucket of a working root cannot be used, or an empty text.

    An object is written there, read and deleted.
    """
    from orchestrator.storage.filesystem import Filesystem

    store = Filesystem(paths.bucket_of(root) or "", impatient=True)
    mine = utils.lease_text()
    try:
        write_object(store, PROBE, mine)
        found = store.read(PROBE)
        store.fs.delete_file(store.join(PROBE))
    except (OSError, UserError) as error:
        return f"{redact(store.uri)} cannot be used ({_why(error)})"
    if found != mine.encode():
        return f"{redact(store.uri)} does not give back what was written there"
    return ""


def download_run_metadata(root: Path) -> None:
    """Download what a list of runs shows of each run below a working root."""
    if paths.root_of(root) != Path(root).absolute():
        return
    from orchestrator.storage.filesystem import Filesystem

    for name in Filesystem(paths.bucket_of(root) or "", impatient=True).names():
        if SyncedFolder(Path(root) / name, DRIVER).remote.exists():
            download(Path(root) / name, DRIVER, run_metadata)


def delete_remote(folder: Path, unwanted: Callable[[str], bool]) -> None:
    """Delete files that the process that trains has uploaded.

    Args:
        folder: a folder of a run or trial; nothing is done where it is in no bucket.
        unwanted: returns whether the file of this name is to be deleted.

    Raises:
        UserError: the bucket does not answer.
    """
    if not paths.root_of(folder):
        return
    try:
        SyncedFolder(folder, TRIAL).delete_remote(unwanted)
    except OSError as error:
        raise UserError(
            f"{redact(paths.bucket_of(folder))} cannot be written ({_why(error)})"
        ) from None


def upload_from_this_node(portable: str) -> list[str]:
    """Upload what processes of this machine left behind of a run's trials.

    Args:
        portable: the folder of the run, as `paths.to_uri` gives it.

    Returns:
        A sentence for each folder that could not be uploaded.
    """
    run = paths.local_path(portable)
    problems = []
    # The caller wants to know whether the bucket answers now; where it does not answer for the
    # first folder, it is not asked for the second.
    reset_circuit(run)
    for state_folder in sorted(run.rglob(f"{SYNC_FOLDER}/{TRIAL}")):
        folder = SyncedFolder(state_folder.parent.parent, TRIAL)
        if not folder.has_pending_upload():
            continue
        try:
            with circuit_breaker(run, force=False):
                snapshot = folder.snapshot()
                folder.upload(snapshot, only_if_unchanged=True)
                snapshot.close()
        except Exception as error:
            problems.append(upload_failure(folder.folder, error))
    return problems


def upload_from_every_node(run: Path) -> list[str]:
    """Upload what processes left behind of a run's trials, on every node that is alive.

    Args:
        run: the folder of the run. Where no Ray runs, only this machine's files are uploaded.

    Returns:
        A sentence for each folder that could not be uploaded, with the node's name in front.
    """
    if not paths.root_of(run):
        return []
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        return upload_from_this_node(paths.to_uri(run))
    task = ray.remote(upload_from_this_node)
    pending = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": strategy}
        key = (node["NodeManagerHostname"], node["NodeID"])
        pending[key] = task.options(**options).remote(paths.to_uri(run))
    problems = []
    for (host, _), ref in pending.items():
        try:
            problems += [f"{host}: {text}" for text in ray.get(ref)]
        except ray.exceptions.RayError as error:  # the node left meanwhile
            problems.append(f"{host}: gave no answer ({type(error).__name__})")
    return problems


def _why(error: Exception) -> str:
    return " ".join(redact(error).split())[:200]
