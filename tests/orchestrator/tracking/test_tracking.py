"""Test the trackers.

The MLflow tracker and its double in memory keep one contract; addresses are checked and redacted.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from aml.errors import UserError
from aml.training.learner import ENDED
from orchestrator.tracking.mlflow_server import reconcile, store_problem, tracking_uri
from orchestrator.tracking.mlflow_tracker import Tracker
from orchestrator.tracking.resolve import find_checkpoint
from orchestrator.tracking.tracker import MemoryTracker
from orchestrator.utils.redaction import redact
from tests.support.stores import mlflow_client

NOBODY = "http://127.0.0.1:9"  # the discard port: connections are refused at once
RUN = "quick-1a2b3c4d"
numbers = itertools.count()


class Real:
    def __init__(self, root, folder):
        self.root = root
        self.folder = folder
        self.experiment = f"contract-{next(numbers)}"

    def start(self):
        self.tracker = Tracker(self.folder, None, self.experiment, self.root)
        return self.tracker

    def inputs(self, key):
        found = (
            mlflow_client(self.root)
            .get_run(self.tracker.record(key)["run_id"])
            .inputs.dataset_inputs
        )
        return sorted((one.dataset.name, one.dataset.digest, one.tags[0].value) for one in found)

    def look(self, key):
        assert self.tracker.flush(30) == 0
        api = mlflow_client(self.root)
        run_id = self.tracker.record(key)["run_id"]
        run = api.get_run(run_id)
        keys = {
            r.info.run_id: r.data.tags["amlris.key"].split("/")[1]
            for r in api.search_runs([run.info.experiment_id])
        }
        history = {
            name: [(m.step, m.value) for m in api.get_metric_history(run_id, name)]
            for name in run.data.metrics
        }
        return {
            "name": run.info.run_name,
            "parent": keys.get(run.data.tags.get("mlflow.parentRunId")),
            "status": run.info.status,
            "params": run.data.params,
            "tags": run.data.tags,
            "metrics": history,
            "artifacts": sorted(walk(api, run_id)),
        }

    def count(self):
        assert self.tracker.flush(30) == 0
        return len(mlflow_client(self.root).search_runs([self.tracker.record("")["experiment_id"]]))


class Memory:
    def __init__(self, root, folder):
        self.folder = folder
        self.runs = {}
        folder.mkdir()

    def start(self):
        self.tracker = MemoryTracker(self.folder, runs=self.runs)
        return self.tracker

    def inputs(self, key):
        return self.runs[key]["data"]

    def look(self, key):
        return {**self.runs[key], "artifacts": sorted(self.runs[key]["artifacts"])}

    def count(self):
        return len(self.runs)


def walk(api, run_id, path=None):
    for entry in api.list_artifacts(run_id, path):
        yield from walk(api, run_id, entry.path) if entry.is_dir else [entry.path]


@pytest.fixture(params=[Real, Memory], ids=["mlflow", "memory"])
def store(request, root, tmp_path):
    return request.param(root, tmp_path / RUN)


# ---- the contract --------------------------------------------------------------------------------


def test_a_sweep_is_a_parent_with_children_that_compare(store):
    t = store.start()
    t.run(
        "parent",
        "quick",
        params={"optim.lr": 1e-3, "model.name": "small", "aml.on": True},
        tags={"sweep": RUN},
    )
    for number, (tau, rho) in enumerate([(0, 0.0), (1, 0.4)]):
        t.run(
            f"t{number}",
            f"trial {number}",
            "parent",
            {"aml.tau": tau, "aml.rho": rho},
            {"seed": number, "arm": "off"},
        )
        t.metrics(f"t{number}", 1, {"train/loss": 0.5, "val/mIoU": 0.1})
        t.metrics(f"t{number}", 2, {"train/loss": 0.25, "val/mIoU": 0.2})
        t.end(f"t{number}", tags={"stopped_by": "asha"})
    t.end("parent")
    child = store.look("t1")
    parent = store.look("parent")
    assert (child["name"], child["parent"], child["status"]) == ("trial 1", "parent", "FINISHED")
    assert {name: float(value) for name, value in child["params"].items()} == {
        "aml.tau": 1.0,
        "aml.rho": 0.4,
    }
    assert child["tags"]["seed"] == "1" and child["tags"]["stopped_by"] == "asha"
    assert child["metrics"] == {
        "train/loss": [(1, 0.5), (2, 0.25)],
        "val/mIoU": [(1, 0.1), (2, 0.2)],
    }
    assert parent["parent"] is None and parent["tags"]["sweep"] == RUN
    assert parent["params"] == {"optim.lr": "0.001", "model.name": "small", "aml.on": "true"}
    assert store.look("t0")["params"] == {"aml.tau": "0", "aml.rho": "0"}
    assert store.count() == 3
    assert t.close() == ""
    if isinstance(store, Real):  # the database is new, so its unused experiment is hidden
        shown = mlflow_client(store.root).search_experiments()
        assert "Default" not in {one.name for one in shown} >= {store.experiment}


def test_data_sets_are_inputs_of_a_run_and_logged_twice_they_are_there_once(store):
    t = store.start()
    t.run("t", "trial")
    counts = {"refs": 2, "sentences": 5}
    sets = [
        {
            "name": f"refcoco-unc/{split}",
            "digest": "0123456789abcdef",
            "uri": "s3://me:secret@bucket/x",
            "counts": counts,
            "context": context,
        }
        for split, context in (("train", "training"), ("val", "validation"))
    ]
    t.data("t", sets)
    t.data("t", sets)
    assert t.close() == "" and t.rejected == 0
    assert store.inputs("t") == [
        ("refcoco-unc/train", "0123456789abcdef", "training"),
        ("refcoco-unc/val", "0123456789abcdef", "validation"),
    ]


def test_metrics_that_are_no_numbers_are_left_out_and_names_are_made_fit(store):
    t = store.start()
    t.run("a", "a")
    t.metrics(
        "a",
        1,
        {
            "val/P@0.5": 0.25,
            "none": None,
            "nan": float("nan"),
            "inf": float("inf"),
            "np": np.float32(0.5),
        },
    )
    t.metrics("a", 1, {"nan": float("nan")})
    t.metrics("a", 1, {"later, of the same step": 3})
    assert store.look("a")["metrics"] == {
        "val/P0.5": [(1, 0.25)],
        "np": [(1, 0.5)],
        "later_ of the same step": [(1, 3.0)],
    }
    assert t.close() == ""


def test_an_epoch_is_as_of_when_it_ended_which_is_no_metric(store):
    """An epoch logged late, after its driver was lost, has its own place on a chart over time."""
    t = store.start()
    t.run("a", "a")
    masking = {
        "aml/leak": 0.1,
        "aml/hidden": 0.5,
        "aml/probe_hidden": 0.5,
        "aml/auroc": 0.75,
        "aml/own": 2,
    }
    t.epoch("a", {"epoch": 3, "val/mIoU": 0.25, "val/n": 8, **masking, ENDED: 1234.5}, ["aml/leak"])
    assert store.look("a")["metrics"] == {
        "aml/leak": [(3, 0.1)],  # the run is judged by it
        "diag/epoch": [(3, 3.0)],
        "val/mIoU": [(3, 0.25)],
        "diag/val/n": [(3, 8.0)],
        "aml/hidden": [(3, 0.5)],
        "aml/probe_hidden": [(3, 0.5)],
        "diag/aml/auroc": [(3, 0.75)],
        "diag/aml/own": [(3, 2.0)],
    }
    if isinstance(store, Real):
        (metric,) = mlflow_client(store.root).get_metric_history(
            t.record("a")["run_id"], "val/mIoU"
        )
        assert metric.timestamp == 1234500
    assert t.close() == ""


def test_a_continued_run_is_the_same_run_and_logs_no_step_twice(store):
    t = store.start()
    t.run("a", "first", params={"aml.tau": 0})
    for step in (1, 2, 3):
        t.metrics("a", step, {"val/mIoU": step / 10})
    t.end("a", "KILLED", {"stopped_by": "lost"})
    assert store.look("a")["status"] == "KILLED"
    assert t.close() == ""
    t = store.start()
    t.run("a", "again", params={"aml.tau": 0.0})
    for step in (2, 3, 4):
        t.metrics("a", step, {"val/mIoU": step / 5})
    seen = store.look("a")
    assert (seen["name"], seen["status"], store.count()) == ("again", "RUNNING", 1)
    assert seen["metrics"] == {"val/mIoU": [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.8)]}
    assert "stopped_by" not in seen["tags"]
    assert t.close() == ""


def test_what_is_refused_for_good_is_said_and_skipped(store, caplog):
    t = store.start()
    t.run("a", "a", params={"lr": 1})
    t.run("a", "a", params={"lr": 2})
    t.metrics("nobody", 1, {"x": 1})
    t.run("orphan", "orphan", parent="nobody")
    t.artifact("a", store.folder / "missing.png")
    t.metrics("a", 1, {"x": 1})
    seen = store.look("a")
    assert seen["params"] == {"lr": "1"} and seen["metrics"] == {"x": [(1, 1.0)]}
    assert t.rejected == 4 and store.count() == 1
    assert (
        "run of run a" in caplog.text and "nobody" in caplog.text and "missing.png" in caplog.text
    )
    t.close()


def test_artifacts(store, tmp_path):
    t = store.start()
    pictures = store.folder / "trials" / "a" / "pictures"
    pictures.mkdir(parents=True)
    for name in ("epoch-0001.png", "epoch-0002.png"):
        (pictures / name).write_bytes(b"png")
    (tmp_path / "notes.txt").write_text("elsewhere")
    t.run("a", "a")
    t.artifact("a", pictures, "all")
    t.artifact("a", pictures / "epoch-0001.png", "pictures")
    t.artifact("a", tmp_path / "notes.txt")
    names = [
        "all/epoch-0001.png",
        "all/epoch-0002.png",
        "notes.txt",
        "pictures/epoch-0001.png",
    ]
    assert store.look("a")["artifacts"] == names
    assert t.close() == ""


def test_every_run_ends(store):
    t = store.start()
    for key, status in (("a", "FINISHED"), ("b", "FAILED"), ("c", "KILLED")):
        t.run(key, key)
        t.end(key, status)
    t.run("open", "open")
    with pytest.raises(ValueError, match="FINISHED, FAILED, KILLED"):
        t.end("open", "DONE")
    assert t.close() == ""
    statuses = [store.look(key)["status"] for key in ("a", "b", "c", "open")]
    assert statuses == ["FINISHED", "FAILED", "KILLED", "KILLED"]
    assert store.look("open")["tags"]["stopped_by"] == "interrupted"


def test_model_names_are_checked_at_once(store, tmp_path):
    with pytest.raises(UserError, match="a/b"):
        store.start().model("a", tmp_path, "a/b")
    store.tracker.close()


def test_both_trackers_offer_the_same_calls():
    def public(kind):
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(Tracker) - public(MemoryTracker(".")) == set()


# ---- addresses -----------------------------------------------------------------------------------


def test_addresses(tmp_path, monkeypatch):
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri("sqlite:///mine.db", tmp_path) == f"sqlite:///{tmp_path}/mine.db"
    assert tracking_uri("sqlite:////srv/mine.db", tmp_path) == "sqlite:////srv/mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://host:5000")
    assert tracking_uri(None, tmp_path) == "https://host:5000"
    assert tracking_uri("http://other", tmp_path) == "http://other"
    for wrong in ("mlruns", "file:///srv/mlruns", "ftp://me:hunter2@host"):
        with pytest.raises(UserError, match="sqlite:///FILE") as caught:
            tracking_uri(wrong, tmp_path)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("revision", "says"),
    [
        ("451aebb31d03", "was made by an older MLflow .* `python -m mlflow db upgrade sqlite:///"),
        ("abcdef012345", r"has a schema \(abcdef012345\) that the installed MLflow .* not know"),
    ],
)
def test_a_database_of_another_mlflow_is_refused_in_one_sentence(root, tmp_path, revision, says):
    shutil.copy(root / "mlflow.db", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("update alembic_version set version_num = ?", [revision])
        database.commit()
    uri = tracking_uri(None, tmp_path)
    assert re.search(says, store_problem(uri))
    with pytest.raises(ConnectionError, match=says) as refused:
        reconcile(uri)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=says):
        find_checkpoint(32 * "0", tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://me:p/w@host/db failed", "postgresql+psycopg2://***@host/db failed"),
        ("mysql://me:p@ss@host/db", "mysql://***@host/db"),
        ("https://token@host", "https://***@host"),
        ("GET /a?X-Amz-Signature=abc&b=1", "GET /a?X-Amz-Signature=***&b=1"),
        ("http://host:5000/users/a@b", "http://host:5000/users/a@b"),
        ("sqlite:////srv/runs/mlflow.db", "sqlite:////srv/runs/mlflow.db"),
    ],
)
def test_redact(text, shown):
    assert redact(text) == shown


def test_a_password_is_written_nowhere(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    t = Tracker(tmp_path / RUN, "http://me:hunter2@127.0.0.1:9", "secret", tmp_path)
    t.run(
        "a",
        "a",
        params={"data.uri": "s3://key:hunter2@bucket/x"},
        tags={"uri": "https://me:hunter2@host"},
    )
    assert not t.ready(20)
    said = t.close(0.2)
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    out = capfd.readouterr()
    for text in (
        said,
        t.problem,
        json.dumps(t.record("a")),
        caplog.text,
        out.out,
        out.err,
        *written,
    ):
        assert "hunter2" not in text
    assert "***@127.0.0.1:9" in said and len(written) == 1


def test_what_cannot_be_used_is_the_users_to_mend(root, tmp_path):
    api = mlflow_client(root)
    api.delete_experiment(api.create_experiment("thrown away"))
    t = Tracker(tmp_path / RUN, None, "thrown away", root)
    with pytest.raises(UserError, match="thrown away.*deleted"):
        t.ready(30)
    assert "deleted" in (t.close(0.1) or t.problem)
    (tmp_path / "file").write_text("")
    t = Tracker(tmp_path / RUN, f"sqlite:///{tmp_path}/file/mlflow.db", "x", root)
    with pytest.raises(UserError, match="cannot be used"):
        t.ready(30)
    t.close(0.1)


def test_nothing_phones_home(root):
    from mlflow.telemetry.utils import MLFLOW_DISABLE_TELEMETRY

    assert MLFLOW_DISABLE_TELEMETRY.get() is True and os.environ["DO_NOT_TRACK"] == "true"


def test_importing_costs_nothing():
    code = (
        "import sys, orchestrator.tracking; "
        "print([m for m in ('mlflow', 'pandas', 'ray') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
