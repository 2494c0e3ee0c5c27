"""Apply queued operations to one MLflow experiment."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.tracking.mlflow_model import ModelRegistry
from orchestrator.tracking.mlflow_runs import LeaseRenewer, RunIndex
from orchestrator.tracking.mlflow_server import open_experiment, reconcile_experiments
from orchestrator.tracking.queue import Operation

WATCH_S = 15
"""Seconds between two looks at the load of the driver's machine."""


class ExperimentClient:
    """Client of one experiment in an MLflow store, for one run folder.

    Every method may raise whatever MLflow raises. Applying an operation twice changes nothing: a
    run is found again by its tag, metric steps that MLflow has are dropped, and a model version is
    known by the digest of its weights.
    """

    def __init__(self, uri: str, experiment: str, root: Path, folder: Path, client: Any = None):
        """Connect; see open_experiment for arguments and errors."""
        self.connection = open_experiment(uri, experiment, root, folder, client)
        self.runs = RunIndex(self.connection)
        self.leases = LeaseRenewer(self.connection, self.runs)
        self._models = ModelRegistry(self.connection)
        self._uri = uri
        self._reconciled = False
        self._monitors: dict[str, Any] = {}
        """MLflow's collectors of the machine's load, by run key."""
        self._handlers: dict[str, Callable[[Operation], None]] = {
            "run": self._open_run,
            "data": self._log_inputs,
            "artifact": self._log_artifact,
            "model": self._log_model,
            "end": self._end_run,
        }

    def probe(self) -> None:
        """Raise if MLflow does not answer."""
        self.connection.client.get_experiment(self.connection.experiment_id)

    def reconcile_once(self) -> None:
        """Set the runs of lost processes to KILLED, on the first call that MLflow answers."""
        if not self._reconciled:
            reconcile_experiments(self.connection.client, [self.connection.experiment_id])
            self._reconciled = True

    def apply(self, window: list[Operation]) -> None:
        """Apply one operation, or consecutive metrics operations of any runs."""
        kind = window[0].kind
        if kind == "metrics":
            self.runs.log_metrics(window)
        elif kind in self._handlers:
            self._handlers[kind](window[0])
        else:
            raise LookupError(f"unknown tracking operation {kind!r}")

    def _open_run(self, operation: Operation) -> None:
        self.runs.open(operation)
        if not operation.restored:
            self.leases.add(operation.run_key)
            if operation.fields.get("watch"):  # older queues lack it
                self._watch_machine(operation.run_key)
        # Last: MLflow may refuse a param for good, and the run is open all the same.
        self.runs.log_params(operation)

    def _watch_machine(self, run_key: str) -> None:
        """Start a thread of MLflow's that logs the load of this machine; its failures are its own.

        A run that is opened again goes on after its last step.
        """
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if run_key in self._monitors:
            return
        monitor = SystemMetricsMonitor(
            self.runs.require(run_key),
            sampling_interval=WATCH_S,
            resume_logging=True,
            tracking_uri=self._uri,
        )
        monitor.start()
        self._monitors[run_key] = monitor

    def _end_run(self, operation: Operation) -> None:
        if monitor := self._monitors.pop(operation.run_key, None):
            monitor.finish()
        self.runs.end(operation)
        self.leases.remove(operation.run_key)

    def _log_inputs(self, operation: Operation) -> None:
        """Log data sets as inputs of a run.

        MLflow identifies a data set by name and digest, and an input of a run by its data set, so
        logging one twice adds nothing.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for data_set in operation["sets"]:
            data = Dataset(
                data_set["name"],
                data_set["digest"],
                source_type=data_set["kind"],
                source=json.dumps({"uri": data_set["uri"]}),
                profile=json.dumps(data_set["counts"]),
            )
            context = InputTag("mlflow.data.context", data_set["context"])
            inputs.append(DatasetInput(data, [context]))
        self.connection.client.log_inputs(self.runs.require(operation.run_key), inputs)

    def _log_artifact(self, operation: Operation) -> None:
        path = self.connection.folder / operation["path"]
        if not path.exists():
            raise FileNotFoundError(f"{path.name} does not exist any more")
        client = self.connection.client
        upload = client.log_artifacts if path.is_dir() else client.log_artifact
        upload(self.runs.require(operation.run_key), str(path), operation["to"] or None)

    def _log_model(self, operation: Operation) -> None:
        self._models.register(self.runs.require(operation.run_key), operation)
