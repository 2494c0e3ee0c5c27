"""What is finished on its way to the bucket of a mirrored root: in the background, tried again, said once; and who may write there.

Without a bucket every one of these does nothing, so that callers need not ask.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from aml.checkpoint import unwritten
from aml.errors import NotSaved, Unreachable, UserError
from orchestrator import locks, mirror
from orchestrator.mirror import DRIVER, OWN, TRIAL, Bundle, Snapshot
from orchestrator.redaction import redact

LEASE, STOP, PROBE = "lease", "STOP", "probe"
"""Objects beside bundles."""
LONGEST_PAUSE_S = 10.0
AT_END_S = locks.seconds("AMLRIS_PATIENCE_S", 30)
"""How long a command that is over goes on trying."""
ANSWER_S = AT_END_S
"""How long what must not be lost (a line of the ledger, a trial's last epoch) is waited for where the bucket neither takes nor refuses it."""

AWAY_S = 30.0
"""A bucket that did not answer is not asked again for so long by who can do without it; outboxes go on trying, and hear first that it answers."""

_SILENT: dict[Path, tuple[float, str]] = {}
"""Working root -> until when (monotonic), why: of this process."""


@contextmanager
def _asking(folder: Path, *, insisting: bool):
    """Around what asks the bucket of a folder. Unreachable at once where it was silent just now, unless somebody insists."""
    root = mirror.root_of(folder)
    until, why = _SILENT.get(root, (0.0, ""))
    if not insisting and time.monotonic() < until:
        raise Unreachable(f"{redact(mirror.bucket_of(folder))} is not asked for: the bucket did not answer just now ({why})")
    try:
        yield
    except Exception as error:
        if isinstance(error, Unreachable) or "AWS Error" in str(error):
            _SILENT[root] = time.monotonic() + AWAY_S, " ".join(redact(error).split())[:200]
        raise
    _SILENT.pop(root, None)


class Outbox:
    """A bundle's snapshots, delivered by a thread; where one waits, the next takes its place."""

    def __init__(self, folder: Path, kind: str, say):
        self.bundle = Bundle(folder, kind) if mirror.root_of(folder) else None
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
            raise NotSaved(unwritten(self.bundle.own, error, 0)) from error
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
            return self.cond.wait_for(lambda: not self.problem and self.tried >= self.offered, timeout)

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
                    self.say(f"{problem}; training goes on, and what waits here is delivered when the bucket answers")

    def _deliver(self, snapshot: Snapshot) -> str:
        try:
            with _asking(self.bundle.folder, insisting=True):
                self.bundle.push(snapshot)
            return ""
        except Exception as error:  # whatever it is, it must end neither the training nor this thread
            return undelivered(self.bundle.folder, error)


def undelivered(folder: Path, error: Exception) -> str:
    why = " ".join(redact(error).split())[:200]
    return f"{folder} could not be delivered to {redact(mirror.bucket_of(folder))} ({why})"


# ---- taking ---------------------------------------------------------------------------------------------------------


def light(manifest: dict) -> set[str]:
    """All but checkpoints; of the pictures the last."""
    pictures = sorted(name for name in manifest if name.startswith("pictures/"))
    return {name for name in manifest if not name.startswith(("last", "best", "pictures/"))} | set(pictures[-1:])


def weights(manifest: dict) -> set[str]:
    """Checkpoints, without what training would go on from."""
    return {name for name in manifest if name.startswith(("last", "best")) and not name.endswith("state.pt")}


def state(manifest: dict) -> set[str]:
    """What a listing reads of a run."""
    return {name for name in manifest if name in ("sweep.json", "train.json", "config.yaml", "ledger.jsonl")}


def pull(folder: Path, kind: str = TRIAL, wanted=set, *, exact: bool = False, wait: bool = True, insist: bool = False) -> None:
    """As Bundle.pull; nothing where the folder is in no bucket. Unreachable where the bucket does not answer.

    insist: a bucket that was silent just now is asked again; so it is by who asks for it exact."""
    if mirror.root_of(folder):
        try:
            with _asking(folder, insisting=exact or insist):
                Bundle(folder, kind).pull(wanted, exact=exact, wait=wait)
        except OSError as error:
            raise Unreachable(f"{redact(mirror.bucket_of(folder))} cannot be read ({' '.join(redact(error).split())[:200]})") from None


def try_pull(folder: Path, kind: str = TRIAL, wanted=set, **how) -> str:
    """-> why it could not be had, or nothing"""
    try:
        pull(folder, kind, wanted, **how)
        return ""
    except UserError as error:
        return str(error)


def bucket_problem(root: Path) -> str:
    """Why the bucket of a mirrored root cannot be used, or nothing: something is written there, read and taken away."""
    from orchestrator.shards import Store

    store, mine = Store(mirror.bucket_of(root), impatient=True), locks.lease()
    try:
        _write(store, mine, PROBE)
        found = store.read(PROBE)
        store.fs.delete_file(store.join(PROBE))
    except (OSError, UserError) as error:
        return f"{redact(store.uri)} cannot be used ({' '.join(redact(error).split())[:200]})"
    return "" if found == mine.encode() else f"{redact(store.uri)} does not give back what was written there"


def pull_listing(root: Path) -> None:
    """What a listing reads of each run of a mirrored root."""
    if mirror.root_of(root) != Path(root).absolute():
        return
    from orchestrator.shards import Store

    for name in Store(mirror.bucket_of(root), impatient=True).names():
        if Bundle(Path(root) / name, DRIVER).exists():
            pull(Path(root) / name, DRIVER, state)


def drop(folder: Path, unwanted: Callable[[str], bool]) -> None:
    """Take files of those who train out of the bucket. UserError where it does not answer."""
    if mirror.root_of(folder):
        try:
            Bundle(folder, TRIAL).drop(unwanted)
        except OSError as error:
            raise UserError(f"{redact(mirror.bucket_of(folder))} cannot be written ({' '.join(redact(error).split())[:200]})") from None


# ---- what stayed ----------------------------------------------------------------------------------------------------


def deliver_here(portable: str) -> list[str]:
    """Deliver what any process of this machine left undelivered of a run's trials.   -> what could not be, in sentences"""
    run, problems = mirror.here(portable), []
    _SILENT.pop(mirror.root_of(run), None)  # who calls this wants to know now; the second folder may do without asking
    for own in sorted(run.rglob(f"{OWN}/{TRIAL}")):
        bundle = Bundle(own.parent.parent, TRIAL)
        if bundle.undelivered():
            try:
                with _asking(run, insisting=False):
                    snapshot = bundle.snapshot()
                    bundle.push(snapshot, ours_only=True)
                    snapshot.close()
            except Exception as error:
                problems.append(undelivered(bundle.folder, error))
    return problems


def deliver_everywhere(run: Path) -> list[str]:
    """The same on every node of the cluster that is alive, its name in front of each sentence; where no Ray runs, on this machine."""
    if not mirror.root_of(run):
        return []
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        return deliver_here(mirror.portable(run))
    task = ray.remote(deliver_here)
    asked = {}
    for node in (n for n in ray.nodes() if n["Alive"]):
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[node["NodeManagerHostname"], node["NodeID"]] = task.options(num_cpus=0, max_retries=0, scheduling_strategy=where).remote(
            mirror.portable(run)
        )
    problems = []
    for (host, _), ref in asked.items():
        try:
            problems += [f"{host}: {text}" for text in ray.get(ref)]
        except ray.exceptions.RayError as error:  # the node left meanwhile
            problems.append(f"{host}: not heard of ({type(error).__name__})")
    return problems


# ---- being asked to stop --------------------------------------------------------------------------------------------


def ask_to_stop(run: Path, please: bool) -> None:
    """A word in the bucket to those who train a run on other machines, or taken back. Nothing where the bucket does not answer."""
    if mirror.root_of(run):
        bundle = Bundle(run, TRIAL)
        with contextlib.suppress(OSError, UserError):
            if please:
                _write(bundle.store, "", STOP)
            elif bundle.store.read(STOP) is not None:
                bundle.store.fs.delete_file(bundle.store.join(STOP))


def asked_to_stop(run: Path) -> bool:
    """Whether somebody has; not while the bucket does not answer."""
    with contextlib.suppress(UserError):
        return bool(mirror.root_of(run)) and Bundle(run, TRIAL).store.read(STOP) is not None
    return False


# ---- who may write --------------------------------------------------------------------------------------------------


@contextmanager
def leased(run: Path, say):
    """Hold a run in its bucket. UserError where a process of another machine does; one that has died lets go after four renewals.

    Two that begin in the same second may both see it free: each reads again what it wrote, which leaves a gap of one round trip.
    """
    if not mirror.root_of(run):
        yield
        return
    from orchestrator.shards import Store

    store, mine = Store(mirror.bucket_of(run), impatient=True), locks.lease()
    _wait_until_free(store, run.name, say)
    _write(store, mine)
    if store.read(LEASE) != mine.encode():
        raise UserError(f"{run.name} is being worked on by another machine, which began in the same moment; wait for it, or stop it")
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
    if not mirror.root_of(run):
        return ""
    from orchestrator.shards import Store

    found = (Store(mirror.bucket_of(run), impatient=True).read("lease") or b"").decode()
    return "" if not found or locks.dead(found) else found


def _wait_until_free(store, name: str, say) -> None:
    """Until the lease of one that has died has run out. UserError where it is renewed."""
    found = first = (store.read(LEASE) or b"").decode()
    if found and not locks.dead(found):
        say(f"{name} was being worked on by process {found.split()[1]} of {found.split()[0]}; waiting to see whether it still is")
    while found and not locks.dead(found):
        time.sleep(min(1.0, locks.lease_seconds()))
        found = (store.read(LEASE) or b"").decode()
        if found and found != first:
            host, pid, _ = found.split()
            raise UserError(f"{name} is being worked on by process {pid} of {host}; wait for it, stop it, or start another with --fresh")


def _renew(store, over: threading.Event) -> None:
    while not over.wait(locks.lease_seconds()):
        with contextlib.suppress(UserError):  # the bucket is away: the next renewal, or it runs out
            _write(store, locks.lease())


def _write(store, text: str, name: str = LEASE) -> None:
    """UserError where the bucket takes nothing."""
    try:
        with store.fs.open_output_stream(store.join(name)) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise store.away(mirror.join(store.uri, name), error) from None
