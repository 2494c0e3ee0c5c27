"""A sweep as a user sees it: from nothing, killed and continued; MLflow, ledger and report."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.storage import run as run_module

TINY = """
name: tiny
data:
  train: data/tiny
  synth: {images: 48, size: 48}
  size: 32
  val_limit: 24
model: {name: small, width: 16, stem: 8, heads: 2, dropout: 0.0, max_words: 12}
aml: {block: 4, stage1_scale: 1.0}
train: {epochs: 3, batch: 16}
evaluate: {probe: 8, pictures: 2}
search:
  arms: [off, random, aml/calibrated(weak=lowest)]
  space: {aml.tau: [0.5], optim.lr: [1e-3, 1e6]}
  scheduler: {name: asha, grace: 1, reduction: 2}
  seeds: {confirm: 1}
"""


ALIGNED = "aml/calibrated(weak=lowest)"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a storage root for a sweep whose trials at a learning rate of 1e6 cannot succeed."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


@pytest.fixture(scope="module")
def finished(home, ray_session):
    code, text = ray_session(["sweep", str(home / "tiny.yaml"), f"storage.root={home}"])
    assert code == 0, text
    return run_module.list_runs(home)[0], text


def test_a_sweep_ends_with_every_arm_confirmed_and_says_where_things_are(finished):
    run, text = finished
    assert run.state["state"] == "done"
    records = run.ledger()
    assert len(records) == 9 and len({r["trial"] for r in records}) == 9
    assert {r["arm"] for r in records if r["stage"] == "confirm" and r["state"] == "done"} == {
        "off",
        "random",
        ALIGNED,
    }
    for record in records:
        config = run.folder / "trials" / record["trial"] / "last" / "config.json"
        if config.exists():
            assert json.loads(config.read_text())["arm"] == record["arm"]
    for word in (
        "untrained model",
        "random object",
        "largest object",
        "another referent's sentence",
        "report",
        "index.html",
        "orchestrator ui",
    ):
        assert word in text
    for column in ("tau", "rho", "seed", "epoch", "loss", "mIoU", "oIoU", "left"):
        assert column in text


def test_a_trial_that_is_not_finite_fails_alone_and_is_said(finished):
    run, text = finished
    failed = [r for r in run.ledger() if r["state"] == "failed"]
    assert len(failed) == 3 and all(
        r["params"]["optim.lr"] == 1e6 and r["stopped_by"] == "non-finite" for r in failed
    )
    assert "non-finite loss or gradient" in text and "lower optim.lr" in text


def test_arms_have_equal_trials_and_numeric_coordinates(finished):
    run, _ = finished
    search = [r for r in run.ledger() if r["stage"] == "search"]
    assert {arm: sum(r["arm"] == arm for r in search) for arm in ("off", "random", ALIGNED)} == {
        "off": 2,
        "random": 2,
        ALIGNED: 2,
    }
    assert {(r["arm"], r["tau"], r["rho"]) for r in search} == {
        ("off", 0.0, 0.0),
        ("random", 1.0, 0.25),
        (ALIGNED, 0.5, 0.5),
    }


def test_mlflow_holds_a_parent_its_children_and_a_champion(finished, home):
    import mlflow
    from mlflow.tracking import MlflowClient

    run, _ = finished
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    every = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in every if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in every if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 9 and parent.info.status == "FINISHED"
    assert {r.info.status for r in children} == {"FINISHED", "FAILED"}
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "[all trials compared](#/compare-runs?" in parent.data.tags["mlflow.note.content"]
    assert parent.data.tags["mlflow.source.name"] == run.state["command"]
    assert parent.data.tags["stopped_by"] == "completed" and len(parent.data.params) < 40
    for child in children:
        float(child.data.params["aml.tau"]), float(child.data.params["aml.rho"])
        assert {
            "sweep",
            "trial_id",
            "seed",
            "arm",
            "stage",
            "git_sha",
            "git_dirty",
            "data_fingerprint",
            "stopped_by",
        } <= child.data.tags.keys()
    done = next(r for r in children if r.data.tags["stage"] == "confirm")
    assert [m.step for m in client.get_metric_history(done.info.run_id, "val/mIoU")] == [1, 2, 3]
    assert {
        "train/loss",
        "val/oIoU",
        "val/P0.5",
        "val/mIoU_best",
        "aml/probe_hidden",
        "time/epoch_s",
        "mem/peak_mb",
    } <= done.data.metrics.keys()
    assert any(a.path.endswith(".png") for a in client.list_artifacts(done.info.run_id, "pictures"))
    assert client.get_model_version_by_alias("tiny", "champion").run_id == parent.info.run_id
    assert mlflow.__version__


def test_an_evaluation_is_logged_on_the_run_it_belongs_to(
    finished, home, tmp_path, monkeypatch, ray_session
):
    from mlflow.tracking import MlflowClient

    run, _ = finished
    monkeypatch.setenv("AMLRIS_HOME", str(home))
    champion = run.state["champion"]["trial"]
    how = [
        "--data",
        "data/tiny",
        "--splits",
        "val,testA",
        "--corrupt",
        "fog:3",
        "--out",
        str(tmp_path / "scores"),
    ]
    for _ in range(2):  # once more changes nothing
        code, text = ray_session(["evaluate", "tiny", *how])
        assert code == 0 and f"logged on {run.name} {champion} in MLflow" in text
    client, metrics = (
        MlflowClient(f"sqlite:///{home}/mlflow.db"),
        json.loads((tmp_path / "scores" / "metrics.json").read_text()),
    )
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    (child,) = client.search_runs([experiment.experiment_id], f"tags.trial_id = '{champion}'")
    assert (
        child.data.metrics["eval/refcoco/val/square/mIoU"] == metrics["val"]["mIoU"]
        and child.info.status == "FINISHED"
    )
    assert child.data.metrics["eval/refcoco/val/square/fog-3/oIoU"] == metrics["val/fog:3"]["oIoU"]
    assert {a.path for a in client.list_artifacts(child.info.run_id, "evaluations/scores")} >= {
        "evaluations/scores/metrics.json"
    }
    read = {(i.dataset.name, i.tags[0].value) for i in child.inputs.dataset_inputs}
    assert read == {
        ("refcoco-unc/train", "training"),
        ("refcoco-unc/val", "validation"),
        ("refcoco-unc/testA", "evaluation"),
    }, "val was there already"
    code, text = ray_session(["evaluate", "tiny", *how, "--no-track"])
    assert code == 0 and "MLflow" not in text


def test_the_report_is_written_with_its_csv(finished):
    run, _ = finished
    page = (run.folder / "report" / "index.html").read_text()
    assert "aml/calibrated" in page and "non-finite" in page
    assert (run.folder / "report" / "arms.csv").read_text().count("\n") == 4


def test_the_same_command_finds_it_finished(finished, home, ray_session):
    code, text = ray_session(["sweep", str(home / "tiny.yaml"), f"storage.root={home}"])
    assert code == 0 and "has finished" in text and "--fresh" in text
    assert len(run_module.list_runs(home)) == 1


def test_a_finished_sweep_given_again_with_corruptions_scores_its_confirmed_checkpoints(
    finished, home, ray_session
):
    from mlflow.tracking import MlflowClient

    run, _ = finished
    before = run.ledger()
    command = ["sweep", str(home / "tiny.yaml"), f"storage.root={home}"]
    code, text = ray_session([*command, "evaluate.corrupt=fog:2,fog:4,noise:3"])
    assert code == 0 and "scoring 3 confirmed checkpoints on the clean pictures" in text, text
    assert len(run_module.list_runs(home)) == 1 and run.ledger() == before
    measured = run_module.list_runs(home)[0].state["robustness"]
    confirmed = {r["trial"]: r for r in before if r["stage"] == "confirm"}
    assert measured["trials"].keys() == confirmed.keys() and measured["n"] == 24
    for trial, scores in measured["trials"].items():
        # the clean pictures are those of the last epoch's validation
        assert scores["clean:0"]["mIoU"] == confirmed[trial]["history"][-1]["val/mIoU"]
    assert "mIoU in % on the first 24 of 39 sentences of val" in text
    assert "the same under corruption, severity" in text
    table = (run.folder / "report" / "robust_arms.csv").read_text()
    assert table.count("\n") == 1 + 3 * 4
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    name, scores = next(iter(measured["trials"].items()))
    (child,) = client.search_runs([experiment.experiment_id], f"tags.trial_id = '{name}'")
    fog = (scores["fog:2"]["mIoU"] + scores["fog:4"]["mIoU"]) / 2
    assert child.data.metrics["robust/fog"] == pytest.approx(fog)
    assert {"robust/clean", "robust/noise", "robust/mean"} <= child.data.metrics.keys()
    assert "has finished" in ray_session([*command, "evaluate.corrupt=noise:3"])[1]


def test_a_finished_sweep_goes_on_to_more_confirmation_seeds(finished, home, tmp_path, ray_session):
    run, _ = finished
    later = tmp_path / "later"
    shutil.copytree(home, later)
    copy = run_module.Run(later / run.name, "sweep")
    shutil.rmtree(copy.folder / "trials")  # what a machine that is gone took with it
    command = ["sweep", str(home / "tiny.yaml"), f"storage.root={later}"]
    code, text = ray_session([*command, "search.seeds.confirm=2"])
    assert code == 0 and f"{run.name} goes on from 1 to 2 confirmation seeds an arm" in text, text
    before, after = run.ledger(), copy.ledger()
    assert after[: len(before)] == before
    added = {(r["arm"], r["stage"], r["seed"], r["state"]) for r in after[len(before) :]}
    assert added == {(arm, "confirm", 1001, "done") for arm in copy.experiment().search.arms}
    assert copy.experiment().search.seeds.confirm == 2
    code, text = ray_session(command)  # fewer seeds take nothing away
    assert code == 0 and "has 2 confirmation seeds an arm; all of them count" in text
    assert "has finished" in text and len(run_module.list_runs(later)) == 1


def test_a_run_under_work_is_not_started_twice(finished, home, ray_session):
    run, _ = finished
    with run.locked():
        code, text = ray_session(["sweep", str(home / "tiny.yaml"), f"storage.root={home}"])
    assert code == 2 and f"is being worked on by process {os.getpid()}" in text


def test_dry_run_starts_nothing(home, ray_session):
    code, text = ray_session(
        ["sweep", str(home / "tiny.yaml"), f"storage.root={home}", "name=other", "--dry-run"]
    )
    assert code == 0
    assert (
        "9 trials of 3 epochs" in text
        and "placement" in text
        and "s an epoch" in text
        and "no prices given" in text
        and "nothing was started" in text
    )
    assert not list(home.glob("other-*"))


def alone(run: run_module.Run, record: dict, root: Path) -> list[dict]:
    """Train a sweep's trial once more in this process, without Ray, and return its epochs."""
    from aml.data.decode import decode_row, rows_of_block
    from orchestrator.data import shards as shards_module
    from orchestrator.search import trial_spec
    from orchestrator.storage import filesystem
    from orchestrator.training import loop

    experiment = run.experiment()
    spec = trial_spec.TrialSpec(
        record["trial"], record["arm"], record["stage"], record["seed"], record["overrides"]
    )
    store = filesystem.Filesystem(experiment.data.train, root)
    heard = []
    rows = shards_module.read_rows(store, shards_module.picture_places(store, ["train", "val"]))
    blocks = [
        rows_of_block([decode_row(row, experiment.data.size, experiment.data.fit) for row in rows])
    ]
    loop._ITEMS.clear()
    loop.run_training(
        spec.experiment(experiment),
        lambda: blocks,
        shards_module.words(store),
        root / "alone" / record["trial"],
        heard.append,
    )
    return heard


