"""Run sweeps whose results go to a bucket.

A machine that is lost in the middle costs the current epoch, and the result is the same to the bit.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from botocore.exceptions import ClientError

from aml.training import checkpoint
from orchestrator.search.populations import generations
from orchestrator.storage import run as run_module
from orchestrator.storage.paths import storage_root
from orchestrator.tracking import resolve
from tests.orchestrator.search.test_population_in_a_bucket import PBT_OF_THREE
from tests.support.s3 import KEYS, Line, objects
from tests.support.staging import ROOT, Machines, Stage, assert_nothing_left, wait_for

pytestmark = pytest.mark.fault

EPOCHS = 12
"""So many that each trial is met in its middle."""
CONFIG = f"""
name: tiny
data:
  train: data/tiny
  synth: {{images: 48, size: 48}}
  size: 32
  val_limit: 24
model: {{name: small, width: 16, stem: 8, heads: 2, dropout: 0.1, max_words: 12}}
aml: {{block: 4, stage1_scale: 1.0}}
train: {{epochs: {EPOCHS}, batch: 16}}
evaluate: {{probe: 8, pictures: 2}}
search:
  arms: [off, aml/calibrated]
  space: {{}}
  scheduler: none
  seeds: {{confirm: 1}}
"""


def table(run) -> dict:
    """Return what a sweep found, without times, paths and processes of the machine."""

    def of_training(epoch: dict) -> dict:
        return {k: v for k, v in epoch.items() if k.split("/")[0] not in ("time", "mem")}

    facts = ("arm", "stage", "seed", "overrides", "state", "stopped_by", "epochs")
    return {
        r["trial"]: {k: r[k] for k in facts} | {"history": [of_training(e) for e in r["history"]]}
        for r in run.ledger()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_session):
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(CONFIG)
    code, text = ray_session(
        ["sweep", str(folder / "tiny.yaml"), f"storage.root={folder}", "tracking.uri=none"]
    )
    assert code == 0, text
    return run_module.list_runs(folder)[0]


@pytest.fixture(scope="module")
def stage(s3_server):
    stage = Stage(**KEYS)
    yield stage
    stage.close()


@pytest.fixture
def command(stage, bucket, tmp_path):
    """Return a function that starts a command on a machine that shares only the bucket.

    It is called as command(machine, "sweep", *overrides, **environment) and returns the process
    and its log.
    """
    (tmp_path / "tiny.yaml").write_text(CONFIG)

    def start(machine: str, what: str, *overrides: str, **environment: str):
        here = {"AMLRIS_HOME": bucket.uri, "XDG_CACHE_HOME": str(tmp_path / machine)}
        return stage.orchestrator(what, tmp_path / "tiny.yaml", *overrides, **here | environment)

    yield start
    try:
        assert_nothing_left(stage, tmp_path)
    finally:
        stage.kill(machines=False)


def delivered(bucket) -> tuple[list[str], dict[str, list[str]]]:
    """Return the lines of the ledger in the bucket, and those of epochs of unfinished trials.

    A trial is unfinished while the ledger does not list it; its epochs are listed by trial.
    """

    def lines(prefix: str, kind: str, name: str) -> list[str]:
        try:
            manifest = json.loads(bucket.get(f"{prefix}/{kind}.manifest.json"))
            pieces = manifest[name]["pieces"] if name in manifest else []
            return (
                b"".join(bucket.get(f"{prefix}/objects/{sha}") for sha in pieces)
                .decode()
                .splitlines()
            )
        except ClientError:  # replaced meanwhile: the next look
            return []

    names = [key.rpartition("/") for key in objects(bucket) if key.endswith(".manifest.json")]
    ledger = [
        line
        for prefix, _, name in names
        if name.startswith("driver")
        for line in lines(prefix, "driver", "ledger.jsonl")
    ]
    epochs = {
        prefix.rpartition("/")[2]: lines(prefix, "trial", "epochs.jsonl")
        for prefix, _, name in names
        if name.startswith("trial")
    }
    over = {json.loads(line)["trial"] for line in ledger}
    return ledger, {trial: found for trial, found in epochs.items() if trial not in over}


def test_a_sweep_whose_machine_is_lost_goes_on_on_another(
    undisturbed, stage, command, bucket, tmp_path, monkeypatch
):
    process, log = command("a", "sweep", "tracking.uri=none")

    def in_the_middle() -> bool:
        ledger, under_way = delivered(bucket)
        return len(ledger) >= 1 and any(2 <= len(found) < EPOCHS for found in under_way.values())

    wait_for(in_the_middle, log=log, process=process)
    stage.kill()
    process.wait()
    shutil.rmtree(tmp_path / "a")
    ledger, under_way = delivered(bucket)
    process, log = command("b", "sweep", "tracking.uri=none")
    assert process.wait(timeout=500) == 0, log.read_text()
    assert (
        f"continuing {undisturbed.name}" in log.read_text()
        and f": {len(ledger)} trials have finished" in log.read_text()
    )
    monkeypatch.setenv("AMLRIS_HOME", bucket.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    (run,) = run_module.list_runs(storage_root())
    lines = (run.folder / "ledger.jsonl").read_text().splitlines()
    assert lines[: len(ledger)] == ledger and len(lines) == len(undisturbed.ledger()), (
        "no finished trial ran twice"
    )
    assert table(run) == table(undisturbed)
    records = {r["trial"]: r["history"] for r in run.ledger()}
    for trial, found in under_way.items():  # an epoch that ran again would have taken another time
        assert [e["time/epoch_s"] for e in records[trial][: len(found)]] == [
            json.loads(line)["time/epoch_s"] for line in found
        ]


def test_a_bucket_that_is_slow_silent_and_then_away_to_the_end_delays_nothing_and_gets_everything(
    undisturbed, command, bucket, tmp_path, monkeypatch
):
    line = Line(bucket)
    line.delay_s = 0.02

    def epochs() -> int:
        return sum(
            p.read_bytes().count(b"\n") for p in (tmp_path / "a").rglob("trials/*/epochs.jsonl")
        )

    process, log = command(
        "a", "sweep", "tracking.uri=none", AMLRIS_HOME=line.bucket.uri, AMLRIS_PATIENCE_S="3"
    )
    wait_for(lambda: epochs() >= 3, log=log, process=process)
    line.open.clear()
    before = epochs()
    wait_for(lambda: "could not be uploaded" in log.read_text(), log=log, process=process)
    wait_for(
        lambda: epochs() > before + EPOCHS, log=log, process=process
    )  # of trials that began meanwhile
    had = set(objects(bucket))
    line.open.set()
    wait_for(lambda: set(objects(bucket)) != had, log=log, process=process)
    line.open.clear()  # and to the end
    assert process.wait(timeout=500) == 0, log.read_text()
    said = log.read_text()
    assert "index.html" in said and "Traceback" not in said, said
    line.open.set()
    process, log = command("a", "sweep", "tracking.uri=none", AMLRIS_HOME=line.bucket.uri)
    assert process.wait(timeout=300) == 0 and "has finished" in log.read_text(), (
        said + log.read_text()
    )
    line.close()
    shutil.rmtree(tmp_path / "a")
    monkeypatch.setenv("AMLRIS_HOME", bucket.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
    (run,) = run_module.list_runs(storage_root())
    assert run.finished and table(run) == table(undisturbed), log.read_text()
    for record in run.ledger():
        assert (
            checkpoint.damage(
                resolve.find_checkpoint(f"{run.name}/{record['trial']}", storage_root())
            )
            == ""
        )


@pytest.fixture(scope="module")
def machines(stage):
    """A Ray whose head has a CPU and a folder of its own for what is mirrored."""
    machines = Machines(stage)
    machines.head(1, XDG_CACHE_HOME=str(stage.folder / "head"))
    return machines


@pytest.fixture
def second(machines, stage):
    """Its second node: as much, with nothing on it. The folder."""
    folder = stage.folder / "second"
    machines.add("second", 1, XDG_CACHE_HOME=str(folder))
    yield folder
    machines.lose("second")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def neighbour(machines, stage):
    """Yield the process of another person's task, which holds the CPU of the head node."""
    task = (
        "ray.remote(num_cpus=1, resources={'node:__internal_head__': 0.001})"
        "(lambda: print('held', flush=True) or time.sleep(1e6))"
    )
    code = (
        "import sys, time, ray; ray.init(sys.argv[1], log_to_driver=True); "
        f"ray.get({task}.remote())"
    )
    process, log = stage.start([sys.executable, "-c", code, machines.address])
    wait_for(lambda: "held" in log.read_text(), log=log, process=process)
    yield process
    process.kill()


