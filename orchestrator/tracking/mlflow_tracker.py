"""Track to MLflow from the driver alone, through a queue on disk.

Each public call of the tracker appends one line to a file in the run folder and returns. A thread
delivers the lines in order, so a server that is away stops no training: what it misses arrives
later, from this process or from the next one on the same folder.
"""

import logging
import time
from pathlib import Path
from typing import Any

from aml.errors import UserError
from orchestrator.tracking.delivery import DeliveryThread
from orchestrator.tracking.mlflow_client import ExperimentClient
from orchestrator.tracking.mlflow_server import error_text, set_environment, tracking_uri
from orchestrator.tracking.queue import REJECTED, QueueFile
from orchestrator.tracking.tracker import TrackerBase
from orchestrator.utils import Progress, announced_wait, redact

logger = logging.getLogger(__name__)


class Tracker(TrackerBase):
    """Tracker whose calls a thread delivers to MLflow.

    One tracker at a time may work on a run folder.
    """

    def __init__(self, folder: Path, uri: str | None, experiment: str, root: Path):
        """Restore the queue of the run folder and start the thread.

        Args:
            folder: Folder of the run.
            uri: Setting tracking.uri; None: see tracking_uri.
            experiment: Name of the MLflow experiment.
            root: Storage root.
        """
        super().__init__(folder)
        self.root = root
        self.experiment = experiment
        self.uri = tracking_uri(uri, root)
        set_environment()
        self._queue = QueueFile(self.folder)
        self._delivery = DeliveryThread(self._queue, self.uri, self._connect)

    @property
    def problem(self) -> str:
        return self._delivery.availability.problem

    @property
    def rejected(self) -> int:
        return self._queue.rejected

    @property
    def pending(self) -> int:
        return len(self._queue)

    def enqueue(self, kind: str, run_key: str, **fields: Any) -> None:
        now_ms = int(time.time() * 1000)
        self._delivery.enqueue({"op": kind, "key": run_key, "t": now_ms, **fields})

    def ready(self, timeout: float = 60.0) -> bool:
        """Wait until MLflow answers; a new SQLite file takes about 10 s.

        Returns:
            False if it does not answer; `problem` then says why, and the queue keeps what MLflow
            misses.

        Raises:
            UserError: MLflow answers that it cannot be used (wrong password, old schema, deleted
                experiment).
        """
        with announced_wait(f"MLflow at {redact(self.uri)} to answer"):
            is_connected = self._delivery.wait_connected(timeout)
        state = self._delivery.availability
        if state.unusable:
            raise UserError(state.problem)
        if not is_connected and not state.problem:
            state.problem = f"MLflow at {redact(self.uri)} has not answered within {timeout:.0f} s"
        return is_connected

    def record(self, run_key: str) -> dict[str, str | None]:
        """Return uri (redacted), experiment_id and run_id; ids are None until they are known."""
        client = self._delivery.client
        return {
            "uri": redact(self.uri),
            "experiment_id": client.connection.experiment_id if client else None,
            "run_id": client.runs.ids.get(run_key) if client else None,
        }

    def children(self, run_key: str) -> dict[str, str]:
        client = self._delivery.client
        if client is None or self.problem:
            return {}
        try:
            return client.runs.children(run_key)
        except Exception as error:  # whatever MLflow or the network raises
            logger.info(f"MLflow does not say which runs belong together: {error_text(error)}")
            return {}

    def flush(self, timeout: float = 60.0) -> int:
        """Wait at most `timeout` seconds for delivery; return how many operations remain."""
        total = self.pending
        place = f"MLflow at {redact(self.uri)}"
        with (
            announced_wait(f"{place} to take {total} tracking operations"),
            Progress(f"to {place}", total, "tracking operations") as progress,
        ):
            return self._delivery.wait_empty(timeout, lambda left: progress.set(total - left))

    def close(self, timeout: float = 60.0) -> str:
        """End open runs as KILLED (`stopped_by: interrupted`), deliver, and stop the thread.

        Args:
            timeout: Seconds to wait for delivery; at most 10 if MLflow is known to be away.

        Returns:
            A sentence about operations that remain or were refused, else "".
        """
        self._end_open_runs()
        left = self.flush(min(timeout, 10) if self.problem else timeout)
        self._delivery.stop(2.0)
        if left:
            why = self.problem or f"MLflow at {redact(self.uri)} is too slow"
            return (
                f"{left} tracking operations stay in {self._queue.path.name} and are delivered by "
                f"the next command on this run ({why})"
            )
        self._queue.delete_files()
        if self.rejected:
            return f"MLflow refused {self.rejected} tracking operations: see {REJECTED}"
        return ""

    def _connect(self) -> ExperimentClient:
        return ExperimentClient(self.uri, self.experiment, self.root, self.folder)
