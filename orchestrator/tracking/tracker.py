"""Tell a tracker of runs, epochs, artifacts and models; keep all of it in memory for tests."""

import abc
import json
import logging
import math
import os
import re
import socket
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from aml.errors import UserError
from aml.training import ENDED
from orchestrator.tracking.mlflow_model import weights_digest
from orchestrator.utils import redact

logger = logging.getLogger(__name__)

END_STATUSES = ("FINISHED", "FAILED", "KILLED")

DIAG = "diag/"
"""Beginning of the metrics of an epoch by which nothing is judged, so that charts open without."""

DIAGNOSING = ("epoch", "optim/lr", "train/skipped", "train/workers", "val/n")
"""Metrics of an epoch that get that beginning."""

MASKING = "aml/"
COMPARED = ("aml/hidden", "aml/hidden_target", "aml/lift", "aml/probe_hidden")
"""Metrics of masking by which arms are compared; all others under `MASKING` only diagnose."""


def _logged_name(name: str, judged: Collection[str]) -> str:
    """Return the name that an epoch's metric has in MLflow."""
    diagnoses = name in DIAGNOSING or (name.startswith(MASKING) and name not in COMPARED)
    return f"{DIAG}{name}" if diagnoses and name not in judged else name


def _valid_name(name: str) -> str:
    """Return a metric or param name that MLflow admits: P@0.5 becomes P0.5."""
    return re.sub(r"[^\w./\- :]", "_", str(name).replace("@", ""))