@pytest.fixture
def mlflow_server(bucket, tmp_path, unused_port):
    """One that keeps artifacts in the bucket."""
    address = f"http://127.0.0.1:{unused_port}"
    store = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination",
        f"s3://{bucket.name}/team/mlflow",
        "--workers",
        "1",
    ]
    line = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(unused_port),
        *store,
    ]
    with open(tmp_path / "mlflow.log", "w") as log:
        where = os.environ | {"MLFLOW_S3_ENDPOINT_URL": bucket.client.meta.endpoint_url}
        process = subprocess.Popen(
            line, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=where
        )
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)  # noqa: S310 (a local address)
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, (
                tmp_path / "mlflow.log"
            ).read_text()
            time.sleep(0.5)
    yield address
    os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def project(tmp_path):
    """A copy of the project with an experiment of its own."""
    for name in ("aml", "orchestrator"):
        shutil.copytree(ROOT / name, tmp_path / "project" / name)
    (tmp_path / "project" / "tiny.yaml").write_text(CONFIG)
    return tmp_path / "project"


def test_a_submitted_sweep_that_loses_a_node_ends_with_the_table_of_an_undisturbed_one(
    undisturbed,
    stage,
    project,
    bucket,
    tmp_path,
    monkeypatch,
    machines,
    second,
    neighbour,
    mlflow_server,
):
    job = ["--follow", "--env", "MLFLOW_TRACKING_URI", "sweep", "tiny.yaml"]
    process, log = machines.submit(
        *job, cwd=project, AMLRIS_HOME=bucket.uri, MLFLOW_TRACKING_URI=mlflow_server
    )

    def on_the_second() -> dict[str, int]:
        return {
            p.parent.name: p.read_bytes().count(b"\n")
            for p in second.rglob("trials/*/epochs.jsonl")
        }

    wait_for(lambda: any(n >= 3 for n in on_the_second().values()), log=log, process=process)
    neighbour.kill()  # from now on the head can train, too
    machines.lose("second")
    lost = on_the_second()
    shutil.rmtree(second)
    assert process.wait(timeout=500) == 0, log.read_text()
    monkeypatch.setenv("AMLRIS_HOME", bucket.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
    (run,) = run_module.list_runs(storage_root())
    assert run.finished and table(run) == table(undisturbed), log.read_text()
    assert any(n < EPOCHS for n in lost.values()) and len(run.ledger()) == len(
        (run.folder / "ledger.jsonl").read_text().splitlines()
    )
    from mlflow.tracking import MlflowClient

    client = MlflowClient(mlflow_server)
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    every = client.search_runs([experiment.experiment_id])
    assert [r.info.status for r in every] == ["FINISHED"] * 5
    for found in (r for r in every if "trial_id" in r.data.tags):
        assert [m.step for m in client.get_metric_history(found.info.run_id, "val/mIoU")] == list(
            range(1, EPOCHS + 1)
        )
        assert any(
            a.path.endswith(".png") for a in client.list_artifacts(found.info.run_id, "pictures")
        )
    kept = [key for key in objects(bucket) if key.startswith("mlflow/")]
    assert sum(key.endswith(".png") for key in kept) == 4 and any(
        key.endswith("index.html") for key in kept
    )
    assert any(key.endswith("model.safetensors") for key in kept), "the registered champion"
    assert_nothing_left(stage, tmp_path, machines)


def test_a_training_on_two_nodes_is_heard_by_its_driver_and_read_elsewhere(
    command, bucket, tmp_path, monkeypatch, machines, second
):
    few = ["tracking.uri=none", "resources.workers=2", "train.epochs=3"]
    process, log = command(
        "driver", "train", *few, RAY_ADDRESS=machines.address
    )  # none of the workers sees the driver's folder
    assert process.wait(timeout=500) == 0, log.read_text()
    assert [f"epoch {n}/3 " in log.read_text() for n in (1, 2, 3)] == [True] * 3
    monkeypatch.setenv("AMLRIS_HOME", bucket.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
    (run,) = run_module.list_runs(storage_root())
    assert run.finished and [e["epoch"] for e in run.state["history"]] == [1, 2, 3]
    folder = resolve.find_checkpoint("tiny", storage_root())
    assert folder.name == "best" and checkpoint.damage(folder) == ""
    assert not list((tmp_path / "driver").rglob("state.pt")), (
        "what only training needs stays away from the driver"
    )


def test_a_population_in_a_bucket_is_the_one_of_a_folder(
    ray_session, command, bucket, tmp_path, monkeypatch, machines, second
):
    settings = [
        "tracking.uri=none",
        "train.epochs=3",
        "search.metric=train/loss",
        "search.mode=min",
        *PBT_OF_THREE,
    ]
    (tmp_path / "local.yaml").write_text(CONFIG)
    code, text = ray_session(
        ["sweep", str(tmp_path / "local.yaml"), f"storage.root={tmp_path / 'local'}", *settings]
    )
    assert code == 0, text
    process, log = command("driver", "sweep", *settings, RAY_ADDRESS=machines.address)
    assert process.wait(timeout=500) == 0, log.read_text()
    assert not list((tmp_path / "driver").rglob("state.pt")), (
        "what members go on from is on their nodes and in the bucket alone"
    )
    monkeypatch.setenv("AMLRIS_HOME", bucket.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
    (here,), (there,) = (
        run_module.list_runs(tmp_path / "local"),
        run_module.list_runs(storage_root()),
    )
    assert table(there) == table(here), log.read_text()
    assert {r["trial"]: r.get("path") for r in there.ledger()} == {
        r["trial"]: r.get("path") for r in here.ledger()
    }
    decisions = [
        (run.folder / generations.FILE).read_text()
        for run in (here, run_module.find_run(storage_root(), there.name))
    ]
    assert decisions[0] == decisions[1] and all(
        json.loads(line)["moves"] for line in decisions[0].splitlines()
    )