def test_a_reused_process_gives_a_trial_the_bits_it_has_alone(finished, home):
    """A confirmation trial ran in an actor that had run other trials; alone it gives the same."""
    run, _ = finished
    (record,) = [r for r in run.ledger() if r["trial"] == "aml_calibrated_weak_lowest-confirm-000"]
    names = ("train/loss", "val/mIoU", "val/oIoU", "aml/hidden", "aml/auroc")
    assert [[h[n] for n in names] for h in alone(run, record, home)] == [
        [e[n] for n in names] for e in record["history"]
    ]


def test_a_budget_stops_a_sweep_with_the_best_so_far_and_a_larger_one_goes_on(home, ray_session):
    command = [
        "sweep",
        str(home / "tiny.yaml"),
        f"storage.root={home}",
        "name=frugal",
        "search.scheduler=none",
        "train.epochs=2",
    ]
    code, text = ray_session([*command, "search.budget={trials: 4}"])
    assert code == 0, text
    run = run_module.find_run(home, "frugal")
    assert (
        [r["stage"] for r in run.ledger()].count("search") == 3
        and len(run.ledger()) == 4
        and run.state["stopped_by"] == "budget"
    )
    assert (
        "stopped by its budget of 4 trials" in text
        and "confirmation is missing" in text
        and "index.html" in text
    )
    assert tags(home, "frugal")["stopped_by"] == "budget"
    assert (
        "stopped by its budget" in ray_session([*command, "search.budget={trials: 4}"])[1]
    )  # finished, as long as the budget is the same
    code, text = ray_session([*command, "search.budget={trials: 20}"])
    assert code == 0 and "4 trials have finished" in text and "stopped by its budget" not in text, (
        text
    )
    assert (
        len(run_module.find_run(home, "frugal").ledger()) == 9
        and tags(home, "frugal")["stopped_by"] == "completed"
    )


