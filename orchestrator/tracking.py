"""MLflow, spoken to by the driver alone: one thread, and a queue on disk between it and everybody else.

Each public call of a tracker appends one line to `tracking.queue.jsonl` in the run folder and returns. The thread
delivers the lines in order and keeps in `tracking.queue.offset` how far it got, so that what a missing server missed
arrives later, by this process or by the next one on the same folder. Every operation may be applied twice without
harm: a run is found again by its tag `amlris.key`, metric steps that MLflow has are dropped, a model version is known
by the digest of its weights. An operation that MLflow refuses for good is named in the log, written to
`tracking.rejected.jsonl` and skipped.

Live runs carry the tag `lease` ("host pid unix-time"), renewed every AMLRIS_LEASE_S seconds (30); `reconcile` sets
runs whose lease is four times as old, or whose process on this host is gone, to KILLED.
"""

import collections
import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path

from aml.errors import UserError

log = logging.getLogger(__name__)

ALIAS = "champion"
ENDINGS = ("FINISHED", "FAILED", "KILLED")
KEY_TAG = "amlris.key"
MODEL_CODE = Path(__file__).with_name("champion_model.py")
MODEL_NEEDS = ("mlflow", "torch", "numpy", "pillow", "opencv-python-headless", "scipy", "safetensors")
BIG_MODEL_NEEDS = ("torchvision", "timm", "transformers")  # every model but the small one is built from these
MAX_DELAY, TRIES, WINDOW = 15.0, 6, 100
# MLflow's answers that more patience does not change
PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
}
AWAY = {
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "PERMISSION_DENIED",
}
REFUSED = {"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "INVALID_PARAMETER_VALUE"}


# ---------------------------------------------------------------- addresses, names, values


def redact(text: object) -> str:
    """`text` without the user names, passwords and signatures that addresses in it carry."""
    text = re.sub(r"(?<=://)[^\s'\"/]*@", "***@", str(text))
    text = re.sub(
        r"(?<=://)[^\s'\"/@:]+:[^\s'\"/@]*/[^\s'\"@]*@(?=[^\s'\"@/]+[:/])", "***@", text
    )  # a slash in the password
    return re.sub(
        r"(?i)([?&](?:token|password|passwd|secret|sig|signature|api_key|x-amz-[\w-]+)=)[^&\s'\"]+", r"\1***", text
    )


def tracking_uri(uri: str | None, root: Path) -> str:
    """The address in use: `uri`, else MLFLOW_TRACKING_URI, else a SQLite file in the storage root. SQLite paths come
    out absolute.

    Raises UserError for an address that MLflow cannot track to."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://|https?://", uri):
        raise UserError(
            f"tracking.uri is {redact(uri)!r}, but MLflow tracks to a database or a server only: "
            "give sqlite:///FILE, postgresql://... or http(s)://..., or none"
        )
    if uri.startswith("sqlite:///"):
        uri = f"sqlite:///{Path(root).absolute() / uri.removeprefix('sqlite:///')}"
    return uri


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


def lease_seconds() -> float:
    """Seconds between renewals of a lease; a lease four times as old is dead."""
    return float(os.environ.get("AMLRIS_LEASE_S", "30"))


def _lease(pid: int | None = None, host: str | None = None, stamp: float | None = None) -> str:
    return f"{host or socket.gethostname()} {pid or os.getpid()} {stamp or time.time():.0f}"


def _dead(lease: str) -> bool:
    host, pid, stamp = lease.split()
    if time.time() - float(stamp) > 4 * lease_seconds():
        return True
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


# ---------------------------------------------------------------- the calls


class _Calls:
    """What a driver may say. Each call becomes one plain dict, handed to `_put`; nothing here waits.

    `key` names an MLflow run inside this run folder ("parent", a trial's name); runs of other folders may use the
    same keys."""

    def __init__(self, folder: Path, uri: str | None, experiment: str, root: Path):
        self.folder, self.root, self.experiment = Path(folder), Path(root), experiment
        self._open: set[str] = set()

    def _put(self, op: str, key: str, **fields) -> None:
        raise AssertionError("a tracker defines where its operations go")

    def run(
        self, key: str, name: str, parent: str | None = None, params: dict | None = None, tags: dict | None = None
    ) -> None:
        """Open the run `key`, or open it again (RUNNING, same MLflow run). `parent` is the key of a run opened
        before."""
        if parent == key:
            raise ValueError(f"run {key!r} cannot be its own parent")
        self._open.add(key)
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

    def metrics(self, key: str, step: int, values: dict[str, float | None], time_ms: int | None = None) -> None:
        """One step (epoch) of some metrics. None, NaN and infinities are left out; a step that MLflow has of a metric
        is not logged again."""
        if values := _numbers(values):
            self._put("metrics", key, step=int(step), values=values, **({"t": int(time_ms)} if time_ms else {}))

    def params(self, key: str, values: dict) -> None:
        """Params never change: another value for one that exists is refused by MLflow and ends among the rejected
        operations."""
        self._put("params", key, params=_texts(values))

    def tags(self, key: str, values: dict) -> None:
        self._put("tags", key, tags=_texts(values))

    def artifact(self, key: str, path: Path, to: str = "") -> None:
        """Upload a file, or what a folder holds, into the artifact folder `to`, as it is when its turn comes."""
        path = Path(path).absolute()
        inside = path.is_relative_to(self.folder.absolute())
        self._put("artifact", key, path=str(path.relative_to(self.folder.absolute()) if inside else path), to=to)

    def text(self, key: str, path: str, text: str) -> None:
        """Write `text` as the artifact `path`."""
        self._put("text", key, path=path, text=redact(text))

    def model(self, key: str, checkpoint: Path, registered_name: str, metrics: dict[str, float] | None = None) -> None:
        """Log a checkpoint folder as a pyfunc model of the run `key`, register it and point the alias `champion` at
        it."""
        if not re.fullmatch(r"[\w .+-]+", registered_name):
            raise UserError(
                f"the model name is {registered_name!r}, but wanted are letters, digits and _ . + -; choose another"
            )
        self._put("model", key, path=str(Path(checkpoint).absolute()), name=registered_name, metrics=_numbers(metrics))

    def end(self, key: str, status: str = "FINISHED", tags: dict | None = None) -> None:
        if status not in ENDINGS:
            raise ValueError(f"a run ends as one of {', '.join(ENDINGS)}, not {status!r}")
        self._open.discard(key)
        self._put("end", key, status=status, tags=_texts(tags))

    def _end_open(self) -> None:
        for key in sorted(self._open):
            self.end(key, "KILLED", {"stopped_by": "interrupted"})


class MemoryTracker(_Calls):
    """The same calls with nothing behind them but dicts: for tests and for `tracking.uri: none`.

    runs[key] = {name, parent, status, params, tags, metrics: {name: [(step, value), ...]}, artifacts: [path, ...],
    models: [name, ...]}. Give the `runs` of an earlier one to continue it."""

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
        run = self.runs.setdefault(key, {"params": {}, "tags": {}, "metrics": {}, "artifacts": [], "models": []})
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
        _weights_digest(Path(op["path"]))
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


# ---------------------------------------------------------------- the tracker


class Tracker(_Calls):
    """The calls, delivered to MLflow by a thread. One tracker at a time may work on a run folder."""

    def __init__(self, folder: Path, uri: str | None, experiment: str, root: Path):
        super().__init__(folder, uri, experiment, root)
        self.uri = tracking_uri(uri, root)
        self.problem, self.rejected = "", 0
        self._queue, self._offset = self.folder / "tracking.queue.jsonl", self.folder / "tracking.queue.offset"
        self._cond, self._wake, self._stop = threading.Condition(), threading.Event(), threading.Event()
        self._todo: collections.deque[dict] = collections.deque()
        self._server: _Server | None = None
        self._unusable, self._single, self._tries, self._distrusted = "", 0, 0, set()
        self._reconciled = False
        self.folder.mkdir(parents=True, exist_ok=True)
        self._size = self._recover()
        _environment()
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
        """End runs still open as KILLED (`stopped_by: interrupted`), flush and stop. "" or one sentence on what
        remains or was refused."""
        self._end_open()
        left = self.flush(timeout)
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
            return f"MLflow refused {self.rejected} tracking operations: see tracking.rejected.jsonl"
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
                log.error("the tracking queue cannot be written (%s); this operation is kept in memory alone", error)
            self._todo.append({**line, "end": self._size, "old": False})
            self._cond.notify_all()

    def _delivered(self, count: int) -> None:
        with self._cond:
            end = [self._todo.popleft() for _ in range(count)][-1]["end"]
            new = self._offset.with_suffix(".new")
            new.write_text(str(end))
            os.replace(new, self._offset)
            self._tries, self._single = 0, max(0, self._single - count)
            self._cond.notify_all()

    # ---- the thread

    def _work(self) -> None:
        delay = 0.0
        while not self._stop.is_set():
            window: list[dict] = []
            try:
                if self._server is None:
                    self._connected(_Server(self.uri, self.experiment, self.root, self.folder))
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
            except Exception as error:  # whatever it is, it must end neither the training nor this thread
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
                if len(window) == limit or (window and (op["op"] != "metrics" or window[0]["op"] != "metrics")):
                    break
                window.append(op)
            return window

    def _connected(self, server: "_Server") -> None:
        with self._cond:
            self._server = server
            self._cond.notify_all()

    def _answers(self) -> None:
        if self.problem:
            log.warning("MLflow at %s answers again", redact(self.uri))
        self.problem = self._unusable = ""

    def _away(self, error: Exception) -> None:
        words = _words(error)
        unusable = isinstance(error, UserError) or (self._server is None and _refused(error, self.uri))
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
        if code in AWAY:
            self._away(error)
            return False
        if code not in PERMANENT and not isinstance(error, (LookupError, ValueError, FileNotFoundError)):
            self._tries += (
                1  # MLflow answers, but not to this: its artifact store may be away, or this one may fail for ever
            )
            if self._tries < TRIES and op["op"] not in self._distrusted:
                log.warning("%s of run %s failed and is tried again: %s", op["op"], op["key"], _words(error))
                return False
            self._distrusted.add(op["op"])
        if len(window) > 1:
            self._single = len(window)
        else:
            self._reject(op, error)
        return True

    def _reject(self, op: dict, error: Exception) -> None:
        words = _words(error)
        self.rejected += 1
        log.warning("MLflow refuses %s of run %s, skipped: %s", op["op"], op["key"], words)
        with (self.folder / "tracking.rejected.jsonl").open("a") as file:
            file.write(json.dumps({**{k: v for k, v in op.items() if k not in ("end", "old")}, "error": words}) + "\n")
        self._delivered(1)


def _words(error: Exception) -> str:
    words = redact(str(error).strip().partition("\n")[0]) or type(error).__name__
    cause = re.search(r"Caused by \w+\(.*?: (.*?)[\"')]*$", words)  # urllib3 says three times where before it says what
    return (cause[1] if cause else words)[:300]


def _refused(error: Exception, uri: str) -> bool:
    """Whether a failure to connect is an answer (wrong password, old schema, no driver) rather than silence."""
    code, local = getattr(error, "error_code", ""), not uri.startswith("http")
    if isinstance(error, ModuleNotFoundError) or (local and isinstance(error, OSError)):
        return True
    return code in REFUSED or (local and bool(code) and code not in AWAY)


# ---------------------------------------------------------------- MLflow


def _environment() -> None:
    """Before mlflow is imported: nothing phones home, no addresses on stdout, no progress bars, and retries that
    leave room for ours."""
    os.environ.update(
        MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true"
    )
    defaults = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_UV_AUTO_DETECT": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


class _Redacted(logging.Filter):
    """MLflow prints addresses with their passwords, and tracebacks of errors that it raises anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args, record.exc_info, record.exc_text = redact(record.getMessage()), None, None, None
        return True


def _client(uri: str):
    """An MlflowClient on `uri`; the process's own tracking address is left alone. The first call imports mlflow (5
    s)."""
    _environment()
    from mlflow import MlflowClient

    noisy = logging.getLogger("mlflow")
    noisy.setLevel(max(noisy.level, logging.WARNING))
    for handler in noisy.handlers:
        if not any(isinstance(one, _Redacted) for one in handler.filters):
            handler.addFilter(_Redacted())
    return MlflowClient(tracking_uri=uri)


def _pages(search, *args):
    token = None
    while True:
        page = search(*args, page_token=token)
        yield from page
        if not (token := page.token):
            return


def reconcile(uri: str, experiment: str | None = None) -> list[str]:
    """Set RUNNING runs whose lease is dead to KILLED, `stopped_by: lost`, ended when last heard of; returns their
    names.

    Runs without a lease are not ours and stay. Raises ConnectionError, with the address redacted, if MLflow does not
    answer."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return []
    try:
        client = _client(uri)
        found = [client.get_experiment_by_name(experiment)] if experiment else list(_pages(client.search_experiments))
        return _reconcile(client, [one.experiment_id for one in found if one])
    except Exception as error:
        raise ConnectionError(f"MLflow at {redact(uri)} does not answer: {_words(error)}") from None


def _reconcile(client, experiment_ids: list[str]) -> list[str]:
    lost = []
    if not experiment_ids:
        return lost
    for run in list(_pages(client.search_runs, experiment_ids, "attributes.status = 'RUNNING'")):
        lease = run.data.tags.get("lease", "")
        if re.fullmatch(r"\S+ \d+ \d+", lease) and _dead(lease):
            client.set_tag(run.info.run_id, "stopped_by", "lost")
            client.set_terminated(run.info.run_id, "KILLED", end_time=1000 * int(lease.split()[2]))
            lost.append(run.info.run_name)
            log.warning("MLflow run %s was left RUNNING by a process that is gone: now KILLED", run.info.run_name)
    return lost


def _weights_digest(checkpoint: Path) -> str:
    weights = checkpoint / "model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"{checkpoint.name} holds no model.safetensors; a checkpoint folder was wanted, written by train or sweep"
        )
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _requirements(big: bool) -> list[str]:
    """What the champion needs, as the project's requirements.txt pins it, else as installed here."""
    listed = MODEL_CODE.parent.parent / "requirements.txt"
    lines = [line.partition("#")[0].strip() for line in listed.read_text().splitlines()] if listed.is_file() else []
    pins = {re.split(r"[\[<>=!~ ]", line)[0].lower(): line for line in lines if line}
    return [
        pins.get(name) or f"{name}=={metadata.version(name)}" for name in MODEL_NEEDS + (BIG_MODEL_NEEDS if big else ())
    ]


def _example():
    """One row of input, as the model's page in MLflow shows it: a grey square and an expression."""
    import pandas as pd
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(picture, format="PNG")
    return pd.DataFrame({"image": [picture.getvalue()], "expression": ["the left one"]})


def _save_model(target: Path, checkpoint: Path, config: dict, model) -> None:
    """Write an MLflow model folder: champion_model.py, the aml package, the checkpoint without its optimiser."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    signature = ModelSignature(
        Schema([ColSpec("binary", "image"), ColSpec("string", "expression")]), Schema([ColSpec("binary", "mask")])
    )
    with tempfile.TemporaryDirectory() as scratch:
        lean = shutil.copytree(checkpoint, Path(scratch) / "checkpoint", ignore=shutil.ignore_patterns("state.pt"))
        mlflow.pyfunc.save_model(
            path=str(target),
            mlflow_model=model,
            python_model=str(MODEL_CODE),
            artifacts={"checkpoint": str(lean)},
            code_paths=[str(Path(importlib.util.find_spec("aml").origin).parent)],
            signature=signature,
            input_example=_example(),
            pip_requirements=_requirements(big=config.get("model", {}).get("name") != "small"),
            model_config={"device": "cpu"},
        )


class _Server:
    """One experiment in an MLflow store, for one run folder. Every method may raise whatever MLflow raises."""

    def __init__(self, uri: str, experiment: str, root: Path, folder: Path):
        place = None
        if not uri.startswith("http"):
            place = (root.absolute() / "artifacts").as_uri()
        if uri.startswith("sqlite:///"):
            file = Path(uri.removeprefix("sqlite:///"))
            file.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(file if file.exists() else file.parent, os.W_OK):
                raise PermissionError(f"{file} may not be written")
        self.client, self.folder = _client(uri), folder
        found = self.client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage != "active":
            raise UserError(f"the experiment {experiment!r} was deleted there; restore it or choose another name")
        self.experiment_id = found.experiment_id if found else self.client.create_experiment(experiment, place)
        self.ids: dict[str, str] = {}  # key -> MLflow run id
        self.steps: dict[str, dict[str, int]] = {}  # key -> metric -> last step MLflow has
        self.live: set[str] = set()
        self.logged: dict = {}  # (run id, digest) -> logged model: a failing registry must not repeat the upload
        self.renewed = time.time()

    def probe(self) -> None:
        self.client.get_experiment(self.experiment_id)

    def reconcile(self) -> None:
        _reconcile(self.client, [self.experiment_id])

    def until_renewal(self) -> float:
        return max(0.05, self.renewed + lease_seconds() - time.time())

    def renew(self) -> None:
        """Renew the leases that are due. After a gap in which others may have declared the runs lost, say that they
        are not."""
        gap = time.time() - self.renewed
        if gap < lease_seconds():
            return
        for key in sorted(self.live):
            try:
                if gap > 4 * lease_seconds():
                    self._reopen(self.ids[key])
                self.client.set_tag(self.ids[key], "lease", _lease())
            except Exception as error:
                if getattr(error, "error_code", "") not in PERMANENT:
                    raise
                log.warning("run %s takes no lease any more: %s", key, _words(error))
                self.live.discard(key)
        self.renewed = time.time()

    def _reopen(self, run_id: str, name: str | None = None) -> None:
        self.client.update_run(run_id, "RUNNING", name)
        if "stopped_by" in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, "stopped_by")

    def _full_key(self, key: str) -> str:
        return re.sub(r"[^\w./@+ -]", "_", f"{self.folder.name}/{key}")

    def find(self, key: str) -> str | None:
        """The MLflow run of a key, also one that an earlier process made; with it, the last step of each of its
        metrics."""
        if key not in self.ids:
            found = self.client.search_runs(
                [self.experiment_id], f"tags.`{KEY_TAG}` = '{self._full_key(key)}'", max_results=1
            )
            if not found:
                return None
            run_id, names = found[0].info.run_id, found[0].data.metrics
            self.steps[key] = {
                name: max(m.step for m in self.client.get_metric_history(run_id, name)) for name in names
            }
            self.ids[key] = run_id
        return self.ids[key]

    def id(self, key: str) -> str:
        if (run_id := self.find(key)) is None:
            raise LookupError(f"no run {key!r}: it was never opened, or it was deleted in MLflow")
        return run_id

    def apply(self, window: list[dict]) -> None:
        """Apply one operation, or a stretch of metrics of any runs."""
        if window[0]["op"] == "metrics":
            self._metrics(window)
        else:
            getattr(self, "_" + window[0]["op"])(window[0])

    def _batch(self, run_id: str, params: dict | None = None, tags: dict | None = None) -> None:
        from mlflow.entities import Param, RunTag

        for kind, make, values in (("params", Param, params), ("tags", RunTag, tags)):
            rows = [make(name, value) for name, value in (values or {}).items()]
            for start in range(0, len(rows), 100):
                self.client.log_batch(run_id, **{kind: rows[start : start + 100]})

    def _run(self, op: dict) -> None:
        key = op["key"]
        lease = _lease(op["pid"], op["host"], op["t"] / 1000) if op["old"] else _lease()
        tags = {**op["tags"], KEY_TAG: self._full_key(key), "lease": lease}
        if op["parent"] is not None:
            tags["mlflow.parentRunId"] = self.id(op["parent"])
        if (run_id := self.find(key)) is None:
            made = self.client.create_run(self.experiment_id, start_time=op["t"], tags=tags, run_name=op["name"])
            run_id, self.steps[key] = made.info.run_id, {}
            self.ids[key] = run_id
        else:
            self._reopen(run_id, op["name"])
            self._batch(run_id, tags=tags)
        if not op["old"]:
            self.live.add(key)
        self._batch(run_id, params=op["params"])

    def _metrics(self, window: list[dict]) -> None:
        from mlflow.entities import Metric

        for key in dict.fromkeys(op["key"] for op in window):
            run_id, steps, rows = self.id(key), dict(self.steps[key]), []
            for op in (op for op in window if op["key"] == key):
                for name, value in op["values"].items():
                    if op["step"] > steps.get(name, -1):
                        steps[name] = op["step"]
                        rows.append(Metric(name, value, op["t"], op["step"]))
            for start in range(0, len(rows), 1000):
                self.client.log_batch(run_id, metrics=rows[start : start + 1000])
            self.steps[key] = steps

    def _params(self, op: dict) -> None:
        self._batch(self.id(op["key"]), params=op["params"])

    def _tags(self, op: dict) -> None:
        self._batch(self.id(op["key"]), tags=op["tags"])

    def _artifact(self, op: dict) -> None:
        path = self.folder / op["path"]
        if not path.exists():
            raise FileNotFoundError(f"{path.name} is not there any more")
        log_it = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        log_it(self.id(op["key"]), str(path), op["to"] or None)

    def _text(self, op: dict) -> None:
        self.client.log_text(self.id(op["key"]), op["text"], op["path"])

    def _end(self, op: dict) -> None:
        run_id = self.id(op["key"])
        self._batch(run_id, tags=op["tags"])
        self.client.set_terminated(run_id, op["status"], end_time=op["t"])
        self.live.discard(op["key"])

    def _model(self, op: dict) -> None:
        run_id, checkpoint, name = self.id(op["key"]), Path(op["path"]), op["name"]
        digest = _weights_digest(checkpoint)
        known = [
            v
            for v in self.client.search_model_versions(f"name = '{name}'")
            if v.run_id == run_id and v.tags.get("amlris.weights") == digest
        ]
        version = known[0].version if known else self._log_model(op, run_id, checkpoint, digest)
        self.client.set_registered_model_alias(name, ALIAS, version)

    def _log_model(self, op: dict, run_id: str, checkpoint: Path, digest: str) -> str:
        """A new logged model and model version, by MlflowClient alone: fluent calls use the process's tracking
        address, and so does the SQL registry when it resolves a models:/ source, hence the plain location."""
        from mlflow.entities import LoggedModelOutput, Metric
        from mlflow.exceptions import MlflowException
        from mlflow.models import Model

        config = json.loads((checkpoint / "config.json").read_text())
        about = {name: str(config[name]) for name in ("dataset", "run", "trial", "epoch") if name in config}
        step = int(config.get("epoch") or 0)
        if (run_id, digest) not in self.logged:
            made = self.client.create_logged_model(
                self.experiment_id, op["name"], run_id, params=about, model_type="segmentation"
            )
            with tempfile.TemporaryDirectory() as scratch:
                target = Path(scratch) / "model"
                ids = {"run_id": run_id, "model_uuid": made.model_id, "model_id": made.model_id}
                _save_model(
                    target, checkpoint, config, Model(artifact_path=made.artifact_location, metadata=about, **ids)
                )
                self.client.log_model_artifacts(made.model_id, str(target))
            self.client.finalize_logged_model(made.model_id, "READY")
            self.client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step)])
            self.logged[run_id, digest] = made
        logged = self.logged[run_id, digest]
        if op["metrics"]:
            rows = [Metric(key, value, op["t"], step, model_id=logged.model_id) for key, value in op["metrics"].items()]
            self.client.log_batch(run_id, metrics=rows)
        try:
            self.client.create_registered_model(op["name"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {"amlris.weights": digest, **about}
        made = self.client.create_model_version(
            op["name"], logged.artifact_location, run_id, tags, model_id=logged.model_id
        )
        return made.version
