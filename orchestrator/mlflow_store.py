"""What touches MLflow: addresses and errors, a client, dead leases, the champion as a model, and one experiment as the tracker needs it.

Live runs carry the tag `lease` ("host pid unix-time"), renewed every AMLRIS_LEASE_S seconds (30); `reconcile` sets
runs whose lease is four times as old, or whose process on this host is gone, to KILLED. mlflow itself is imported by
the functions that need it.
"""

import errno
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import tempfile
import time
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path

from aml.errors import UserError
from orchestrator import locks
from orchestrator.redaction import redact

log = logging.getLogger(__name__)

ALIAS = "champion"
KEY_TAG = "amlris.key"
MODEL_CODE = Path(__file__).with_name("champion_model.py")
MODEL_NEEDS = ("mlflow", "torch", "numpy", "pillow", "opencv-python-headless", "scipy", "safetensors")
BIG_MODEL_NEEDS = ("torchvision", "timm", "transformers")  # every model but the small one is built from these
# MLflow's answers that more patience does not change
PERMANENT = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
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


# ---------------------------------------------------------------- addresses and errors


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


def words_of(error: Exception) -> str:
    words = redact(str(error).strip().partition("\n")[0]) or type(error).__name__
    cause = re.search(r"Caused by \w+\(.*?: (.*?)[\"')]*$", words)  # urllib3 says three times where before it says what
    return (cause[1] if cause else words)[:300]


def no_room(error: Exception) -> bool:
    """Whether the disk that MLflow writes to is full, or over its quota: somebody may make room."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(error)


def refused(error: Exception, uri: str) -> bool:
    """Whether a failure to connect is an answer (wrong password, old schema, no driver) rather than silence."""
    code, local = getattr(error, "error_code", ""), not uri.startswith("http")
    if isinstance(error, ModuleNotFoundError) or (local and isinstance(error, OSError)):
        return True
    return code in REFUSED or (local and bool(code) and code not in AWAY)


# ---------------------------------------------------------------- a client


def set_environment() -> None:
    """Before mlflow is imported: nothing phones home, no addresses on stdout, no progress bars, and retries that
    leave room for ours."""
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true")
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


def connect(uri: str):
    """An MlflowClient on `uri`; the process's own tracking address is left alone. The first call imports mlflow (5
    s)."""
    set_environment()
    from mlflow import MlflowClient

    noisy = logging.getLogger("mlflow")
    noisy.setLevel(max(noisy.level, logging.WARNING))
    for handler in noisy.handlers:
        if not any(isinstance(one, _Redacted) for one in handler.filters):
            handler.addFilter(_Redacted())
    return MlflowClient(tracking_uri=uri)


# ---------------------------------------------------------------- runs that were lost


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
        client = connect(uri)
        found = [client.get_experiment_by_name(experiment)] if experiment else list(_pages(client.search_experiments))
        return _reconcile(client, [one.experiment_id for one in found if one])
    except Exception as error:
        raise ConnectionError(f"MLflow at {redact(uri)} does not answer: {words_of(error)}") from None


def _reconcile(client, experiment_ids: list[str]) -> list[str]:
    lost = []
    if not experiment_ids:
        return lost
    for run in list(_pages(client.search_runs, experiment_ids, "attributes.status = 'RUNNING'")):
        held = run.data.tags.get("lease", "")
        if re.fullmatch(r"\S+ \d+ \d+", held) and locks.dead(held):
            client.set_tag(run.info.run_id, "stopped_by", "lost")
            client.set_terminated(run.info.run_id, "KILLED", end_time=1000 * int(held.split()[2]))
            lost.append(run.info.run_name)
            log.warning("MLflow run %s was left RUNNING by a process that is gone: now KILLED", run.info.run_name)
    return lost


# ---------------------------------------------------------------- the champion as a model


def weights_digest(checkpoint: Path) -> str:
    weights = checkpoint / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{checkpoint.name} holds no model.safetensors; a checkpoint folder was wanted, written by train or sweep")
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _requirements(big: bool) -> list[str]:
    """What the champion needs, as the project's requirements.txt pins it, else as installed here."""
    listed = MODEL_CODE.parent.parent / "requirements.txt"
    lines = [line.partition("#")[0].strip() for line in listed.read_text().splitlines()] if listed.is_file() else []
    pins = {re.split(r"[\[<>=!~ ]", line)[0].lower(): line for line in lines if line}
    return [pins.get(name) or f"{name}=={metadata.version(name)}" for name in MODEL_NEEDS + (BIG_MODEL_NEEDS if big else ())]


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

    signature = ModelSignature(Schema([ColSpec("binary", "image"), ColSpec("string", "expression")]), Schema([ColSpec("binary", "mask")]))
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


# ---------------------------------------------------------------- an experiment