def tags(home, name: str) -> dict:
    """Return MLflow's tags of a sweep's parent run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == name]
    (parent,) = [
        r
        for r in client.search_runs([experiment.experiment_id])
        if "mlflow.parentRunId" not in r.data.tags
    ]
    return parent.data.tags


def test_a_killed_sweep_continues_without_doing_anything_twice(home, tmp_path, ray_session):
    arguments = [
        "sweep",
        str(home / "tiny.yaml"),
        f"storage.root={tmp_path}",
        "name=killed",
        "train.epochs=4",
        "search.arms=[off, aml/calibrated]",
    ]
    log = open(tmp_path / "log", "w+")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 500
    while (
        not (ledgers := list(tmp_path.glob("killed-*/ledger.jsonl")))
        or ledgers[0].read_bytes().count(b"\n") < 2
    ):
        assert process.poll() is None and time.monotonic() < deadline, (
            tmp_path / "log"
        ).read_text()
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = [json.loads(line) for line in ledgers[0].read_bytes().splitlines()]
    code, again = ray_session(arguments)
    assert code == 0 and "continuing killed-" in again, again
    (run,) = run_module.list_runs(tmp_path)
    records = run.ledger()
    assert records[: len(before)] == before
    assert (
        sorted(r["trial"] for r in records) == sorted({r["trial"] for r in records})
        and len(records) == 6
    )
    assert all(
        [e["epoch"] for e in r["history"]] == list(range(1, r["epochs"] + 1)) for r in records
    )
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "killed"]
    every = client.search_runs([experiment.experiment_id])
    assert len(every) == 7 and {r.info.status for r in every} <= {"FINISHED", "FAILED"}


def test_hyperband_pauses_trials_of_hyperopt_and_all_of_them_end(home, ray_session):
    """With 4 epochs and a factor of 2 a bracket compares its trials at epochs 1 and 2."""
    arguments = ["sweep", str(home / "tiny.yaml"), f"storage.root={home}", "name=paused"]
    code, text = ray_session(
        [
            *arguments,
            "search.arms=[off]",
            "search.space={optim.lr: {low: 1e-4, high: 1e-2, log: true}}",
            "search.method={name: hyperopt, n_initial_points: 2}",
            "search.trials=8",
            "search.scheduler={name: hyperband, reduction_factor: 2}",
            "search.seeds.confirm=0",
            "train.epochs=4",
        ]
    )
    assert code == 0, text
    records = run_module.find_run(home, "paused").ledger()
    assert len({r["trial"] for r in records}) == len(records) == 8
    assert {r["state"] for r in records} == {"done", "stopped"}
    assert {r["stopped_by"] for r in records} == {"", "hyperband"}
    assert all(
        [e["epoch"] for e in r["history"]] == list(range(1, r["epochs"] + 1)) for r in records
    )
