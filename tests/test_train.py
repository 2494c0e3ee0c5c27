"""Training on Ray Train: two workers, killed and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator import runs

pytestmark = pytest.mark.fault

CONFIG = """
name: duo
data:
  train: data/duo
  synth: {images: 48, size: 48}
  size: 32
  val_limit: 25
model: {name: small, width: 16, stem: 8, heads: 2, dropout: 0.0, max_words: 12}
aml: {block: 4, stage1_scale: 1.0, tau: 0.5, rho: 0.5}
train: {epochs: 4, batch: 16}
evaluate: {probe: 8, pictures: 2}
resources: {workers: 2, cpus_per_worker: 1}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    (folder / "duo.yaml").write_text(CONFIG)
    return folder / "duo.yaml"


@pytest.fixture(scope="module")
def trained(config, ray_session):
    code, text = ray_session(["train", str(config), f"storage.root={config.parent}"])
    assert code == 0, text
    return runs.listing(config.parent)[0], text


def epochs(run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "epochs.jsonl").read_text().splitlines()]


def test_two_workers_score_every_validation_sentence_once(trained):
    run, text = trained
    assert run.state["state"] == "done" and [e["epoch"] for e in epochs(run)] == [1, 2, 3, 4]
    assert all(e["val/n"] == 25 for e in epochs(run))  # an odd number: nothing padded, nothing lost
    assert "epoch 4/4" in text and "mIoU" in text


def test_best_and_last_are_checkpoints_and_the_run_is_in_mlflow(trained, config):
    from mlflow.tracking import MlflowClient

    run, _ = trained
    assert (run.folder / "last" / "state.pt").exists() and (run.folder / "best" / "model.safetensors").exists()
    best = json.loads((run.folder / "best" / "config.json").read_text())
    assert best["metrics"]["val/mIoU"] == max(e["val/mIoU"] for e in epochs(run))
    client = MlflowClient(f"sqlite:///{config.parent}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "duo"]
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED" and [m.step for m in client.get_metric_history(logged.info.run_id, "val/mIoU")] == [1, 2, 3, 4]
    assert client.get_model_version_by_alias("duo", "champion")


def test_one_worker_on_the_same_batches_agrees_with_two(trained, config, ray_session):
    run, _ = trained
    code, text = ray_session(["train", str(config), f"storage.root={config.parent}", "name=solo", "resources.workers=1", "train.epochs=4"])
    assert code == 0, text
    solo = next(r for r in runs.listing(config.parent) if r.name.startswith("solo"))
    one, two = epochs(solo)[0], epochs(run)[0]
    assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-4)
    assert one["aml/hidden"] == pytest.approx(two["aml/hidden"], rel=1e-6)


def test_the_paper_preset_says_that_it_hides_everything(trained, config, ray_session):
    arguments = ["train", str(config), f"storage.root={config.parent}", "name=paper", "resources.workers=1", "train.epochs=1"]
    code, text = ray_session([*arguments, "aml={preset: paper}", "data.size=64"])
    assert code == 0, text
    assert "warning: aml/paper with tau 0.4 and rho 0.25 called 100.0% of the image weak and hid" in text and "nearly the whole image" in text


def test_a_finished_run_says_so(trained, config, ray_session):
    code, text = ray_session(["train", str(config), f"storage.root={config.parent}"])
    assert code == 0 and "has finished" in text


def children_of(pid: int) -> dict[int, str]:
    """Every descendant process of pid with its command line."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)] = (int(stat[1]), (entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    found, grew = {pid: ""}, True
    while grew:
        fresh = {p: command for p, (parent, command) in parents.items() if parent in found and p not in found}
        found, grew = found | fresh, bool(fresh)
    return found


def wait_for_epoch(folder: Path, epoch: int, process, log: Path) -> None:
    deadline = time.monotonic() + 500
    while not any(len(p.read_text().splitlines()) >= epoch for p in folder.glob("duo-*/epochs.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_a_killed_worker_and_a_killed_driver_lose_at_most_the_epoch_under_way(trained, config, tmp_path):
    undisturbed, _ = trained
    command = [sys.executable, "-m", "orchestrator", "train", str(config), f"storage.root={tmp_path}", "train.epochs=40"]
    log = tmp_path / "log"
    process = subprocess.Popen(command, stdout=open(log, "w"), stderr=subprocess.STDOUT, start_new_session=True)  # noqa: SIM115
    wait_for_epoch(tmp_path, 2, process, log)
    workers = [p for p, text in children_of(process.pid).items() if "TrainWorker" in text]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    done = len(next(tmp_path.glob("duo-*/epochs.jsonl")).read_text().splitlines())
    wait_for_epoch(tmp_path, done + 3, process, log)  # the workers came back and went on
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(next(tmp_path.glob("duo-*/epochs.jsonl")).read_text().splitlines())
    again = subprocess.run(command, capture_output=True, text=True, timeout=700, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "continuing duo-" in again.stdout and f"epoch {done + 2}/40" in again.stdout and f"epoch {done - 1}/40 " not in again.stdout
    (run,) = runs.listing(tmp_path)
    history = epochs(run)
    assert [e["epoch"] for e in history] == list(range(1, 41))
