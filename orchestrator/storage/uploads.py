"""What is finished on its way to the bucket of a mirrored root: in the background, tried again, said once; and who may write there.

Without a bucket every one of these does nothing, so that callers need not ask.
"""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from aml.errors import NotSaved, Unreachable, UserError
from aml.files import write_failure
from orchestrator import utils
from orchestrator.storage import paths
from orchestrator.storage.lease import _SILENT, PROBE, _asking, _write
from orchestrator.storage.snapshot import DRIVER, OWN, TRIAL, Snapshot
from orchestrator.storage.synced_folder import SyncedFolder
from orchestrator.utils import redact

LONGEST_PAUSE_S = 10.0

AT_END_S = utils.seconds_setting("AMLRIS_PATIENCE_S", 30)

"""How long a command that is over goes on trying."""

ANSWER_S = AT_END_S

"""How long what must not be lost (a line of the ledger, a trial's last epoch) is waited for where the bucket neither takes nor refuses it."""


class BackgroundUploader:
    """A bundle's snapshots, delivered by a thread; where one waits, the next takes its place."""

    def __init__(self, folder: Path, kind: str, say):
        self.bundle = SyncedFolder(folder, kind) if paths.root_of(folder) else None
        self.say, self.problem = say, ""
        self.cond = threading.Condition()
        self.waiting: Snapshot | None = None
        self.tried, self.offered, self.closed, self.hurry = 0, 0, False, False
        if self.bundle:
            threading.Thread(target=self._work, name=f"mirror-{kind}", daemon=True).start()

    def offer(self) -> None:
        """What the folder holds now is to go to the bucket; returns at once. Called by the one who writes there."""
        if not self.bundle:
            return
        try:
            snapshot = self.bundle.snapshot()
        except OSError as error:
            raise NotSaved(write_failure(self.bundle.own, error, 0)) from error
        with self.cond:
            if self.waiting:
                self.waiting.close()
            self.waiting, self.offered, self.hurry = snapshot, snapshot.at, True
            self.cond.notify_all()

    def settle(self, timeout: float = ANSWER_S) -> bool:
        """Wait until what was offered has arrived; not while the bucket does not answer.   -> whether it has arrived"""
        with self.cond:
            self.cond.wait_for(lambda: self.problem or self.tried >= self.offered, timeout)
            return not self.problem and self.tried >= self.offered

    def close(self, timeout: float = AT_END_S) -> bool:
        """Try until it has arrived or time is up.   -> whether it has arrived"""
        if not self.bundle:
            return True
        arrived = self.arrive(timeout)
        self.leave()
        return arrived

    def arrive(self, timeout: float = AT_END_S) -> bool:
        """The same, and more may be offered after it."""
        with self.cond:
            self.hurry = True
            self.cond.notify_all()
            return self.cond.wait_for(
                lambda: not self.problem and self.tried >= self.offered, timeout
            )

    def leave(self) -> None:
        """No more is offered: what waits is tried once more, without being waited for."""
        with self.cond:
            self.closed = self.hurry = True
            self.cond.notify_all()

    def _work(self) -> None:
        pause = 0.0
        while True:
            with self.cond:
                if pause:
                    self.cond.wait_for(lambda: self.hurry, pause)
                self.cond.wait_for(lambda: self.waiting or self.closed)
                self.hurry = False
                if not self.waiting:
                    return
                snapshot, self.waiting = self.waiting, None
            problem = self._deliver(snapshot)
            with self.cond:
                pause = min(LONGEST_PAUSE_S, 2 * pause or 1.0) if problem else 0.0
                if problem and not self.waiting:
                    self.waiting = snapshot
                else:
                    snapshot.close()
                first, self.problem, self.tried = problem and not self.problem, problem, snapshot.at
                self.cond.notify_all()
                if problem and self.closed:
                    return
            if first:
                with contextlib.suppress(NotSaved):  # a full disk must not end this thread
                    self.say(
                        f"{problem}; training goes on, and what waits here is delivered when the bucket answers"
                    )

    def _deliver(self, snapshot: Snapshot) -> str:
        try:
            with _asking(self.bundle.folder, insisting=True):
                self.bundle.push(snapshot)
            return ""
        except (
            Exception
        ) as error:  # whatever it is, it must end neither the training nor this thread
            return pending_uploads(self.bundle.folder, error)


def pending_uploads(folder: Path, error: Exception) -> str:
    why = " ".join(redact(error).split())[:200]
    return f"{folder} could not be delivered to {redact(paths.bucket_of(folder))} ({why})"


