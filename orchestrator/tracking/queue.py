"""MLflow, spoken to by the driver alone: one thread, and a queue on disk between it and everybody else.

Each public call of a tracker appends one line to `tracking.queue.jsonl` in the run folder and returns. The thread
delivers the lines in order and keeps in `tracking.queue.offset` how far it got, so that what a missing server missed
arrives later, by this process or by the next one on the same folder. Every operation may be applied twice without
harm: a run is found again by its tag `amlris.key`, metric steps that MLflow has are dropped, a model version is known
by the digest of its weights. An operation that MLflow refuses for good is named in the log, written to
`tracking.rejected.jsonl` and skipped.

What the thread asks of MLflow is in `orchestrator.mlflow_store`.
"""

import collections
import contextlib
import json
import os
import threading
import time
from pathlib import Path

from aml.errors import UserError
from orchestrator.tracking.mlflow_client import Server
from orchestrator.tracking.mlflow_server import (
    AWAY,
    PERMANENT,
    no_room,
    refused,
    set_environment,
    tracking_uri,
    words_of,
)
from orchestrator.tracking.tracker import _Calls, log
from orchestrator.utils import redact

QUEUE = "tracking.queue.jsonl"

"""In a run folder: what MLflow has not been given yet."""

MAX_DELAY, TRIES, WINDOW = 15.0, 6, 100


