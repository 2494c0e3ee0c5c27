"""Failures of the world that take a while to stage: make test-faults."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from orchestrator.cluster import shutdown
from orchestrator.storage import records, run as run_module
from orchestrator.utils import signals
from tests.orchestrator.sweep.test_sweep import TINY
from tests.orchestrator.training.test_train import CONFIG, children_of, done_epochs
from tests.support.staging import (
    Machines,
    Stage,
    assert_nothing_left,
    assert_resumed,
    histories,
    holding,
    statuses,
    wait_for,
)

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def stage():
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def machines(stage):
    machines = Machines(stage)
    machines.head(2)
    return machines


@pytest.fixture
def command(stage, tmp_path, root):
    """Return a function that starts a command with a Ray of its own, of which nothing is left.

    command("sweep", text of its config, *overrides, **environment) returns the process and the
    file of its output.
    """
    shutil.copy(root / "mlflow.db", tmp_path)  # making its tables takes longer than such a sweep

    def start(what: str, text: str, *overrides: str, **environment: str):
        (tmp_path / "config.yaml").write_text(text)
        return stage.orchestrator(
            what, tmp_path / "config.yaml", f"storage.root={tmp_path}", *overrides, **environment
        )

    yield start
    try:
        assert_nothing_left(stage, tmp_path)
    finally:
        stage.kill(machines=False)


@pytest.fixture
def joined(command, machines):
    """The same command, joining a Ray of two CPUs that stays."""
    yield functools.partial(command, RAY_ADDRESS=machines.address)
    wait_for(lambda: set(machines.groups()) <= {"REMOVED"}, seconds=60)


@pytest.fixture
def sweep(joined):
    """sweep(*overrides, **environment): the tiny one."""
    return functools.partial(joined, "sweep", TINY)


def trials_of(machines: Machines) -> list[int]:
    """Return the processes of in-process trials."""
    return [
        p
        for p, text in children_of(machines.started["head"].pid).items()
        if "ImplicitFunc" in text or "in_process_trial" in text
    ]


def lines(folder: Path) -> int:
    return sum(p.read_bytes().count(b"\n") for p in folder.glob("tiny-*/ledger.jsonl"))


def test_an_interrupted_sweep_says_so_and_continues(sweep, tmp_path):
    few = [
        "train.epochs=30",
        "search.arms=[off]",
        "search.space={optim.lr: [1e-3, 2e-3]}",
        "search.max_concurrent=1",
        "search.scheduler=none",
    ]
    process, log = sweep(*few)
    wait_for(lambda: lines(tmp_path) >= 1, log=log, process=process)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130, log.read_text()
    assert (
        "the same command continues it" in log.read_text()
        and signals.INTERRUPTED in log.read_text()
    )
    (run,) = run_module.list_runs(tmp_path)
    assert (
        run.state["state"] == "interrupted"
        and not list(run.folder.rglob("*.amlris-draft"))
        and not list(run.folder.rglob("*.amlris-draft"))
    )
    assert "RUNNING" not in statuses(tmp_path) and "KILLED" in statuses(tmp_path)
    done = histories(tmp_path)
    process, log = sweep(*few)
    assert process.wait(timeout=700) == 0, log.read_text()
    records = run.ledger()
    assert len({r["trial"] for r in records}) == len(records) == 3
    assert_resumed(done, histories(tmp_path))
    assert len(statuses(tmp_path)) == 4 and set(statuses(tmp_path)) <= {"FINISHED", "FAILED"}


def test_a_second_interruption_ends_a_sweep_within_the_epoch(sweep, tmp_path):
    """Only the current epoch is lost."""
    long = ["train={epochs: 9, batch: 1}", "data.unit=sentence", "data.size=160"]
    process, log = sweep(
        *long,
        "search.space={}",
        "search.arms=[off]",
        "search.scheduler=none",
        "search.seeds={confirm: 0}",
    )
    wait_for(
        lambda: "epoch   1/9" in log.read_text(), log=log, process=process
    )  # the second is under way, for some seconds
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: signals.INTERRUPTED in log.read_text(), log=log, process=process)
    done = histories(tmp_path)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130 and "the same command continues it" in log.read_text(), (
        log.read_text()
    )
    assert histories(tmp_path) == done and statuses(tmp_path) == ["KILLED"] * 2


def test_a_trial_that_hangs_is_killed_alone_and_one_whose_process_is_killed_loses_an_epoch(
    sweep, machines, tmp_path
):
    """A stopped process answers nobody, as one that waits for a dead disk.

    The time limit covers the start of a process.
    """
    few = [
        "search.scheduler=none",
        "search.space={}",
        "search.arms=[off, random]",
        "search.seeds={confirm: 1}",
        "train.epochs=60",
    ]
    process, log = sweep("resources.epoch_timeout_s=45", *few)
    wait_for(
        lambda: sum(len(h) >= 3 for h in histories(tmp_path).values()) == 2,
        log=log,
        process=process,
    )
    done, (hanging, killed) = histories(tmp_path), trials_of(machines)
    os.kill(hanging, signal.SIGSTOP)
    os.kill(killed, signal.SIGKILL)
    code = process.wait(timeout=500)
    (run,) = run_module.list_runs(tmp_path)
    (failed,) = [r for r in run.ledger() if r["state"] == "failed"]
    assert (
        failed["stopped_by"] == "timeout"
        and "no epoch was finished in 45 s" in failed["error"]
        and 3 <= failed["epochs"] < 60
    )
    assert (
        "no epoch was finished in 45 s" in log.read_text()
        and "FAILED" in statuses(tmp_path)
        and "RUNNING" not in statuses(tmp_path)
    )
    others = [r for r in run.ledger() if r["arm"] != failed["arm"]]
    assert [(r["state"], [e["epoch"] for e in r["history"]]) for r in others] == [
        ("done", list(range(1, 61)))
    ] * 2
    assert_resumed(done, histories(tmp_path))
    assert code in (0, 1) and not Path(f"/proc/{hanging}").exists(), log.read_text()


def test_two_sweeps_at_once_on_one_root_both_end_right(sweep, tmp_path):
    """The same generated data, the same MLflow file, both from nothing, on one cluster."""
    (tmp_path / "mlflow.db").unlink()
    few = [
        "search.space={}",
        "search.arms=[off]",
        "search.seeds={confirm: 1}",
        "search.max_concurrent=1",
    ]
    (one, first), (two, second) = sweep(*few, "name=one"), sweep(*few, "name=two")
    assert (one.wait(timeout=500), two.wait(timeout=500)) == (0, 0), (
        first.read_text() + second.read_text()
    )
    assert sorted(("generating" in log.read_text()) for log in (first, second)) == [False, True]
    for name in ("one", "two"):
        assert statuses(tmp_path, name) == ["FINISHED"] * 3 and {
            r["state"] for r in run_module.find_run(tmp_path, name).ledger()
        } == {"done"}


def test_a_tracking_server_that_is_away_stops_nothing_and_its_password_is_nowhere(
    command, tmp_path
):
    """The queue on disk holds what MLflow would have been given; the next command delivers it.

    Ray's own folder holds its logs and what it knows of jobs. In an address the password ends in
    a space, so that it stands there encoded, and in some errors decoded.
    """
    planted = "hunter2Planted0Secret"
    ray_home = tempfile.mkdtemp(prefix="r", dir="/tmp")  # a socket's path must be short
    names = "AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN HF_TOKEN MLFLOW_TRACKING_PASSWORD"
    secrets = dict.fromkeys(names.split(), planted) | {
        "HTTPS_PROXY": f"http://me:{planted}%20@127.0.0.1:9",
        "DATABASE_URL": f"postgresql://me:{planted}%20@127.0.0.1:9/mlflow",
    }
    away = TINY + f"tracking: {{uri: 'http://me:{planted}%20@127.0.0.1:9'}}\n"
    few = ["search.space={}", "search.arms=[off]", "search.seeds={confirm: 1}", "train.epochs=2"]
    process, log = command("sweep", away, *few, **secrets, RAY_TMPDIR=ray_home)
    shown = command_lines_until_end(process, seconds=500)
    assert process.returncode == 0, log.read_text()
    assert any("raylet" in line for line in shown) and not [s for s in shown if planted in s]
    (run,) = run_module.list_runs(tmp_path)
    queue = run.folder / "tracking.queue.jsonl"
    waiting = queue.read_bytes().count(b"\n")
    assert (
        run.finished
        and waiting
        and f"{waiting} tracking operations stay in {queue.name}" in log.read_text()
        and "127.0.0.1:9" in log.read_text()
    )
    assert (run.folder / "report" / "index.html").exists() and list(
        Path(ray_home).rglob("session_*/**/*.log")
    )
    assert (
        holding(tmp_path, planted) == [str(tmp_path / "config.yaml")]
        and holding(Path(ray_home), planted) == []
    )
    assert planted not in log.read_text()
    shutil.rmtree(ray_home)
    process, log = command("sweep", TINY, *few, **secrets)  # where there is a store that answers
    assert process.wait(timeout=300) == 0, log.read_text()
    assert (
        f"MLflow has been given the {waiting} tracking operations" in log.read_text()
        and not queue.exists()
    )
    assert statuses(tmp_path) == ["FINISHED"] * 3 and holding(tmp_path, planted) == []


def command_lines_until_end(process, seconds):
    """Wait for a process; return the command lines, as everybody sees them, of all meanwhile."""
    shown = set()
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                shown.add(path.read_text(errors="replace"))
        time.sleep(0.5)
    process.wait(timeout=1)
    return shown


def test_a_distributed_trial_that_asha_stops_makes_room_for_the_next(command, tmp_path):
    """Two workers fill the two cores: the next trial needs the room of the stopped one's workers.

    A Ray without a dashboard leaves their removal to the driver.
    """
    # The first learns; the other's loss stays where it is.
    space = "search.space={optim.lr: [1e-2, 1e-9]}"
    asha = [
        "search.metric=train/loss",
        "search.mode=min",
        "search.scheduler={name: asha, grace: 1, reduction: 2}",
        "search.arms=[off]",
        "search.seeds={confirm: 1}",
    ]
    workers = [
        "tracking.uri=none",
        "resources.workers=2",
        "resources.cpus_per_worker=0.9",
        "train.epochs=3",
    ]
    process, log = command("sweep", TINY, *workers, space, *asha)
    assert process.wait(timeout=900) == 0, log.read_text()
    (run,) = run_module.list_runs(tmp_path)
    found = [(r["stage"], r["state"], r["epochs"]) for r in run.ledger()]
    assert found == [("search", "done", 3), ("search", "stopped", 1), ("confirm", "done", 3)]
    assert all(
        epoch["val/n"] == 24 and epoch["train/workers"] == 2
        for r in run.ledger()
        for epoch in r["history"]
    )


def test_a_killed_worker_and_then_one_that_hangs_lose_at_most_the_epoch_under_way(
    joined, machines, tmp_path
):
    process, log = joined(
        "train",
        CONFIG,
        "tracking.uri=none",
        "train.epochs=30",
        "resources.epoch_timeout_s=45",
        "resources.max_failures=5",
    )

    def worker() -> int:
        return next(
            p
            for p, text in children_of(machines.started["head"].pid).items()
            if "TrainWorker" in text
        )

    for fault in (signal.SIGKILL, signal.SIGSTOP):
        before = done_epochs(tmp_path)
        wait_for(lambda: done_epochs(tmp_path) >= before + 3, log=log, process=process)  # noqa: B023
        hit, done = worker(), histories(tmp_path)
        os.kill(hit, fault)
    assert process.wait(timeout=500) == 0, log.read_text()
    assert (
        "no epoch was finished in 45 s (resources.epoch_timeout_s), so the workers were killed"
        in log.read_text()
    )
    assert not Path(f"/proc/{hit}").exists()
    (run,) = run_module.list_runs(tmp_path)
    assert [e["epoch"] for e in run.state["history"]] == list(range(1, 31))
    assert_resumed(done, histories(tmp_path))
    assert log.read_text().count("epoch 1/30 ") == 1, "the run was not started over"


def test_a_training_that_is_told_to_end_saves_in_the_middle_of_its_epoch(command, tmp_path):
    process, log = command(
        "train",
        CONFIG,
        "resources.workers=1",
        "train.epochs=400",
        "train.batch=2",
        "data.unit=sentence",
    )
    wait_for(lambda: done_epochs(tmp_path) >= 2, log=log, process=process)
    os.killpg(process.pid, signal.SIGTERM)  # its whole group, as `timeout` and batch systems do
    assert process.wait(timeout=120) == 130, log.read_text()
    (run,) = run_module.list_runs(tmp_path)
    text = log.read_text()
    assert (
        run.state["state"] == "interrupted"
        and "the same command continues it" in text
        and signals.INTERRUPTED not in text
    )
    assert (
        signals.TERMINATING.format(25) in text
        and f"{shutdown.SHUTDOWN}: saved at step" in (run.folder / records.NOTES).read_text()
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "amlris", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system to fill needs the right to mount one")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_that_fills_up_loses_an_epoch_and_the_same_command_goes_on_where_there_is_room(
    sweep, tmp_path, small_disk
):
    """Checkpoints, ledger, MLflow's file and the report lie on it."""
    shutil.copy(tmp_path / "mlflow.db", small_disk)
    few = [
        "search.space={optim.lr: [1e-3, 2e-3]}",
        "search.arms=[off]",
        "search.scheduler=none",
        "train.epochs=30",
        f"storage.root={small_disk}",
    ]
    process, log = sweep(*few)
    wait_for(
        lambda: any(
            p.read_bytes().count(b"\n") >= 3
            for p in small_disk.glob("tiny-*/trials/*/epochs.jsonl")
        ),
        log=log,
        process=process,
    )
    with open(small_disk / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(2**16))
    assert process.wait(timeout=300) == 1, log.read_text()
    assert "could not be written" in log.read_text() and "Traceback" not in log.read_text(), (
        log.read_text()
    )
    done = {p.parent.name: p.read_text() for p in small_disk.glob("tiny-*/trials/*/epochs.jsonl")}
    assert any(text.count("\n") >= 3 for text in done.values())
    (small_disk / "ballast").unlink()
    process, log = sweep(*few)
    assert process.wait(timeout=500) == 0, log.read_text()
    (run,) = run_module.list_runs(small_disk)
    records = run.ledger()
    over = [r for r in records if r["state"] == "done"]
    assert len(over) == 3 and all(
        [e["epoch"] for e in r["history"]] == list(range(1, 31)) for r in over
    )
    assert all(
        (run.folder / "trials" / name / "epochs.jsonl").read_text().startswith(text)
        for name, text in done.items()
    )
    assert "RUNNING" not in statuses(small_disk)