def _text(value: object) -> str:
    """Return the text of a param or tag; 0 and 0.0 give the same, as a param may never change."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return f"{value:.10g}"
    return redact(value if isinstance(value, str) else json.dumps(value, default=str))


def _texts(values: Mapping[str, Any] | None) -> dict[str, str]:
    """Return params or tags with valid names and values as text."""
    return {_valid_name(name): _text(value) for name, value in (values or {}).items()}


def _finite(values: Mapping[str, Any] | None) -> dict[str, float]:
    """Return metrics with valid names, without None, NaN and infinities."""
    numbers = ((name, float(value)) for name, value in (values or {}).items() if value is not None)
    return {_valid_name(name): value for name, value in numbers if math.isfinite(value)}


class TrackerBase(abc.ABC):
    """Calls of a tracker; each becomes one plain dict for `enqueue`, and none of them waits.

    A run key names an MLflow run inside this run folder ("sweep", a trial's name); runs of other
    folders may use the same keys. The class is long since it documents the whole interface.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._open_keys: set[str] = set()

    @property
    @abc.abstractmethod
    def problem(self) -> str:
        """Reason why MLflow gets nothing at present; empty while it answers."""

    @property
    @abc.abstractmethod
    def rejected(self) -> int:
        """Number of operations that were refused."""

    @property
    @abc.abstractmethod
    def pending(self) -> int:
        """Number of operations that are not delivered yet."""

    @abc.abstractmethod
    def enqueue(self, kind: str, run_key: str, **fields: Any) -> None:
        """Take an operation: its kind, its run and its JSON-compatible arguments."""

    @abc.abstractmethod
    def ready(self, timeout: float = 60.0) -> bool:
        """Wait at most `timeout` seconds until the store answers; return whether it does."""

    @abc.abstractmethod
    def record(self, run_key: str) -> dict[str, str | None]:
        """Return uri, experiment_id and run_id for the summary in the run folder."""

    @abc.abstractmethod
    def children(self, run_key: str) -> dict[str, str]:
        """Return the run id of each run that was opened below this one, by its key.

        Nothing where MLflow does not answer.
        """

    @abc.abstractmethod
    def flush(self, timeout: float = 60.0) -> int:
        """Wait at most `timeout` seconds for delivery; return how many operations remain."""

    @abc.abstractmethod
    def close(self, timeout: float = 60.0) -> str:
        """End open runs and stop; return a sentence about what was not delivered, else ""."""

    def run(
        self,
        run_key: str,
        name: str,
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        watch_machine: bool = False,
    ) -> None:
        """Open a run, or open it again: the same MLflow run becomes RUNNING.

        Args:
            run_key: Key of the run.
            name: Name of the run in MLflow.
            parent: Key of the parent run, which was opened before.
            params: Params. MLflow refuses another value for one that the run has.
            tags: Tags.
            watch_machine: Whether MLflow's collector logs processors, memory, disk and GPUs of
                this process's machine as system/... of the run until it ends.
        """
        if parent == run_key:
            raise ValueError(f"run {run_key!r} cannot be its own parent")
        self._open_keys.add(run_key)
        self.enqueue(
            "run",
            run_key,
            name=name,
            parent=parent,
            params=_texts(params),
            tags=_texts(tags),
            host=socket.gethostname(),
            pid=os.getpid(),
            watch=watch_machine,
        )

    def metrics(
        self,
        run_key: str,
        step: int,
        values: Mapping[str, float | None],
        time_ms: int | None = None,
    ) -> None:
        """Log metrics of one step (epoch).

        Args:
            run_key: Key of the run.
            step: Step. MLflow gets no step of a metric twice.
            values: Metrics; None, NaN and infinities are left out.
            time_ms: Unix time in ms; None: now.
        """
        finite = _finite(values)
        if finite:
            time_field = {"t": int(time_ms)} if time_ms else {}
            self.enqueue("metrics", run_key, step=int(step), values=finite, **time_field)

    def epoch(self, run_key: str, metrics: Mapping[str, Any], judged: Collection[str] = ()) -> None:
        """Log an epoch of the training loop, dated when it ended, which is not a metric itself.

        Names of metrics that only diagnose get the beginning diag/.

        Args:
            run_key: Key of the run.
            metrics: Metrics of the epoch by name.
            judged: Names of those that the run is judged by, which diagnose no more.
        """
        ended = metrics.get(ENDED)
        self.metrics(
            run_key,
            metrics["epoch"],
            {_logged_name(name, judged): value for name, value in metrics.items() if name != ENDED},
            time_ms=ended and int(ended * 1000),
        )

    def data(self, run_key: str, sets: list[dict[str, Any]]) -> None:
        """Log data sets that the run reads, shown among its inputs.

        Args:
            run_key: Key of the run.
            sets: Of each data set name, digest, uri, counts (of refs, sentences, images) and
                context (training, validation or evaluation).
        """
        entries = []
        for data_set in sets:
            uri = redact(data_set["uri"])
            entries.append(
                {
                    **data_set,
                    "name": data_set["name"][:250],  # MLflow's limits
                    "digest": data_set["digest"][:36],
                    "uri": uri,
                    "kind": urlparse(uri).scheme or "local",
                }
            )
        self.enqueue("data", run_key, sets=entries)

    def artifact(self, run_key: str, path: Path, to: str = "") -> None:
        """Upload a file, or the content of a folder, as it is when its turn comes.

        Args:
            run_key: Key of the run.
            path: File or folder.
            to: Artifact folder to upload into.
        """
        path = Path(path).absolute()
        folder = self.folder.absolute()
        stored = path.relative_to(folder) if path.is_relative_to(folder) else path
        self.enqueue("artifact", run_key, path=str(stored), to=to)

    def model(
        self,
        run_key: str,
        checkpoint: Path,
        registered_name: str,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Log a checkpoint as a pyfunc model, register it and set the alias `champion` to it.

        Args:
            run_key: Key of the run.
            checkpoint: Checkpoint folder.
            registered_name: Name of the registered model.
            metrics: Metrics of the logged model.

        Raises:
            UserError: MLflow does not admit the name.
        """
        if not re.fullmatch(r"[\w .+-]+", registered_name):
            raise UserError(
                f"the model name is {registered_name!r}, but wanted are letters, digits and "
                "_ . + -; choose another"
            )
        self.enqueue(
            "model",
            run_key,
            path=str(Path(checkpoint).absolute()),
            name=registered_name,
            metrics=_finite(metrics),
        )

    def end(
        self, run_key: str, status: str = "FINISHED", tags: Mapping[str, Any] | None = None
    ) -> None:
        """End a run.

        Args:
            run_key: Key of the run.
            status: FINISHED, FAILED or KILLED.
            tags: Tags to set.
        """
        if status not in END_STATUSES:
            raise ValueError(f"a run ends as one of {', '.join(END_STATUSES)}, not {status!r}")
        self._open_keys.discard(run_key)
        self.enqueue("end", run_key, status=status, tags=_texts(tags))

    def _end_open_runs(self) -> None:
        for run_key in sorted(self._open_keys):
            self.end(run_key, "KILLED", {"stopped_by": "interrupted"})


class MemoryTracker(TrackerBase):
    """Tracker that keeps everything in dicts: for tests and for `tracking.uri: none`.

    runs[run_key] holds name, parent, status, params, tags, metrics {name: [(step, value), ...]},
    artifacts [path, ...], models [name, ...] and data [(name, digest, context), ...].
    """

    problem = ""
    rejected = 0
    pending = 0

    def __init__(self, folder: Path, runs: dict[str, dict] | None = None):
        """Begin with no runs, or go on with the `runs` of an earlier tracker."""
        super().__init__(folder)
        self.runs: dict[str, dict] = {} if runs is None else runs
        self._lock = threading.Lock()

    def enqueue(self, kind: str, run_key: str, **fields: Any) -> None:
        with self._lock:
            try:
                if kind == "run":
                    self._open(run_key, fields)
                else:
                    getattr(self, f"_{kind}")(self.runs[run_key], fields)
            except (LookupError, ValueError, FileNotFoundError) as error:
                self.rejected += 1
                logger.warning("%s of run %s is refused: %s", kind, run_key, error)

    def _open(self, run_key: str, fields: dict[str, Any]) -> None:
        parent = fields["parent"]
        if parent is not None and parent not in self.runs:
            raise LookupError(f"no run {parent!r}")
        lists: dict[str, list] = {"artifacts": [], "models": [], "data": []}
        run = self.runs.setdefault(run_key, {"params": {}, "tags": {}, "metrics": {}, **lists})
        run["tags"].pop("stopped_by", None)
        run.update(name=fields["name"], parent=parent, status="RUNNING")
        for name, value in fields["params"].items():
            if run["params"].setdefault(name, value) != value:
                raise ValueError(f"param {name} is {run['params'][name]} and cannot become {value}")
        run["tags"].update(fields["tags"])

    def _metrics(self, run: dict, fields: dict[str, Any]) -> None:
        for name, value in fields["values"].items():
            points = run["metrics"].setdefault(name, [])
            if not points or fields["step"] > points[-1][0]:
                points.append((fields["step"], value))

    def _data(self, run: dict, fields: dict[str, Any]) -> None:
        for data_set in fields["sets"]:
            entry = (data_set["name"], data_set["digest"], data_set["context"])
            if entry not in run["data"]:
                run["data"].append(entry)

    def _artifact(self, run: dict, fields: dict[str, Any]) -> None:
        path = self.folder / fields["path"]
        if not path.exists():
            raise FileNotFoundError(f"{path.name} does not exist")
        if path.is_file():
            names = [path.name]
        else:
            files = sorted(file for file in path.rglob("*") if file.is_file())
            names = [file.relative_to(path).as_posix() for file in files]
        run["artifacts"] += [f"{fields['to']}/{name}".lstrip("/") for name in names]

    def _model(self, run: dict, fields: dict[str, Any]) -> None:
        weights_digest(Path(fields["path"]))
        run["models"].append(fields["name"])

    def _end(self, run: dict, fields: dict[str, Any]) -> None:
        run["tags"].update(fields["tags"])
        run["status"] = fields["status"]

    def ready(self, timeout: float = 60.0) -> bool:
        return True

    def record(self, run_key: str) -> dict[str, str | None]:
        return {"uri": "none", "experiment_id": None, "run_id": None}

    def children(self, run_key: str) -> dict[str, str]:
        return {}

    def flush(self, timeout: float = 60.0) -> int:
        return 0

    def close(self, timeout: float = 60.0) -> str:
        self._end_open_runs()
        return ""
