"""Failures of the world that take a while to stage: make test-faults."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_sweep import TINY
from test_train import CONFIG, children_of, done_epochs

from orchestrator import runs

pytestmark = pytest.mark.fault


@pytest.fixture
def sweep(tmp_path):
    """start(*overrides) -> a sweep in a process of its own, and the file of what it prints."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    processes = []

    def start(*overrides: str):
        command = [sys.executable, "-m", "orchestrator", "sweep", str(tmp_path / "tiny.yaml"), f"storage.root={tmp_path}", *overrides]
        log = tmp_path / f"log{len(processes)}"
        with open(log, "w") as out:
            processes.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True))
        return processes[-1], log

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition, process, log: Path, seconds: float = 500) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def lines(folder: Path) -> int:
    return sum(p.read_bytes().count(b"\n") for p in folder.glob("tiny-*/ledger.jsonl"))


def statuses(folder: Path) -> list[str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    return [r.info.status for r in client.search_runs([experiment.experiment_id])]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_says_so_and_continues(sweep, tmp_path, how):
    process, log = sweep("train.epochs=30")
    wait_for(lambda: lines(tmp_path) >= 2, process, log)
    os.kill(process.pid, how)
    assert process.wait(timeout=120) == 130, log.read_text()
    assert "the same command continues it" in log.read_text()
    (run,) = runs.listing(tmp_path)
    assert run.state["state"] == "interrupted"
    assert "RUNNING" not in statuses(tmp_path) and "KILLED" in statuses(tmp_path)
    process, log = sweep("train.epochs=30")
    assert process.wait(timeout=700) == 0, log.read_text()
    records = run.ledger()
    assert len({r["trial"] for r in records}) == len(records) == 9
    assert len(statuses(tmp_path)) == 10 and set(statuses(tmp_path)) <= {"FINISHED", "FAILED"}


def test_a_killed_trial_process_is_started_again_and_loses_at_most_its_epoch(sweep, tmp_path):
    process, log = sweep("train.epochs=40", "search.scheduler=none", "search.space={aml.tau: [0.5]}")
    wait_for(lambda: any(p.read_bytes().count(b"\n") >= 3 for p in tmp_path.glob("tiny-*/trials/*/epochs.jsonl")), process, log)
    trials = [p for p, text in children_of(process.pid).items() if "ImplicitFunc" in text or "light_trial" in text]
    assert trials
    os.kill(trials[0], signal.SIGKILL)
    assert process.wait(timeout=700) == 0, log.read_text()
    (run,) = runs.listing(tmp_path)
    assert all(r["state"] == "done" and [e["epoch"] for e in r["history"]] == list(range(1, 41)) for r in run.ledger())


def test_a_tracking_server_that_is_away_stops_nothing(sweep, tmp_path):
    process, log = sweep("tracking.uri=http://127.0.0.1:9", "search.space={aml.tau: [0.5]}")
    assert process.wait(timeout=700) == 0, log.read_text()
    (run,) = runs.listing(tmp_path)
    assert run.finished and "127.0.0.1:9" in log.read_text()
    assert (run.folder / "tracking.queue.jsonl").stat().st_size > 0


def test_a_distributed_trial_that_asha_stops_makes_room_for_the_next(sweep, tmp_path):
    """Two workers fill the two cores: the next trial can only start once the stopped one's workers and controller are gone."""
    space = "search.space={optim.lr: [1e-3, 1e-9, 1e-9, 1e-9]}"
    asha = ["search.scheduler=asha", "search.asha={grace: 1, reduction: 2}", "search.arms=[off]", "search.seeds={confirm: 1}"]
    process, log = sweep("resources.workers=2", "resources.cpus_per_worker=0.9", "train.epochs=6", space, *asha)
    assert process.wait(timeout=900) == 0, log.read_text()
    (run,) = runs.listing(tmp_path)
    states = [r["state"] for r in run.ledger()]
    assert states.count("stopped") >= 1 and states.count("done") >= 2 and len(states) == 5 and "failed" not in states
    assert all(r["epochs"] < 6 for r in run.ledger() if r["state"] == "stopped")


def test_a_killed_worker_loses_at_most_the_epoch_under_way(tmp_path):
    (tmp_path / "duo.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "orchestrator", "train", str(tmp_path / "duo.yaml"), f"storage.root={tmp_path}"]
    log = tmp_path / "log"
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    wait_for(lambda: done_epochs(tmp_path) >= 2, process, log)
    workers = [p for p, text in children_of(process.pid).items() if "TrainWorker" in text]
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(timeout=500) == 0, log.read_text()
    (run,) = runs.listing(tmp_path)
    assert [e["epoch"] for e in run.state["history"]] == list(range(1, 41))
    assert log.read_text().count("epoch 1/40 ") == 1, "the run was not started over"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_says_so(tmp_path, how):
    (tmp_path / "duo.yaml").write_text(CONFIG.replace("workers: 2", "workers: 1"))
    command = [sys.executable, "-m", "orchestrator", "train", str(tmp_path / "duo.yaml"), f"storage.root={tmp_path}", "train.epochs=400"]
    log = tmp_path / "log"
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    wait_for(lambda: done_epochs(tmp_path) >= 2, process, log)
    os.kill(process.pid, how)
    assert process.wait(timeout=120) == 130, log.read_text()
    (run,) = runs.listing(tmp_path)
    assert run.state["state"] == "interrupted" and "the same command continues it" in log.read_text()
