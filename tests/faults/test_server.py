"""Run the tracking server as a cluster does: MLflow over HTTP on PostgreSQL.

Nothing is lost if the server or its database stops answering.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sysconfig
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.storage import run as run_module
from orchestrator.tracking import mlflow_server
from orchestrator.tracking.mlflow_tracker import Tracker
from tests.orchestrator.sweep.test_sweep import TINY
from tests.orchestrator.tracking.test_tracking import walk
from tests.support.staging import BIN, Stage, assert_nothing_left, free_port, wait_for
from tests.support.stores import save_model

pytestmark = pytest.mark.fault

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=Path("initdb")).parent
DRIVER = Path("/usr/lib/python3/dist-packages/psycopg2")
"""Debian's build of the driver (python3-psycopg2).

It is used if the environment has no driver and runs the same version of Python.
"""
OURS, DEBIANS = (
    importlib.util.find_spec("psycopg2"),
    (DRIVER / f"_psycopg{sysconfig.get_config_var('EXT_SUFFIX')}").exists(),
)


class Database:
    """Run a PostgreSQL server for the tests alone.

    PostgreSQL refuses to run as root; a root process starts it as the user whom its package makes.
    """

    def __init__(self, folder: Path):
        self.folder, self.port = folder / "postgres", free_port()
        self.folder.mkdir()
        self.user = (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            if os.geteuid() == 0
            else []
        )
        if self.user:
            folder.chmod(0o755)
            shutil.chown(self.folder, "postgres", "postgres")
        self.call(
            "initdb", "--auth=trust", "--username=mlflow", "--no-sync", "-D", self.folder / "data"
        )
        self.start()
        self.uri = f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/postgres"

    def call(self, program: str, *arguments: object) -> None:
        quiet = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }  # a server keeps what it inherits
        subprocess.run(
            [*self.user, POSTGRES / program, *map(str, arguments)],
            cwd=self.folder,
            timeout=120,
            check=True,
            **quiet,
        )

    def start(self) -> None:
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off -k {self.folder}"
        self.call(
            "pg_ctl",
            "start",
            "-w",
            "-D",
            self.folder / "data",
            "-l",
            self.folder / "log",
            "-o",
            settings,
        )

    def stop(self) -> None:
        """Stop the database as a machine that loses its power does."""
        self.call("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self.folder / "data")


@pytest.fixture(scope="module")
def stage():
    stage = Stage(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def database(stage):
    """None where PostgreSQL or its driver is missing."""
    if not (POSTGRES / "initdb").exists() or not (OURS or DEBIANS):
        yield None
        return
    database = Database(stage.folder)
    yield database
    database.stop()


@pytest.fixture(scope="module")
def server(stage, database):
    """An MLflow server that hands artifacts through; on SQLite where there is no PostgreSQL."""
    drivers, artifacts, port = stage.folder / "drivers", stage.folder / "artifacts", free_port()
    drivers.mkdir()
    if DEBIANS and not OURS:
        (drivers / "psycopg2").symlink_to(DRIVER)
    store = database.uri if database else f"sqlite:///{stage.folder}/mlflow.db"
    command = [
        BIN / "mlflow",
        "server",
        "--backend-store-uri",
        store,
        "--artifacts-destination",
        artifacts,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    process, log = stage.start(command, AMLRIS_MACHINE="mlflow", PYTHONPATH=str(drivers))
    uri = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"{uri}/health", timeout=5).status == 200  # noqa: S310 (a local address)
        except OSError:
            return False

    wait_for(answers, log=log, process=process, seconds=240)
    yield SimpleNamespace(uri=uri, process=process, log=log)
    os.killpg(process.pid, signal.SIGCONT)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)


@pytest.fixture
def impatient(monkeypatch):
    """A request is given up after two seconds."""
    values = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


def logged(uri: str, experiment: str) -> tuple[object, list]:
    """A client, and every run of an experiment."""
    api = mlflow_server.connect(uri)
    return api, api.search_runs([api.get_experiment_by_name(experiment).experiment_id])


def test_a_sweep_is_on_postgres_with_pictures_and_champion_though_the_database_fell_in_its_middle(
    server, database, impatient, tmp_path
):
    if database is None:
        pytest.skip(
            "no PostgreSQL with its Python driver: apt-get install postgresql python3-psycopg2"
        )
    folder, checkpoint = (
        tmp_path / "pg-1a2b3c4d",
        save_model(tmp_path / "checkpoint", ["red", "star"]),
    )
    t = Tracker(folder, server.uri, "pg", tmp_path)
    assert t.ready(120), t.problem
    t.run("sweep", "pg-1a2b3c4d", params={"model.name": "small"}, tags={"sweep": "pg-1a2b3c4d"})
    (folder / "picture.png").write_bytes(b"\x89PNG")
    for trial, tau in (("one", 0), ("two", 0.4)):
        t.run(trial, f"trial {trial}", "sweep", {"aml.tau": tau, "aml.rho": 0.5}, {"arm": "off"})
        t.metrics(trial, 1, {"val/mIoU": 0.25})
    assert t.flush(60) == 0, t.problem
    database.stop()
    for trial in ("one", "two"):
        t.metrics(trial, 2, {"val/mIoU": 0.5})
        t.artifact(trial, folder / "picture.png", "pictures")
        t.end(trial)
    wait_for(lambda: t.problem, seconds=60)
    assert t.pending == 6 and "does not answer" in t.problem
    database.start()
    t.model("sweep", checkpoint, "pg", {"val/mIoU": 0.5})
    t.end("sweep")
    assert t.flush(120) == 0, t.problem
    assert t.close() == "" and t.rejected == 0
    api, found = logged(server.uri, "pg")
    by_name = {r.info.run_name: r for r in found}
    parent = by_name.pop("pg-1a2b3c4d")
    assert (
        parent.info.status == "FINISHED"
        and parent.data.params == {"model.name": "small"}
        and set(by_name) == {"trial one", "trial two"}
    )
    for tau, child in zip(("0", "0.4"), (by_name["trial one"], by_name["trial two"]), strict=True):
        assert (
            child.info.status == "FINISHED"
            and child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        )
        assert child.data.params == {"aml.tau": tau, "aml.rho": "0.5"}
        assert [
            (m.step, m.value) for m in api.get_metric_history(child.info.run_id, "val/mIoU")
        ] == [(1, 0.25), (2, 0.5)]
        assert list(walk(api, child.info.run_id)) == ["pictures/picture.png"]
    version = api.get_model_version_by_alias("pg", "champion")
    assert version.run_id == parent.info.run_id and version.version == "1"
    assert any(
        p.name == "model.safetensors" for p in (Path(server.log).parent / "artifacts").rglob("*")
    )


def test_training_does_not_wait_for_a_server_that_hangs_and_everything_is_there_at_the_end(
    server, stage, impatient, tmp_path
):
    (tmp_path / "tiny.yaml").write_text(TINY)
    few = [
        "search.scheduler=none",
        "search.space={optim.lr: [1e-3, 2e-3]}",
        "search.arms=[off, random]",
        "train.epochs=4",
        "name=hung",
    ]
    process, log = stage.orchestrator(
        "sweep",
        tmp_path / "tiny.yaml",
        f"storage.root={tmp_path}",
        f"tracking.uri={server.uri}",
        *few,
        **impatient,
    )

    def lines() -> int:
        return sum(p.read_bytes().count(b"\n") for p in tmp_path.glob("hung-*/ledger.jsonl"))

    wait_for(lambda: lines() >= 1, log=log, process=process)
    os.killpg(server.process.pid, signal.SIGSTOP)
    had = lines()
    wait_for(lambda: lines() >= had + 2, log=log, process=process)
    os.killpg(server.process.pid, signal.SIGCONT)
    assert process.wait(timeout=500) == 0, log.read_text()
    (run,) = run_module.list_runs(tmp_path)
    ledger = {r["trial"]: r for r in run.ledger()}
    assert len(ledger) == 6 and all(
        r["state"] == "done" and r["epochs"] == 4 for r in ledger.values()
    )
    assert (
        not (run.folder / "tracking.queue.jsonl").exists()
        and not (run.folder / "tracking.rejected.jsonl").exists()
    )
    api, found = logged(server.uri, "hung")
    assert Counter(r.info.status for r in found) == {"FINISHED": 7}
    children = {r.data.tags["trial_id"]: r for r in found if "trial_id" in r.data.tags}
    assert children.keys() == ledger.keys()
    for name, child in children.items():
        points = [(m.step, m.value) for m in api.get_metric_history(child.info.run_id, "val/mIoU")]
        assert points == [
            (e["epoch"], pytest.approx(e["val/mIoU"])) for e in ledger[name]["history"]
        ]
        assert len(list(walk(api, child.info.run_id, "pictures"))) == 1
    (parent,) = [r for r in found if "trial_id" not in r.data.tags]
    assert api.get_model_version_by_alias("hung", "champion").run_id == parent.info.run_id
    assert_nothing_left(stage, tmp_path)
