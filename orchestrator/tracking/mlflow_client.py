"""What touches MLflow: addresses and errors, a client, dead leases, the champion as a model, and one experiment as the tracker needs it.

Live runs carry the tag `lease` ("host pid unix-time"), renewed every AMLRIS_LEASE_S seconds (30); `reconcile` sets
runs whose lease is four times as old, or whose process on this host is gone, to KILLED. mlflow itself is imported by
the functions that need it.
"""

import json
import os
import re
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from aml.errors import UserError
from orchestrator import utils
from orchestrator.tracking.mlflow_model import ALIAS, _save_model, weights_digest
from orchestrator.tracking.mlflow_server import (
    KEY_TAG,
    PERMANENT,
    _reconcile,
    connect,
    log,
    words_of,
)


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
        with utils.exclusive_lock(file.parent) if uri.startswith("sqlite:///") else nullcontext():
            self.client = client or connect(uri)
            found = self.client.get_experiment_by_name(experiment)
            if found is not None and found.lifecycle_stage != "active":
                raise UserError(
                    f"the experiment {experiment!r} was deleted there; restore it or choose another name"
                )
            self.experiment_id = (
                found.experiment_id if found else self.client.create_experiment(experiment, place)
            )
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
        return max(0.05, self.renewed + utils.lease_seconds() - time.time())

    def renew(self) -> None:
        """Renew the leases that are due. After a gap in which others may have declared the runs lost, say that they
        are not."""
        gap = time.time() - self.renewed
        if gap < utils.lease_seconds():
            return
        for key in sorted(self.live):
            try:
                if gap > 4 * utils.lease_seconds():
                    self._reopen(self.ids[key])
                self.client.set_tag(self.ids[key], "lease", utils.lease_text())
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
            self.steps[key] = {
                name: max(m.step for m in self.client.get_metric_history(run_id, name))
                for name in names
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
        lease = (
            utils.lease_text(op["pid"], op["host"], op["t"] / 1000)
            if op["old"]
            else utils.lease_text()
        )
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
        made = self.client.create_run(
            self.experiment_id, start_time=op["t"], tags=tags, run_name=op["name"]
        )
        if not doubtful and time.monotonic() - began < float(
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        ):
            self.doubtful.discard(op["key"])
        return made.info.run_id

    def _search(self, key: str) -> list:
        return self.client.search_runs(
            [self.experiment_id], f"tags.`{KEY_TAG}` = '{self._full_key(key)}'"
        )

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
            data = Dataset(
                one["name"], one["digest"], source_type=one["kind"], source=source, profile=profile
            )
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
            for double in (
                run.info.run_id for run in self._search(op["key"]) if run.info.run_id != run_id
            ):
                self.client.delete_run(double)
            self.doubtful.discard(op["key"])
        self._batch(run_id, tags=op["tags"])
        self.client.set_terminated(run_id, op["status"], end_time=op["t"])
        self.live.discard(op["key"])

    def _model(self, op: dict) -> None:
        run_id, checkpoint, name = self.id(op["key"]), Path(op["path"]), op["name"]
        digest = weights_digest(checkpoint)
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
        about = {
            name: str(config[name])
            for name in ("dataset", "run", "trial", "epoch")
            if name in config
        }
        step = int(config.get("epoch") or 0)
        if (run_id, digest) not in self.logged:
            made = self.client.create_logged_model(
                self.experiment_id, op["name"], run_id, params=about, model_type="segmentation"
            )
            with tempfile.TemporaryDirectory() as scratch:
                target = Path(scratch) / "model"
                ids = {"run_id": run_id, "model_uuid": made.model_id, "model_id": made.model_id}
                _save_model(
                    target,
                    checkpoint,
                    config,
                    Model(artifact_path=made.artifact_location, metadata=about, **ids),
                )
                self.client.log_model_artifacts(made.model_id, str(target))
            self.client.finalize_logged_model(made.model_id, "READY")
            self.client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step)])
            self.logged[run_id, digest] = made
        logged = self.logged[run_id, digest]
        if op["metrics"]:
            rows = [
                Metric(key, value, op["t"], step, model_id=logged.model_id)
                for key, value in op["metrics"].items()
            ]
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