def without_checkpoints(manifest: dict) -> set[str]:
    """All but checkpoints; of the pictures the last."""
    pictures = sorted(name for name in manifest if name.startswith("pictures/"))
    return {name for name in manifest if not name.startswith(("last", "best", "pictures/"))} | set(
        pictures[-1:]
    )


def weights_only(manifest: dict) -> set[str]:
    """Checkpoints, without what training would go on from."""
    return {
        name
        for name in manifest
        if name.startswith(("last", "best")) and not name.endswith("state.pt")
    }


def run_metadata(manifest: dict) -> set[str]:
    """What a listing reads of a run."""
    return {
        name
        for name in manifest
        if name in ("sweep.json", "train.json", "config.yaml", "ledger.jsonl")
    }


def download(
    folder: Path,
    kind: str = TRIAL,
    wanted=set,
    *,
    exact: bool = False,
    wait: bool = True,
    insist: bool = False,
) -> None:
    """As Bundle.pull; nothing where the folder is in no bucket. Unreachable where the bucket does not answer.

    insist: a bucket that was silent just now is asked again; so it is by who asks for it exact."""
    if paths.root_of(folder):
        try:
            with _asking(folder, insisting=exact or insist):
                SyncedFolder(folder, kind).pull(wanted, exact=exact, wait=wait)
        except OSError as error:
            raise Unreachable(
                f"{redact(paths.bucket_of(folder))} cannot be read ({' '.join(redact(error).split())[:200]})"
            ) from None


def try_download(folder: Path, kind: str = TRIAL, wanted=set, **how) -> str:
    """-> why it could not be had, or nothing"""
    try:
        download(folder, kind, wanted, **how)
        return ""
    except UserError as error:
        return str(error)


def bucket_problem(root: Path) -> str:
    """Why the bucket of a mirrored root cannot be used, or nothing: something is written there, read and taken away."""
    from orchestrator.storage.filesystem import Filesystem

    store, mine = Filesystem(paths.bucket_of(root), impatient=True), utils.lease_text()
    try:
        _write(store, mine, PROBE)
        found = store.read(PROBE)
        store.fs.delete_file(store.join(PROBE))
    except (OSError, UserError) as error:
        return f"{redact(store.uri)} cannot be used ({' '.join(redact(error).split())[:200]})"
    return (
        ""
        if found == mine.encode()
        else f"{redact(store.uri)} does not give back what was written there"
    )


def download_run_metadata(root: Path) -> None:
    """What a listing reads of each run of a mirrored root."""
    if paths.root_of(root) != Path(root).absolute():
        return
    from orchestrator.storage.filesystem import Filesystem

    for name in Filesystem(paths.bucket_of(root), impatient=True).names():
        if SyncedFolder(Path(root) / name, DRIVER).exists():
            download(Path(root) / name, DRIVER, run_metadata)


def delete_remote(folder: Path, unwanted: Callable[[str], bool]) -> None:
    """Take files of those who train out of the bucket. UserError where it does not answer."""
    if paths.root_of(folder):
        try:
            SyncedFolder(folder, TRIAL).drop(unwanted)
        except OSError as error:
            raise UserError(
                f"{redact(paths.bucket_of(folder))} cannot be written ({' '.join(redact(error).split())[:200]})"
            ) from None


def upload_from_this_node(portable: str) -> list[str]:
    """Deliver what any process of this machine left undelivered of a run's trials.   -> what could not be, in sentences"""
    run, problems = paths.local_path(portable), []
    _SILENT.pop(
        paths.root_of(run), None
    )  # who calls this wants to know now; the second folder may do without asking
    for own in sorted(run.rglob(f"{OWN}/{TRIAL}")):
        bundle = SyncedFolder(own.parent.parent, TRIAL)
        if bundle.undelivered():
            try:
                with _asking(run, insisting=False):
                    snapshot = bundle.snapshot()
                    bundle.push(snapshot, ours_only=True)
                    snapshot.close()
            except Exception as error:
                problems.append(pending_uploads(bundle.folder, error))
    return problems


def upload_from_every_node(run: Path) -> list[str]:
    """The same on every node of the cluster that is alive, its name in front of each sentence; where no Ray runs, on this machine."""
    if not paths.root_of(run):
        return []
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        return upload_from_this_node(paths.to_uri(run))
    task = ray.remote(upload_from_this_node)
    asked = {}
    for node in (n for n in ray.nodes() if n["Alive"]):
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[node["NodeManagerHostname"], node["NodeID"]] = task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=where
        ).remote(paths.to_uri(run))
    problems = []
    for (host, _), ref in asked.items():
        try:
            problems += [f"{host}: {text}" for text in ray.get(ref)]
        except ray.exceptions.RayError as error:  # the node left meanwhile
            problems.append(f"{host}: not heard of ({type(error).__name__})")
    return problems
