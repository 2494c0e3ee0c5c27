"""Training on Ray Train: two workers, their driver killed, then continued to the end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aml.masking.config import preset
from orchestrator.cluster import placement
from orchestrator.config.loader import from_dict
from orchestrator.storage import run as run_module
from orchestrator.tracking.tracker import MemoryTracker
from orchestrator.training.epochs import EpochListener
from tests.support.hearing import hear
from tests.support.staging import wait_for

CONFIG = """
name: duo
data:
  train: data/duo
  synth: {images: 48, size: 48}
  size: 32
  val_limit: 25
model: {name: small, width: 16, stem: 8, heads: 2, dropout: 0.0, max_words: 12}
aml: {block: 4, stage1_scale: 1.0, tau: 0.5, rho: 0.5}
train: {epochs: 40, batch: 16}
evaluate: {probe: 8, pictures: 2}
resources: {workers: 2, cpus_per_worker: 1}
"""


EPOCHS = 20
"""Of the story; its driver is killed after the fourth."""


def epochs(run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "epochs.jsonl").read_text().splitlines()]


def children_of(pid: int) -> dict[int, str]:
    """Every descendant process of pid with its command line."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)] = (
                    int(stat[1]),
                    (entry / "cmdline").read_text().replace("\0", " "),
                )
            except OSError:
                continue
    found, grew = {pid: ""}, True
    while grew:
        fresh = {
            p: command
            for p, (parent, command) in parents.items()
            if parent in found and p not in found
        }
        found, grew = found | fresh, bool(fresh)
    return found


def done_epochs(root: Path) -> int:
    return max(
        (len(p.read_text().splitlines()) for p in root.glob("duo-*/epochs.jsonl")), default=0
    )


def wait_for_epoch(root: Path, epoch: int, process, log: Path) -> None:
    deadline = time.monotonic() + 300
    while done_epochs(root) < epoch:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def story(tmp_path_factory, ray_session):
    """Run two workers, kill their driver, give the command again, and return what happened."""
    root = tmp_path_factory.mktemp("train")
    config, log = root / "duo.yaml", root / "log"
    config.write_text(CONFIG)
    arguments = ["train", str(config), f"storage.root={root}", f"train.epochs={EPOCHS}"]
    with open(log, "w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_for_epoch(root, 4, process, log)
    workers = [p for p, text in children_of(process.pid).items() if "TrainWorker" in text]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while (
        any(Path(f"/proc/{p}").exists() for p in workers) and time.monotonic() < deadline
    ):  # Ray takes down what the driver leaves
        time.sleep(0.2)
    killed_at = done_epochs(root)
    code, again = ray_session(arguments)
    assert code == 0, again
    (run,) = run_module.list_runs(root)
    return {
        "run": run,
        "root": root,
        "arguments": arguments,
        "workers": workers,
        "first": log.read_text(),
        "killed_at": killed_at,
        "again": again,
    }


def test_a_killed_driver_loses_at_most_the_epoch_under_way(story):
    assert len(story["workers"]) == 2
    again, done = story["again"], story["killed_at"]
    assert 4 <= done < EPOCHS
    assert (
        "continuing duo-" in again
        and f"epoch {done + 1}/{EPOCHS} " in again
        and f"epoch {done}/{EPOCHS} " not in again
    )
    assert [e["epoch"] for e in epochs(story["run"])] == list(range(1, EPOCHS + 1))


def test_two_workers_score_every_validation_sentence_once(story):
    assert story["run"].state["state"] == "done"
    assert all(
        e["val/n"] == 25 for e in epochs(story["run"])
    )  # an odd number: nothing padded, nothing lost


def test_best_and_last_are_checkpoints_and_the_run_is_in_mlflow(story):
    from mlflow.tracking import MlflowClient

    run = story["run"]
    assert (run.folder / "last" / "state.pt").exists() and (
        run.folder / "best" / "model.safetensors"
    ).exists()
    best = json.loads((run.folder / "best" / "config.json").read_text())
    assert best["metrics"]["val/mIoU"] == max(e["val/mIoU"] for e in epochs(run))
    client = MlflowClient(f"sqlite:///{story['root']}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "duo"]
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(logged.info.run_id, "val/mIoU")] == list(
        range(1, EPOCHS + 1)
    ), "every epoch, none twice"
    assert client.get_model_version_by_alias("duo", "champion")


def test_a_finished_run_says_so(story, ray_session):
    code, text = ray_session(story["arguments"])
    assert code == 0 and f"has finished: epoch {EPOCHS}" in text


# ---- the epoch listener of the driver, without Ray


def line(epoch: int, **more) -> str:
    metrics = {
        "epoch": epoch,
        "train/loss": 0.5,
        "val/mIoU": 0.1,
        "val/mIoU_best": 0.1,
        "val/oIoU": 0.1,
        "time/epoch_s": 1.0,
        **more,
    }
    return json.dumps(metrics) + "\n"


def test_what_is_asked_of_a_worker_is_answered_in_a_task_or_not_at_all(ray_session):
    def ask(function, seconds=60.0, **wanted):
        return placement.run_on_worker(function, wanted={"CPU": 1.0, **wanted}, seconds=seconds)

    assert (
        wait_for(lambda: ask(lambda: os.getpid())) != os.getpid()
    )  # once what ran before has let its CPUs go
    assert ask(lambda: 1, GPU=1) is None, "no node has one"
    assert ask(lambda: 1 / 0) is None
    assert ask(lambda: time.sleep(60), seconds=0.5) is None
    assert wait_for(lambda: ask(lambda: 1)) == 1, "what took too long has let its CPU go"


def test_epochs_on_disk_are_said_once_and_logged_all(tmp_path):
    """All epochs are tracked, since an earlier driver may have died before; new ones are logged."""
    experiment = from_dict({"name": "duo", "data": {"train": "x"}, "train": {"epochs": 4}})
    tracker, said = MemoryTracker(tmp_path), hear([])
    tracker.run("train", "duo")
    (tmp_path / "epochs.jsonl").write_text(line(1) + line(2))
    listener = EpochListener(run_module.Run(tmp_path, "train"), experiment, tracker, "train")
    listener.start()
    (tmp_path / "epochs.jsonl").write_text(line(1) + line(2) + line(3))
    listener.close()
    listener.close()
    assert [step for step, _ in tracker.runs["train"]["metrics"]["val/mIoU"]] == [1, 2, 3]
    assert len(said) == 1 and said[0].startswith("epoch 3/4 ") and listener.last_epoch == 3


def test_a_preset_that_hides_everything_is_said_with_its_numbers(tmp_path):
    experiment = from_dict({"name": "duo", "data": {"train": "x"}, "aml": {"preset": "paper"}})
    assert experiment.aml == preset("paper")
    said = hear([])
    listener = EpochListener(
        run_module.Run(tmp_path, "train"), experiment, MemoryTracker(tmp_path), "train"
    )
    listener.start()
    masked = {"aml/scale": 1.0, "aml/weak": 1.0, "aml/hidden": 0.994}
    (tmp_path / "epochs.jsonl").write_text(line(1, **masked) + line(2, **masked))
    listener.close()
    assert sum("warning" in text for text in said) == 1
    assert (
        "aml/paper with tau 0.4 and rho 0.25 called 100.0% of the image weak and hid 99.4%, "
        "nearly the whole image" in said[1]
    )
