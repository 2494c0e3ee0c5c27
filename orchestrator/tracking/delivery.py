"""Deliver queued operations to MLflow in a thread of the driver.

The thread works the queue off in order. It repeats what fails while MLflow is away, for as long as
it takes, and gives up an operation that MLflow answers with a refusal.
"""

import enum
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from aml.errors import UserError
from orchestrator.tracking.mlflow_client import ExperimentClient
from orchestrator.tracking.mlflow_server import (
    PERMANENT_CODES,
    UNAVAILABLE_CODES,
    error_text,
    is_connection_refused,
    is_disk_full,
)
from orchestrator.tracking.queue import Operation, QueueFile
from orchestrator.utils import redact

logger = logging.getLogger(__name__)

MAX_DELAY_S = 15.0
"""Longest pause between two attempts."""

MAX_ATTEMPTS = 6
"""Attempts at an operation that fails while MLflow answers other requests."""

WAIT_S = 1.0
"""Seconds between two looks at how far a delivery is that is waited for."""

WINDOW = 100
"""Metrics operations that are applied at once."""


class Decision(enum.Enum):
    """Next step after operations failed."""

    WAIT_FOR_SERVER = enum.auto()
    RETRY_LATER = enum.auto()
    RETRY_ONE_BY_ONE = enum.auto()
    REJECT = enum.auto()


class RetryPolicy:
    """Decide how often failed operations are repeated, and after which pause."""

    def __init__(self) -> None:
        self._delay_s = 0.0
        self._attempts = 0
        self._one_by_one = 0
        """Number of operations, of a window that failed, still to be applied singly."""
        self._impatient_kinds: set[str] = set()
        """Kinds of operations of which one used up its attempts: others get one attempt each."""

    @property
    def window(self) -> int:
        """Number of operations to apply at once."""
        return 1 if self._one_by_one else WINDOW

    def decide(self, error: Exception, window: list[Operation]) -> Decision:
        """Decide what to do about operations that failed although MLflow answers a probe."""
        code = getattr(error, "error_code", "")
        kind = window[0].kind
        if code in UNAVAILABLE_CODES or is_disk_full(error):
            return Decision.WAIT_FOR_SERVER
        is_permanent = code in PERMANENT_CODES or isinstance(
            error, (LookupError, ValueError, FileNotFoundError)
        )
        if not is_permanent:
            # Either MLflow's artifact store is away, or this operation fails for ever.
            self._attempts += 1
            if self._attempts < MAX_ATTEMPTS and kind not in self._impatient_kinds:
                return Decision.RETRY_LATER
            self._impatient_kinds.add(kind)
        if len(window) > 1:
            self._one_by_one = len(window)
            return Decision.RETRY_ONE_BY_ONE
        return Decision.REJECT

    def note_applied(self, kind: str) -> None:
        """Note that MLflow took operations of this kind."""
        self._impatient_kinds.discard(kind)

    def note_removed(self, count: int) -> None:
        """Note that operations were delivered or refused."""
        self._attempts = 0
        self._one_by_one = max(0, self._one_by_one - count)

    def reset_delay(self) -> None:
        """Begin again with the shortest pause."""
        self._delay_s = 0.0

    def next_delay_s(self) -> float:
        """Return the pause before the next attempt: 0.5 s, then twice the last one."""
        self._delay_s = min(MAX_DELAY_S, 2 * self._delay_s or 0.5)
        return self._delay_s


class Availability:
    """State of the MLflow server, in words for a person."""

    def __init__(self, uri: str):
        self._uri = uri
        self.problem = ""
        """Reason why MLflow gets nothing at present; empty while it answers."""
        self.unusable = False
        """True if a person has to change something before MLflow can be used."""

    def note_answer(self) -> None:
        """Note that MLflow answers; log it after an outage."""
        if self.problem:
            logger.warning("MLflow at %s answers again", redact(self._uri))
        self.problem = ""
        self.unusable = False

    def note_failure(self, error: Exception, connecting: bool) -> None:
        """Note that MLflow does not answer or cannot be used; log the first failure of an outage.

        Args:
            error: What the request met.
            connecting: Whether the connection was never made.
        """
        is_first = not self.problem
        self.unusable = isinstance(error, UserError) or (
            connecting and is_connection_refused(error, self._uri)
        )
        state = "cannot be used" if self.unusable else "does not answer"
        self.problem = f"MLflow at {redact(self._uri)} {state}: {error_text(error)}"
        if is_first:
            logger.warning("%s; the operations that it misses are kept on disk", self.problem)