class Server:
    """One experiment in an MLflow store, for one run folder. Every method may raise whatever MLflow raises."""

    def __init__(self, uri: str, experiment: str, root: Path, folder: Path, client=None):
        """client: what is spoken to; by default MLflow's own on `uri`."""
        place = None
        if not uri.startswith("http"):
            place = (root.absolute() / "artifacts").as_uri()
        if uri.startswith("sqlite:///"):
            file = Path(uri.removeprefix("sqlite:///"))
            file.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(file if file.exists() else file.parent, os.W_OK):
                raise PermissionError(f"{file} may not be written")
        self.folder = folder
        # Two that make the tables, or the experiment, at once: one of them would be told that the store cannot be used.
        with locks.alone(file.parent) if uri.startswith("sqlite:///") else nullcontext():
            self.client = client or connect(uri)
            found = self.client.get_experiment_by_name(experiment)
            if found is not None and found.lifecycle_stage != "active":
                raise UserError(f"the experiment {experiment!r} was deleted there; restore it or choose another name")
            self.experiment_id = found.experiment_id if found else self.client.create_experiment(experiment, place)
        self.ids: dict[str, str] = {}  # key -> MLflow run id
        self.steps: dict[str, dict[str, int]] = {}  # key -> metric -> last step MLflow has
        self.live: set[str] = set()
        self.doubtful: set[str] = set()  # keys whose run may have been made twice
        self.logged: dict = {}  # (run id, digest) -> logged model: a failing registry must not repeat the upload
        self.renewed = time.time()

    def probe(self) -> None:
        self.client.get_experiment(self.experiment_id)

    def reconcile(self) -> None:
        _reconcile(self.client, [self.experiment_id])

    def until_renewal(self) -> float:
        return max(0.05, self.renewed + locks.lease_seconds() - time.time())

    def renew(self) -> None:
        """Renew the leases that are due. After a gap in which others may have declared the runs lost, say that they
        are not."""
        gap = time.time() - self.renewed
        if gap < locks.lease_seconds():
            return
        for key in sorted(self.live):
            try:
                if gap > 4 * locks.lease_seconds():
                    self._reopen(self.ids[key])
                self.client.set_tag(self.ids[key], "lease", locks.lease())
            except Exception as error:
                if getattr(error, "error_code", "") not in PERMANENT:
                    raise
                log.warning("run %s takes no lease any more: %s", key, words_of(error))
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
            if not (found := self._search(key)):
                return None
            run_id, names = found[0].info.run_id, found[0].data.metrics
            self.steps[key] = {name: max(m.step for m in self.client.get_metric_history(run_id, name)) for name in names}
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
        lease = locks.lease(op["pid"], op["host"], op["t"] / 1000) if op["old"] else locks.lease()
        tags = {**op["tags"], KEY_TAG: self._full_key(key), "lease": lease}
        if op["parent"] is not None:
            tags["mlflow.parentRunId"] = self.id(op["parent"])
        if (run_id := self.find(key)) is None:
            run_id = self.ids[key] = self._create(op, tags)
            self.steps[key] = {}
        else:
            self._reopen(run_id, op["name"])
            self._batch(run_id, tags=tags)
        if not op["old"]:
            self.live.add(key)
        self._batch(run_id, params=op["params"])

    def _create(self, op: dict, tags: dict) -> str:
        """A new run.   -> its id. MLflow may make one and its answer be lost: then this, or its HTTP client by itself, makes another."""
        began, doubtful = time.monotonic(), op["key"] in self.doubtful
        self.doubtful.add(op["key"])
        made = self.client.create_run(self.experiment_id, start_time=op["t"], tags=tags, run_name=op["name"])
        if not doubtful and time.monotonic() - began < float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]):
            self.doubtful.discard(op["key"])
        return made.info.run_id

    def _search(self, key: str) -> list:
        return self.client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{self._full_key(key)}'")

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

    def _data(self, op: dict) -> None:
        """MLflow knows a data set by name and digest, and an input of a run by its data set: twice is once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for one in op["sets"]:
            source, profile = json.dumps({"uri": one["uri"]}), json.dumps(one["counts"])
            data = Dataset(one["name"], one["digest"], source_type=one["kind"], source=source, profile=profile)
            inputs.append(DatasetInput(data, [InputTag("mlflow.data.context", one["context"])]))
        self.client.log_inputs(self.id(op["key"]), inputs)

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
        if op["key"] in self.doubtful:
            for double in (run.info.run_id for run in self._search(op["key"]) if run.info.run_id != run_id):
                self.client.delete_run(double)
            self.doubtful.discard(op["key"])
        self._batch(run_id, tags=op["tags"])
        self.client.set_terminated(run_id, op["status"], end_time=op["t"])
        self.live.discard(op["key"])

    def _model(self, op: dict) -> None:
        run_id, checkpoint, name = self.id(op["key"]), Path(op["path"]), op["name"]
        digest = weights_digest(checkpoint)
        known = [v for v in self.client.search_model_versions(f"name = '{name}'") if v.run_id == run_id and v.tags.get("amlris.weights") == digest]
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
            made = self.client.create_logged_model(self.experiment_id, op["name"], run_id, params=about, model_type="segmentation")
            with tempfile.TemporaryDirectory() as scratch:
                target = Path(scratch) / "model"
                ids = {"run_id": run_id, "model_uuid": made.model_id, "model_id": made.model_id}
                _save_model(target, checkpoint, config, Model(artifact_path=made.artifact_location, metadata=about, **ids))
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
        made = self.client.create_model_version(op["name"], logged.artifact_location, run_id, tags, model_id=logged.model_id)
        return made.version
