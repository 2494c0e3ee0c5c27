"""The same command through `ray job submit`, on a cluster of this one machine."""

import json
import re
import subprocess
import sys
import time

import pytest
from staging import BIN, ROOT, TOKEN, Machines, Stage, assert_nothing_left, holding, wait_for

from orchestrator.cluster import shutdown
from orchestrator.storage import run as run_module

SMALL = [
    "data.synth={images: 48, size: 48}",
    "data.size=32",
    "data.val_limit=16",
    "model={name: small, width: 16, stem: 8, heads: 2, dropout: 0.0}",
    "train={epochs: 1, batch: 16}",
    "evaluate={probe: 8, pictures: 2}",
    "search.space={aml.tau: [0.5]}",
    "search.trials=1",
    "search.seeds={confirm: 1}",
]


PLANTED = "hunter2Planted0Secret"


@pytest.fixture
def stage(tmp_path):
    """The cluster is started with secrets, which its jobs inherit."""
    stage = Stage(
        HOME=str(tmp_path),
        **dict.fromkeys(("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"), PLANTED),
    )
    yield stage
    stage.close()


@pytest.fixture
def machines(stage):
    """A one-machine cluster that asks for a token, started as a person does."""
    machines = Machines(stage)
    machines.head(2)
    return machines


@pytest.fixture
def cluster(machines, stage, tmp_path):
    """Its address, home folder and environment."""
    return machines.jobs, tmp_path, stage.environment


def call(command: list, environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )


def test_a_submitted_sweep_leaves_its_results_outside_the_throw_away_copy(cluster):
    address, home, environment = cluster
    job = [
        "python",
        "-m",
        "orchestrator",
        "sweep",
        "experiments/quickstart.yaml",
        *SMALL,
        "search.arms=[off]",
    ]
    deadline = time.monotonic() + 120
    while True:
        done = call(
            [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ROOT, "--", *job],
            environment,
        )
        if (
            "No available agent" not in done.stderr or time.monotonic() > deadline
        ):  # the cluster is still coming up
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"results go to {home / 'amlris'}" in done.stdout and "index.html" in done.stdout
    (run,) = run_module.list_runs(home / "amlris")
    assert run.finished and len(run.ledger()) == 2
    assert json.loads((run.folder / "sweep.json").read_text())["champion"]["checkpoint"]


@pytest.mark.fault  # a cluster and a sweep more; test_jobs has the rest with a client of its own
def test_submit_hands_over_what_a_job_needs_and_a_second_one_finds_it_finished(
    cluster, machines, stage
):
    address, home, environment = cluster
    submit = [sys.executable, "-m", "orchestrator", "submit", "--address", address]
    sweep = ["sweep", "experiments/quickstart.yaml", *SMALL, "search.arms=[off]"]
    process, log = machines.submit("--follow", *sweep)
    assert process.wait(timeout=500) == 0, log.read_text()
    said = log.read_text()
    assert f"results go to {home / 'amlris'}" in said and "index.html" in said
    assert (
        "job         quickstart-1" in said
        and "quickstart-1 succeeded" in said
        and "tests" in said.split("left out:")[1]
    )
    (run,) = run_module.list_runs(home / "amlris")
    assert run.finished and len(run.ledger()) == 2
    assert json.loads((run.folder / "sweep.json").read_text())["champion"]["checkpoint"]
    assert (run.state["git_sha"], run.state["git_dirty"]) == run_module.git_state()
    (uploaded,) = (
        p
        for p in stage.folder.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*")
        if p.is_dir()
    )
    assert (
        (uploaded / "orchestrator").is_dir()
        and not (uploaded / "tests").exists()
        and float(re.search(r"files, ([\d.]+) MB", said)[1]) < 2
    )
    # the same through Ray's own command finds the run finished
    again = call(
        [
            BIN / "ray",
            "job",
            "submit",
            "--address",
            address,
            "--working-dir",
            ROOT,
            "--",
            "python",
            "-m",
            "orchestrator",
            *sweep,
        ],
        environment,
    )
    assert again.returncode == 0 and f"{run.name} has finished" in again.stdout, (
        again.stdout + again.stderr
    )
    listed = call([*submit, "--list"], environment).stdout
    assert "quickstart-1" in listed and listed.count("SUCCEEDED") == 2, listed
    stranger = call(
        [*submit, "--list"], {k: v for k, v in environment.items() if not k.startswith("RAY_AUTH")}
    )
    assert (
        stranger.returncode == 2
        and "quickstart" not in stranger.stdout
        and "refuses" in stranger.stderr
    ), stranger.stdout + stranger.stderr
    # one that is stopped has the time to save what it trains
    endless = [
        "train",
        "experiments/quickstart.yaml",
        *SMALL,
        "train.epochs=500",
        "train.batch=2",
        "data.unit=sentence",
    ]
    name = re.search(r"job +(\S+)", call([*submit, *endless], environment).stdout)[1]
    wait_for(lambda: list((home / "amlris").glob("*/epochs.jsonl")))
    assert f"asked {name} to stop" in call([*submit, "--stop", name], environment).stdout
    wait_for(
        lambda: re.search(rf"{name} +STOPPED", call([*submit, "--list"], environment).stdout),
        seconds=120,
    )
    (notes,) = (home / "amlris").glob("*/notes.txt")
    assert f"{shutdown.SHUTDOWN}: saved at step" in notes.read_text()
    # neither the results, MLflow's database among them, nor what the cluster knows and wrote of its jobs hold a secret
    jobs = call([BIN / "ray", "job", "list", "--address", address], environment).stdout
    assert (
        "quickstart-1" in jobs
        and TOKEN not in said + again.stdout + listed + jobs
        and PLANTED not in said + again.stdout + listed + jobs
    )
    assert (
        (home / "amlris" / "mlflow.db").exists()
        and holding(home, TOKEN) == []
        and holding(home, PLANTED) == holding(stage.folder, PLANTED) == []
    )
    assert_nothing_left(stage, home / "amlris", machines)