class Tracker(_Calls):
    """The calls, delivered to MLflow by a thread. One tracker at a time may work on a run folder."""

    def __init__(self, folder: Path, uri: str | None, experiment: str, root: Path):
        super().__init__(folder, uri, experiment, root)
        self.uri = tracking_uri(uri, root)
        self.problem, self.rejected = "", 0
        self._queue, self._offset = self.folder / QUEUE, self.folder / "tracking.queue.offset"
        self._cond, self._wake, self._stop = (
            threading.Condition(),
            threading.Event(),
            threading.Event(),
        )
        self._todo: collections.deque[dict] = collections.deque()
        self._server: Server | None = None
        self._unusable, self._single, self._tries, self._distrusted = "", 0, 0, set()
        self._reconciled = False
        self.folder.mkdir(parents=True, exist_ok=True)
        self._size = self._recover()
        set_environment()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    # ---- for the driver

    @property
    def pending(self) -> int:
        """Operations not yet delivered."""
        return len(self._todo)

    def ready(self, timeout: float = 60.0) -> bool:
        """Wait until the store answers (a fresh SQLite file: about 10 s). False, and words in `.problem`, if it does
        not: then the queue keeps what it misses. Raises UserError if it answers that it cannot be used: wrong
        password, old schema, deleted experiment."""
        with self._cond:
            self._cond.wait_for(lambda: self._server or self.problem, timeout)
        if self._unusable:
            raise UserError(self._unusable)
        if not self._server and not self.problem:
            self.problem = f"MLflow at {redact(self.uri)} has not answered within {timeout:.0f} s"
        return self._server is not None

    def record(self, key: str) -> dict:
        """{"uri" (redacted), "experiment_id", "run_id"} for the run folder's summary; ids are None until they are
        known."""
        server = self._server
        ids = (server.experiment_id, server.ids.get(key)) if server else (None, None)
        return {"uri": redact(self.uri), "experiment_id": ids[0], "run_id": ids[1]}

    def flush(self, timeout: float = 60.0) -> int:
        """Wait until everything is delivered, at most `timeout` seconds; how many operations remain on disk."""
        self._wake.set()
        with self._cond:
            self._cond.wait_for(lambda: not self._todo, timeout)
            return len(self._todo)

    def close(self, timeout: float = 60.0) -> str:
        """End runs still open as KILLED (`stopped_by: interrupted`), flush and stop; a server that is known to be away is
        waited for 10 s at most. "" or one sentence on what remains or was refused."""
        self._end_open()
        left = self.flush(min(timeout, 10) if self.problem else timeout)
        self._stop.set()
        self._wake.set()
        with self._cond:
            self._cond.notify_all()
        self._thread.join(2.0)
        if left:
            why = self.problem or f"MLflow at {redact(self.uri)} is too slow"
            kept = f"stay in {self._queue.name} and are delivered by the next command on this run"
            return f"{left} tracking operations {kept} ({why})"
        self._queue.unlink(missing_ok=True)  # first: an offset without a queue is taken as 0
        self._offset.unlink(missing_ok=True)
        if self.rejected:
            return (
                f"MLflow refused {self.rejected} tracking operations: see tracking.rejected.jsonl"
            )
        return ""

    # ---- the queue on disk

    def _recover(self) -> int:
        """Load what an earlier tracker did not deliver; cut a line that a crash tore. Returns the size of the file in
        bytes."""
        if not self._queue.exists():
            return 0
        raw = self._queue.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(self._queue, len(whole))
        end = int(self._offset.read_text()) if self._offset.exists() else 0
        end = end if end <= len(whole) else 0
        for line in whole[end:].splitlines(keepends=True):
            end += len(line)
            self._todo.append({**json.loads(line), "end": end, "old": True})
        return len(whole)

    def _put(self, op: str, key: str, **fields) -> None:
        line = {"op": op, "key": key, "t": int(time.time() * 1000), **fields}
        raw = json.dumps(line).encode() + b"\n"
        with self._cond:
            try:
                with self._queue.open("ab") as file:
                    file.write(raw)
                self._size += len(raw)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.truncate(self._queue, self._size)  # half a line would spoil the next one
                log.error(
                    "the tracking queue cannot be written (%s); this operation is kept in memory alone",
                    error,
                )
            self._todo.append({**line, "end": self._size, "old": False})
            self._cond.notify_all()

    def _delivered(self, count: int) -> None:
        with self._cond:
            end = [self._todo.popleft() for _ in range(count)][-1]["end"]
            new = self._offset.with_suffix(".new")
            try:
                new.write_text(str(end))
                os.replace(new, self._offset)
            except (
                OSError
            ) as error:  # a full disk: what is given to MLflow again after a restart, it knows
                log.error("the tracking queue's offset cannot be written (%s)", error)
            self._tries, self._single = 0, max(0, self._single - count)
            self._cond.notify_all()

    # ---- the thread

    def _work(self) -> None:
        delay = 0.0
        while not self._stop.is_set():
            window: list[dict] = []
            try:
                if self._server is None:
                    self._connected(self._open())
                self._server.renew()
                if not self._reconciled and not (self._todo and self._todo[0]["old"]):
                    self._server.reconcile()
                    self._reconciled = True
                if window := self._next():
                    self._server.apply(window)
                    self._distrusted.discard(window[0]["op"])
                    self._delivered(len(window))
                delay = 0.0
                self._answers()
            except (
                Exception
            ) as error:  # whatever it is, it must end neither the training nor this thread
                if not self._settled(error, window):
                    delay = min(MAX_DELAY, 2 * delay or 0.5)
                    if self._wake.wait(delay):
                        delay = 0.0
            self._wake.clear()

    def _next(self) -> list[dict]:
        """The operations to apply at once: a stretch of metrics, else one. Waits for one, at most until leases are
        due."""
        with self._cond:
            if not self._todo and not self._stop.is_set():
                self._cond.wait(self._server.until_renewal())
            limit = 1 if self._single else WINDOW
            window = []
            for op in self._todo:
                if len(window) == limit or (
                    window and (op["op"] != "metrics" or window[0]["op"] != "metrics")
                ):
                    break
                window.append(op)
            return window

    def _open(self) -> Server:
        return Server(self.uri, self.experiment, self.root, self.folder)

    def _connected(self, server: Server) -> None:
        with self._cond:
            self._server = server
            self._cond.notify_all()

    def _answers(self) -> None:
        if self.problem:
            log.warning("MLflow at %s answers again", redact(self.uri))
        self.problem = self._unusable = ""

    def _away(self, error: Exception) -> None:
        words = words_of(error)
        unusable = isinstance(error, UserError) or (
            self._server is None and refused(error, self.uri)
        )
        says = "cannot be used" if unusable else "does not answer"
        with self._cond:
            before, self.problem = self.problem, f"MLflow at {redact(self.uri)} {says}: {words}"
            self._unusable = self.problem if unusable else ""
            self._cond.notify_all()
        if not before:
            log.warning("%s; what it misses is kept on disk", self.problem)

    def _settled(self, error: Exception, window: list[dict]) -> bool:
        """Whether to go on at once (the operation is given up, or tried alone) rather than wait and try again."""
        try:
            if not window:
                raise error
            self._server.probe()
        except Exception as away:
            self._away(away)
            return False
        code, op = getattr(error, "error_code", ""), window[0]
        if code in AWAY or no_room(error):
            self._away(error)
            return False
        if code not in PERMANENT and not isinstance(
            error, (LookupError, ValueError, FileNotFoundError)
        ):
            self._tries += 1  # MLflow answers, but not to this: its artifact store may be away, or this one may fail for ever
            if self._tries < TRIES and op["op"] not in self._distrusted:
                log.warning(
                    "%s of run %s failed and is tried again: %s",
                    op["op"],
                    op["key"],
                    words_of(error),
                )
                return False
            self._distrusted.add(op["op"])
        if len(window) > 1:
            self._single = len(window)
        else:
            self._reject(op, error)
        return True

    def _reject(self, op: dict, error: Exception) -> None:
        words = words_of(error)
        self.rejected += 1
        log.warning("MLflow refuses %s of run %s, skipped: %s", op["op"], op["key"], words)
        with (
            contextlib.suppress(OSError),
            (self.folder / "tracking.rejected.jsonl").open("a") as file,
        ):  # the disk is full: it was said above
            file.write(
                json.dumps(
                    {**{k: v for k, v in op.items() if k not in ("end", "old")}, "error": words}
                )
                + "\n"
            )
        self._delivered(1)