class DeliveryThread:
    """Thread that delivers the operations of a queue to MLflow.

    `condition` guards the queue, `client` and `availability`, and is notified when one changes.
    """

    def __init__(self, queue: QueueFile, uri: str, connect: Callable[[], ExperimentClient]):
        """Start the thread.

        Args:
            queue: Queue of the run folder.
            uri: Tracking address, for messages.
            connect: Called in the thread until it returns a client.
        """
        self.availability = Availability(uri)
        self.client: ExperimentClient | None = None
        self.condition = threading.Condition()
        self._queue = queue
        self._connect = connect
        self._retry = RetryPolicy()
        self._retry_now = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def enqueue(self, fields: dict[str, Any]) -> None:
        """Append an operation to the queue; returns without waiting for MLflow."""
        with self.condition:
            self._queue.append(fields)
            self.condition.notify_all()

    def wait_connected(self, timeout: float) -> bool:
        """Wait for a connection or a failure; return whether there is a connection."""
        with self.condition:
            self.condition.wait_for(
                lambda: self.client is not None or bool(self.availability.problem), timeout
            )
            return self.client is not None

    def wait_empty(self, timeout: float, on_left: Callable[[int], None] = lambda left: None) -> int:
        """Try at once and wait until the queue is empty; return how many operations remain.

        Args:
            timeout: Seconds to wait at most.
            on_left: Called now and then with the number of operations that remain.
        """
        self._retry_now.set()
        ends = time.monotonic() + timeout
        while True:
            with self.condition:
                wait_s = min(WAIT_S, max(0.0, ends - time.monotonic()))
                self.condition.wait_for(lambda: not len(self._queue), wait_s)
                left = len(self._queue)
            on_left(left)
            if not left or time.monotonic() >= ends:
                return left

    def stop(self, timeout: float) -> None:
        """Stop the thread after the request in progress, and wait at most `timeout` seconds."""
        self._stop.set()
        self._retry_now.set()
        with self.condition:
            self.condition.notify_all()
        self._thread.join(timeout)

    def is_alive(self) -> bool:
        """Check if the thread is still running."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            window: list[Operation] = []
            try:
                client = self._connected_client()
                client.leases.renew()
                if not self._has_restored_head():
                    client.reconcile_once()
                window = self._next_window(client)
                if window:
                    client.apply(window)
                    self._retry.note_applied(window[0].kind)
                    self._remove(len(window))
                self._retry.reset_delay()
                self.availability.note_answer()
            except Exception as error:
                # No error of MLflow may end the training or this thread.
                if self._must_wait(error, window) and self._retry_now.wait(
                    self._retry.next_delay_s()
                ):
                    self._retry.reset_delay()
            self._retry_now.clear()

    def _connected_client(self) -> ExperimentClient:
        if self.client is None:
            client = self._connect()
            with self.condition:
                self.client = client
                self.condition.notify_all()
        return self.client

    def _has_restored_head(self) -> bool:
        """Check if the next operation is an earlier process's.

        Its runs are opened again before lost runs are looked for.
        """
        with self.condition:
            return any(operation.restored for operation in self._queue.head(1))

    def _next_window(self, client: ExperimentClient) -> list[Operation]:
        """Return the operations to apply at once: consecutive metrics, else a single operation.

        Waits for an operation, but no longer than until the next renewal of leases.
        """
        with self.condition:
            if not len(self._queue) and not self._stop.is_set():
                self.condition.wait(client.leases.seconds_until_due())
            window: list[Operation] = []
            for operation in self._queue.head(self._retry.window):
                if window and {operation.kind, window[0].kind} != {"metrics"}:
                    break
                window.append(operation)
            return window

    def _remove(self, count: int) -> None:
        with self.condition:
            self._queue.remove(count)
            self._retry.note_removed(count)
            self.condition.notify_all()

    def _must_wait(self, error: Exception, window: list[Operation]) -> bool:
        """Handle a failure; return whether to wait before the next attempt.

        Without a wait, the operation was rejected, or the window's operations are tried singly.
        """
        if not window or self.client is None:
            return self._note_failure(error)
        try:
            self.client.probe()
        except Exception as outage:
            return self._note_failure(outage)
        operation = window[0]
        decision = self._retry.decide(error, window)
        if decision is Decision.WAIT_FOR_SERVER:
            return self._note_failure(error)
        if decision is Decision.RETRY_LATER:
            logger.warning(
                "%s of run %s failed and is tried again: %s",
                operation.kind,
                operation.run_key,
                error_text(error),
            )
            return True
        if decision is Decision.REJECT:
            self._reject(operation, error)
        return False

    def _note_failure(self, error: Exception) -> bool:
        """Note that MLflow is away; returns True, since the next attempt has to wait."""
        with self.condition:
            self.availability.note_failure(error, connecting=self.client is None)
            self.condition.notify_all()
        return True

    def _reject(self, operation: Operation, error: Exception) -> None:
        reason = error_text(error)
        logger.warning(
            "MLflow refuses %s of run %s, which is skipped: %s",
            operation.kind,
            operation.run_key,
            reason,
        )
        self._queue.note_rejected(operation, reason)
        self._remove(1)
