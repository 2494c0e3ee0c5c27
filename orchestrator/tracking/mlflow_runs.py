"""MLflow runs of one run folder: find, create, open again and end them; renew their leases.

A run that is RUNNING carries the tag `lease` ("host pid unix-time"), renewed every AMLRIS_LEASE_S
seconds (30). `reconcile` sets runs to KILLED whose lease is four times as old, or whose process on
this machine is gone.
"""

import logging
import os
import re
import time
from typing import Any

from orchestrator import utils
from orchestrator.tracking.mlflow_server import (
    KEY_TAG,
    PERMANENT_CODES,
    ExperimentConnection,
    all_pages,
    error_text,
)
from orchestrator.tracking.queue import Operation

logger = logging.getLogger(__name__)


class RunIndex:
    """MLflow runs by run key. Every method may raise whatever MLflow raises."""

    def __init__(self, connection: ExperimentConnection):
        self._connection = connection
        self.ids: dict[str, str] = {}
        """MLflow run id by run key."""
        self.last_steps: dict[str, dict[str, int]] = {}
        """Last step that MLflow has, by run key and metric."""
        self._maybe_duplicated: set[str] = set()
        """Keys of runs that may have been created twice."""

    def find(self, run_key: str) -> str | None:
        """Return the MLflow run id of a key; None if there is no such run.

        A run that an earlier process created is found by its tag, and the last step of each of
        its metrics is read with it.
        """
        if run_key not in self.ids:
            found = self._search(run_key)
            if not found:
                return None
            run_id = found[0].info.run_id
            self.last_steps[run_key] = {
                name: max(
                    metric.step
                    for metric in self._connection.client.get_metric_history(run_id, name)
                )
                for name in found[0].data.metrics
            }
            self.ids[run_key] = run_id
        return self.ids[run_key]

    def require(self, run_key: str) -> str:
        """Return the MLflow run id of a key; LookupError if there is no such run."""
        run_id = self.find(run_key)
        if run_id is None:
            raise LookupError(
                f"no run {run_key!r}: it was never opened, or it was deleted in MLflow"
            )
        return run_id

    def children(self, run_key: str) -> dict[str, str]:
        """Return the run ids of a run's children by their keys; {} if there is no such run."""
        run_id = self.find(run_key)
        if run_id is None:
            return {}
        query = f"tags.`mlflow.parentRunId` = '{run_id}'"
        search = self._connection.client.search_runs
        found = all_pages(search, [self._connection.experiment_id], query)
        keys = {run.info.run_id: run.data.tags.get(KEY_TAG, "") for run in found}
        return {key.partition("/")[2]: run_id for run_id, key in keys.items() if "/" in key}

    def open(self, operation: Operation) -> None:
        """Create the run of a "run" operation, or open it again; write its tags."""
        run_key = operation.run_key
        tags = {
            **operation["tags"],
            KEY_TAG: self._tag_value(run_key),
            "lease": _lease_of(operation),
        }
        if operation["parent"] is not None:
            tags["mlflow.parentRunId"] = self.require(operation["parent"])
        run_id = self.find(run_key)
        if run_id is None:
            run_id = self._create(operation, tags)
            self.ids[run_key] = run_id
            self.last_steps[run_key] = {}
        else:
            self.reopen(run_id, operation["name"])
            self._log_batch(run_id, tags=tags)

    def log_params(self, operation: Operation) -> None:
        """Write the params of a "run" operation."""
        self._log_batch(self.require(operation.run_key), params=operation["params"])

    def reopen(self, run_id: str, name: str | None = None) -> None:
        """Set a run to RUNNING, with another name if one is given."""
        client = self._connection.client
        client.update_run(run_id, "RUNNING", name)
        if "stopped_by" in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, "stopped_by")

    def end(self, operation: Operation) -> None:
        """End the run of an "end" operation; delete its duplicate where one was created."""
        client = self._connection.client
        run_key = operation.run_key
        run_id = self.require(run_key)
        if run_key in self._maybe_duplicated:
            for run in self._search(run_key):
                if run.info.run_id != run_id:
                    client.delete_run(run.info.run_id)
            self._maybe_duplicated.discard(run_key)
        self._log_batch(run_id, tags=operation["tags"])
        client.set_terminated(run_id, operation["status"], end_time=operation["t"])

    def log_metrics(self, operations: list[Operation]) -> None:
        """Write the metrics of some operations; steps that MLflow already has are dropped."""
        from mlflow.entities import Metric

        for run_key in dict.fromkeys(operation.run_key for operation in operations):
            run_id = self.require(run_key)
            steps = dict(self.last_steps[run_key])
            rows = []
            for operation in operations:
                if operation.run_key != run_key:
                    continue
                for name, value in operation["values"].items():
                    if operation["step"] > steps.get(name, -1):
                        steps[name] = operation["step"]
                        rows.append(Metric(name, value, operation["t"], operation["step"]))
            for start in range(0, len(rows), 1000):
                self._connection.client.log_batch(run_id, metrics=rows[start : start + 1000])
            self.last_steps[run_key] = steps

    def _tag_value(self, run_key: str) -> str:
        return re.sub(r"[^\w./@+ -]", "_", f"{self._connection.folder.name}/{run_key}")

    def _search(self, run_key: str) -> list[Any]:
        return self._connection.client.search_runs(
            [self._connection.experiment_id], f"tags.`{KEY_TAG}` = '{self._tag_value(run_key)}'"
        )

    def _create(self, operation: Operation, tags: dict[str, str]) -> str:
        """Create a run and return its id.

        MLflow may create a run while its answer is lost; then this method, or MLflow's own HTTP
        client, creates another. The key is noted until `end` deletes the duplicate.
        """
        began = time.monotonic()
        was_tried_before = operation.run_key in self._maybe_duplicated
        self._maybe_duplicated.add(operation.run_key)
        created = self._connection.client.create_run(
            self._connection.experiment_id,
            start_time=operation["t"],
            tags=tags,
            run_name=operation["name"],
        )
        # Within one request timeout the HTTP client cannot have repeated the request.
        timeout_s = float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
        if not was_tried_before and time.monotonic() - began < timeout_s:
            self._maybe_duplicated.discard(operation.run_key)
        return created.info.run_id

    def _log_batch(
        self,
        run_id: str,
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Write params and tags, 100 a request, which is MLflow's limit."""
        from mlflow.entities import Param, RunTag

        client = self._connection.client
        param_rows = [Param(name, value) for name, value in (params or {}).items()]
        for start in range(0, len(param_rows), 100):
            client.log_batch(run_id, params=param_rows[start : start + 100])
        tag_rows = [RunTag(name, value) for name, value in (tags or {}).items()]
        for start in range(0, len(tag_rows), 100):
            client.log_batch(run_id, tags=tag_rows[start : start + 100])


def _lease_of(operation: Operation) -> str:
    """Return the lease of a run: of the process that wrote the operation, at that time."""
    if operation.restored:
        return utils.lease_text(operation["pid"], operation["host"], operation["t"] / 1000)
    return utils.lease_text()


class LeaseRenewer:
    """Renew the leases of the runs that this process has open."""

    def __init__(self, connection: ExperimentConnection, runs: RunIndex):
        self._connection = connection
        self._runs = runs
        self._open_keys: set[str] = set()
        self.renewed = time.time()
        """Unix time of the last renewal in seconds."""

    def add(self, run_key: str) -> None:
        """Renew the lease of this run from now on."""
        self._open_keys.add(run_key)

    def remove(self, run_key: str) -> None:
        """Renew the lease of this run no longer."""
        self._open_keys.discard(run_key)

    def seconds_until_due(self) -> float:
        """Return the seconds until the next renewal, at least 0.05."""
        return max(0.05, self.renewed + utils.lease_seconds() - time.time())

    def renew(self) -> None:
        """Renew all leases if they are due.

        After a gap in which another process may have set the runs to KILLED, they are set to
        RUNNING again.
        """
        gap_s = time.time() - self.renewed
        if gap_s < utils.lease_seconds():
            return
        for run_key in sorted(self._open_keys):
            run_id = self._runs.ids[run_key]
            try:
                if gap_s > 4 * utils.lease_seconds():
                    self._runs.reopen(run_id)
                self._connection.client.set_tag(run_id, "lease", utils.lease_text())
            except Exception as error:
                if getattr(error, "error_code", "") not in PERMANENT_CODES:
                    raise
                logger.warning(
                    "the lease of run %s can no longer be renewed: %s", run_key, error_text(error)
                )
                self._open_keys.discard(run_key)
        self.renewed = time.time()
