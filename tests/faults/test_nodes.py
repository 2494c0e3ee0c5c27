"""Loss of machines of a cluster in the middle of a run: a node, then the head.

The run loses no more than the epoch under way.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.cluster import placement, shutdown
from orchestrator.config.loader import load
from orchestrator.storage import run as run_module
from orchestrator.training import loop
from orchestrator.utils import signals
from tests.orchestrator.sweep.test_sweep import TINY, alone
from tests.orchestrator.training.test_train import CONFIG
from tests.support.staging import (
    ROOT,
    Machines,
    Stage,
    assert_nothing_left,
    assert_resumed,
    histories,
    statuses,
    wait_for,
)

pytestmark = pytest.mark.fault

LONG = [
    "tracking.uri=none",
    "search={arms: [off], space: {}, scheduler: none, seeds: {search: 1, confirm: 0}}",
    "train={epochs: 2, batch: 2}",
    "data.unit=sentence",
    "data.synth={images: 160, size: 48}",
]
"""Settings of one trial with a few long epochs."""

NUMBERS = ("epoch", "train/loss", "val/mIoU", "val/oIoU")


@pytest.fixture(scope="module")
def stage():
    stage = Stage(RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2")
    stage.environment["HOME"] = str(stage.folder / "home")
    (stage.folder / "home").mkdir()
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def machines(stage):
    """Start a head that holds only the driver; the tests add and lose other machines."""
    machines = Machines(stage)
    machines.head(0)
    return machines


@pytest.fixture(autouse=True)
def alone_on_them(stage):
    """End what a failed test left running on the machines."""
    yield
    stage.kill(machines=False)


def numbers(history: list[dict]) -> list[list]:
    return [[epoch[name] for name in NUMBERS] for epoch in history]


def assert_saved_in_the_middle(notes: Path, why: str, root: Path) -> None:
    """Check that the one trial was saved in the middle of an epoch and went on from that very step.

    Its numbers must be those of a trial without an interruption.
    """
    saved, resumed = notes.read_text().splitlines()[-2:]
    place = saved.removeprefix(f"{why}: saved at ")
    assert place != saved and resumed == f"goes on at {place}"
    (run,) = run_module.list_runs(root)
    (record,) = run.ledger()
    assert record["state"] == "done" and numbers(record["history"]) == numbers(
        alone(run, record, root)
    )


def test_a_sweep_whose_node_is_lost_goes_on_where_another_comes(stage, machines, tmp_path, root):
    machines.add("first", 2)
    shutil.copy(root / "mlflow.db", tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    few = [
        "search.scheduler=none",
        "search.space={optim.lr: [1e-3, 2e-3]}",
        "search.arms=[off]",
        "train.epochs=20",
    ]
    process, log = stage.orchestrator(
        "sweep",
        tmp_path / "tiny.yaml",
        f"storage.root={tmp_path}",
        *few,
        RAY_ADDRESS=machines.address,
    )
    wait_for(
        lambda: any(len(h) >= 3 for h in histories(tmp_path).values()), log=log, process=process
    )
    machines.lose("first")
    done = histories(tmp_path)
    assert all(len(history) < 20 for history in done.values())
    machines.add("second", 2)
    assert process.wait(timeout=500) == 0, log.read_text()
    (run,) = run_module.list_runs(tmp_path)
    records = run.ledger()
    assert len(records) == 3 and {(r["state"], r["epochs"]) for r in records} == {("done", 20)}
    assert_resumed(done, histories(tmp_path))
    for record in records:
        assert numbers(record["history"]) == numbers(alone(run, record, tmp_path))
    assert statuses(tmp_path) == ["FINISHED"] * 4
    assert_nothing_left(stage, tmp_path, machines)


def test_a_machine_with_a_notice_saves_in_the_middle_of_an_epoch(stage, machines, tmp_path):
    """A second machine decodes data and has no room for the trial."""
    machines.only("spot")
    machines.add(placement.DATA, 1, "--memory=500000000")
    (tmp_path / "tiny.yaml").write_text(TINY)
    wide = [*LONG, "resources.memory_gb=1"]
    process, log = stage.orchestrator(
        "sweep",
        tmp_path / "tiny.yaml",
        f"storage.root={tmp_path}",
        *wide,
        RAY_ADDRESS=machines.address,
    )
    wait_for(lambda: any(histories(tmp_path).values()), log=log, process=process)
    machines.warn("spot")
    (notes,) = wait_for(
        lambda: list(tmp_path.glob("tiny-*/trials/*/notes.txt")), log=log, process=process
    )
    machines.lose("spot")
    machines.add("next", 1)
    assert process.wait(timeout=500) == 0, log.read_text()
    assert_saved_in_the_middle(notes, shutdown.PREEMPTED, tmp_path)
    assert machines.ran("MapBatches(_decode)") == {placement.DATA}
    assert_nothing_left(stage, tmp_path, machines)


def test_an_elastic_training_goes_on_with_what_is_left_and_takes_in_what_comes(
    stage, machines, tmp_path
):
    machines.only("left", "right")
    (tmp_path / "duo.yaml").write_text(CONFIG)
    few = [
        "train.epochs=2000",
        "tracking.uri=none",
        "resources={workers: 2, min_workers: 1, cpus_per_worker: 1}",
    ]
    process, log = stage.orchestrator(
        "train",
        tmp_path / "duo.yaml",
        f"storage.root={tmp_path}",
        *few,
        RAY_ADDRESS=machines.address,
    )

    def of_so_many_workers() -> list[int]:
        """Return the number of workers of the epochs so far, at each change."""
        counts = [
            int(epoch["train/workers"])
            for history in histories(tmp_path).values()
            for epoch in history
        ]
        return [count for count, _ in itertools.groupby(counts)]

    wait_for(lambda: of_so_many_workers() == [2], log=log, process=process)
    machines.lose("left")
    done = histories(tmp_path)
    wait_for(lambda: of_so_many_workers() == [2, 1], log=log, process=process)
    machines.add("another", 1)
    wait_for(lambda: of_so_many_workers() == [2, 1, 2], log=log, process=process)
    os.killpg(process.pid, signal.SIGINT)  # as the keyboard does
    assert process.wait(timeout=120) == 130, log.read_text()
    (history,) = histories(tmp_path).values()
    assert [epoch["epoch"] for epoch in history] == list(range(1, len(history) + 1))
    assert_resumed(done, histories(tmp_path))
    (run,) = run_module.list_runs(tmp_path)
    last, text = (
        len(history),
        log.read_text(),
    )  # the epoch under way was finished, saved, said, and was the last
    assert (
        signals.INTERRUPTED in text
        and f"epoch {last}/2000 " in text
        and f"interrupted after epoch {last}; the same command continues it" in text
    )
    assert run.state["state"] == "interrupted" and not (run.folder / loop.STOP).exists()
    assert_nothing_left(stage, tmp_path, machines)


SRUN = """#!/bin/bash
# a step of one task on this machine, whose Ray the test has started
while [ "$1" != -- ]; do shift; done
exec "${@:2}"
"""


def test_a_slurm_job_whose_time_is_up_saves_in_the_middle_of_an_epoch(stage, machines, tmp_path):
    """Slurm sends the signal that cluster/slurm.sh asks for to the batch script alone."""
    machines.only("batch")
    (tmp_path / "tiny.yaml").write_text(TINY)
    tree = load(tmp_path / "tiny.yaml", LONG).to_dict()
    del tree["storage"]
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(tree))
    fakes = {"srun": SRUN, "scontrol": "#!/bin/bash\necho 127.0.0.1\n"}
    for name, text in fakes.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    values = ["COMMAND=sweep long.yaml", "GPUS_PER_NODE=0"]
    script = subprocess.run(
        [sys.executable, ROOT / "cluster" / "render.py", "slurm.sh", *values],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (tmp_path / "job").write_text(script)
    for name in ("aml", "orchestrator"):
        (tmp_path / name).symlink_to(ROOT / name)
    slurm = {
        "SUBMIT_DIR": tmp_path,
        "JOB_ID": machines.port - 20000,
        "JOB_NODELIST": "one",
        "JOB_NUM_NODES": 1,
        "CPUS_PER_TASK": 2,
    }
    environment = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    environment["PATH"] = f"{tmp_path}:{stage.environment['PATH']}"
    root = tmp_path / "runs"

    process, log = stage.start(["bash", tmp_path / "job"], **environment)
    wait_for(
        lambda: "epoch   1/2" in log.read_text(), log=log, process=process
    )  # the second is under way
    process.terminate()
    assert (
        process.wait(timeout=120) == 130 and "the same command continues it" in log.read_text()
    ), log.read_text()
    process, log = stage.start(["bash", tmp_path / "job"], **environment)
    assert process.wait(timeout=500) == 0, log.read_text()
    (notes,) = root.glob("tiny-*/trials/*/notes.txt")
    assert_saved_in_the_middle(notes, shutdown.SHUTDOWN, root)
    assert_nothing_left(stage, root, machines)


def test_a_job_submitted_again_after_its_head_was_lost_runs_no_finished_trial_again(
    stage, machines
):
    machines.stage.kill()
    home = stage.folder / "home" / "amlris"
    small = [
        "data.synth={images: 48, size: 48}",
        "data.size=32",
        "data.val_limit=16",
        "model={name: small, width: 16, stem: 8, heads: 2, dropout: 0.0}",
        "train={epochs: 20, batch: 16}",
        "evaluate={probe: 8, pictures: 2}",
        "search={arms: [off], space: {optim.lr: [1e-3, 2e-3]}, scheduler: none, "
        "max_concurrent: 1, seeds: {confirm: 1}}",
    ]
    submit = ["--follow", "sweep", "experiments/quickstart.yaml", *small]
    machines.head(2)
    process, log = machines.submit(*submit)
    wait_for(lambda: list(home.glob("quickstart-*/ledger.jsonl")), log=log, process=process)
    machines.lose("head")
    (ledger,) = home.glob("quickstart-*/ledger.jsonl")
    had, done = ledger.read_bytes(), histories(home)
    assert (
        process.wait(timeout=180) == 1
        and "submitted again where one runs it continues" in log.read_text()
    ), log.read_text()
    assert "Traceback" not in log.read_text()
    machines.head(2)
    process, log = machines.submit(*submit)
    assert process.wait(timeout=500) == 0, log.read_text()
    (run,) = run_module.list_runs(home)
    records = run.ledger()
    assert "continuing quickstart-" in log.read_text() and ledger.read_bytes().startswith(had)
    assert len(records) == len({r["trial"] for r in records}) == 3 and {
        r["state"] for r in records
    } == {"done"}
    assert_resumed(done, histories(home))
    assert statuses(home, "quickstart") == ["FINISHED"] * 4
    assert_nothing_left(stage, home, machines)
