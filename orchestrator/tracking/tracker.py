"""What the driver tells a tracker: runs, epochs, artifacts, ends; and a tracker in memory for
tests.
"""

import json
import logging
import math
import os
import re
import socket
import threading
from pathlib import Path
from urllib.parse import urlparse

from aml.errors import UserError
from aml.training import ENDED
from orchestrator.tracking.mlflow_model import weights_digest
from orchestrator.utils import redact

log = logging.getLogger(__name__)

ENDINGS = ("FINISHED", "FAILED", "KILLED")


def _name(name: str) -> str:
    """A metric or param name that MLflow admits: P@0.5 becomes P0.5."""
    return re.sub(r"[^\w./\- :]", "_", str(name).replace("@", ""))


def _text(value: object) -> str:
    """A param or tag value; 0 and 0.0 read alike, for a param may never change."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return f"{value:.10g}"
    return redact(value if isinstance(value, str) else json.dumps(value, default=str))


def _texts(values: dict | None) -> dict[str, str]:
    return {_name(name): _text(value) for name, value in (values or {}).items()}


def _numbers(values: dict | None) -> dict[str, float]:
    finite = ((name, float(value)) for name, value in (values or {}).items() if value is not None)
    return {_name(name): value for name, value in finite if math.isfinite(value)}


class _Calls:
    """What a driver may say. Each call becomes one plain dict, handed to `_put`; nothing here waits.

    `key` names an MLflow run inside this run folder ("parent", a trial's name); runs of other folders may use the
    same keys."""

    def __init__(self, folder: Path, uri: str | None, experiment: str, root: Path):
        self.folder, self.root, self.experiment = Path(folder), Path(root), experiment
        self._opened: set[str] = set()

    def _put(self, op: str, key: str, **fields) -> None:
        raise AssertionError("a tracker defines where its operations go")

    def run(
        self,
        key: str,
        name: str,
        parent: str | None = None,
        params: dict | None = None,
        tags: dict | None = None,
    ) -> None:
        """Open the run `key`, or open it again (RUNNING, same MLflow run). `parent` is the key of a run opened
        before."""
        if parent == key:
            raise ValueError(f"run {key!r} cannot be its own parent")
        self._opened.add(key)
        self._put(
            "run",
            key,
            name=name,
            parent=parent,
            params=_texts(params),
            tags=_texts(tags),
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def metrics(
        self, key: str, step: int, values: dict[str, float | None], time_ms: int | None = None
    ) -> None:
        """One step (epoch) of some metrics. None, NaN and infinities are left out; a step that MLflow has of a metric
        is not logged again."""
        if values := _numbers(values):
            self._put(
                "metrics",
                key,
                step=int(step),
                values=values,
                **({"t": int(time_ms)} if time_ms else {}),
            )

    def epoch(self, key: str, metrics: dict) -> None:
        """An epoch of the loop's, as of when it ended, which is no metric of its own."""
        ended = metrics.get(ENDED)
        self.metrics(
            key,
            metrics["epoch"],
            {k: v for k, v in metrics.items() if k != ENDED},
            time_ms=ended and int(ended * 1000),
        )

    def params(self, key: str, values: dict) -> None:
        """Params never change: another value for one that exists is refused by MLflow and ends among the rejected
        operations."""
        self._put("params", key, params=_texts(values))

    def tags(self, key: str, values: dict) -> None:
        self._put("tags", key, tags=_texts(values))

    def data(self, key: str, sets: list[dict]) -> None:
        """Data sets that the run reads, shown among its inputs: name, digest, uri, counts (of refs, sentences, images) and context (training,
        validation or evaluation) of each."""
        every = [
            {
                **one,
                "name": one["name"][:250],
                "digest": one["digest"][:36],
                "uri": redact(one["uri"]),
            }
            for one in sets
        ]
        self._put(
            "data",
            key,
            sets=[{**one, "kind": urlparse(one["uri"]).scheme or "local"} for one in every],
        )

    def artifact(self, key: str, path: Path, to: str = "") -> None:
        """Upload a file, or what a folder holds, into the artifact folder `to`, as it is when its turn comes."""
        path = Path(path).absolute()
        inside = path.is_relative_to(self.folder.absolute())
        self._put(
            "artifact",
            key,
            path=str(path.relative_to(self.folder.absolute()) if inside else path),
            to=to,
        )

    def text(self, key: str, path: str, text: str) -> None:
        """Write `text` as the artifact `path`."""
        self._put("text", key, path=path, text=redact(text))

    def model(
        self,
        key: str,
        checkpoint: Path,
        registered_name: str,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Log a checkpoint folder as a pyfunc model of the run `key`, register it and point the alias `champion` at
        it."""
        if not re.fullmatch(r"[\w .+-]+", registered_name):
            raise UserError(
                f"the model name is {registered_name!r}, but wanted are letters, digits and _ . + -; choose another"
            )
        self._put(
            "model",
            key,
            path=str(Path(checkpoint).absolute()),
            name=registered_name,
            metrics=_numbers(metrics),
        )

    def end(self, key: str, status: str = "FINISHED", tags: dict | None = None) -> None:
        if status not in ENDINGS:
            raise ValueError(f"a run ends as one of {', '.join(ENDINGS)}, not {status!r}")
        self._opened.discard(key)
        self._put("end", key, status=status, tags=_texts(tags))

    def _end_open(self) -> None:
        for key in sorted(self._opened):
            self.end(key, "KILLED", {"stopped_by": "interrupted"})


class MemoryTracker(_Calls):
    """The same calls with nothing behind them but dicts: for tests and for `tracking.uri: none`.

    runs[key] = {name, parent, status, params, tags, metrics: {name: [(step, value), ...]}, artifacts: [path, ...],
    models: [name, ...], data: [(name, digest, context), ...]}. Give the `runs` of an earlier one to continue it."""

    def __init__(
        self,
        folder: Path = ".",
        uri: str | None = None,
        experiment: str = "",
        root: Path = ".",
        runs: dict | None = None,
    ):
        super().__init__(folder, uri, experiment, root)
        self.runs: dict[str, dict] = {} if runs is None else runs
        self.rejected, self.pending, self.problem = 0, 0, ""
        self._lock = threading.RLock()

    def _put(self, op: str, key: str, **fields) -> None:
        with self._lock:
            try:
                getattr(self, f"_{op}")(self.runs[key] if op != "run" else key, fields)
            except (LookupError, ValueError, FileNotFoundError) as error:
                self.rejected += 1
                log.warning("%s of run %s was refused: %s", op, key, error)

    def _run(self, key: str, op: dict) -> None:
        if op["parent"] is not None and op["parent"] not in self.runs:
            raise LookupError(f"no run {op['parent']!r}")
        run = self.runs.setdefault(
            key,
            {"params": {}, "tags": {}, "metrics": {}, "artifacts": [], "models": [], "data": []},
        )
        run["tags"].pop("stopped_by", None)
        run.update(name=op["name"], parent=op["parent"], status="RUNNING")
        self._params(run, op)
        self._tags(run, op)

    def _metrics(self, run: dict, op: dict) -> None:
        for name, value in op["values"].items():
            points = run["metrics"].setdefault(name, [])
            if not points or op["step"] > points[-1][0]:
                points.append((op["step"], value))

    def _params(self, run: dict, op: dict) -> None:
        for name, value in op["params"].items():
            if run["params"].setdefault(name, value) != value:
                raise ValueError(f"param {name} is {run['params'][name]} and cannot become {value}")

    def _tags(self, run: dict, op: dict) -> None:
        run["tags"].update(op["tags"])

    def _data(self, run: dict, op: dict) -> None:
        for one in op["sets"]:
            if (known := (one["name"], one["digest"], one["context"])) not in run["data"]:
                run["data"].append(known)

    def _artifact(self, run: dict, op: dict) -> None:
        path = self.folder / op["path"]
        if not path.exists():
            raise FileNotFoundError(f"{path.name} is not there")
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        names = [p.name if path.is_file() else p.relative_to(path).as_posix() for p in files]
        run["artifacts"] += [f"{op['to']}/{name}".lstrip("/") for name in names]

    def _text(self, run: dict, op: dict) -> None:
        run["artifacts"].append(op["path"])

    def _model(self, run: dict, op: dict) -> None:
        weights_digest(Path(op["path"]))
        run["models"].append(op["name"])

    def _end(self, run: dict, op: dict) -> None:
        self._tags(run, op)
        run["status"] = op["status"]

    def ready(self, timeout: float = 60.0) -> bool:
        return True

    def record(self, key: str) -> dict:
        return {"uri": "none", "experiment_id": None, "run_id": None}

    def flush(self, timeout: float = 60.0) -> int:
        return 0

    def close(self, timeout: float = 60.0) -> str:
        self._end_open()
        return ""
