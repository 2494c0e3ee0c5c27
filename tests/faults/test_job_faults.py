"""Submit Ray jobs with the submit command, list them and stop one."""

import json
import re
import sys

import pytest

from orchestrator.cluster import shutdown
from orchestrator.storage import run as run_module
from orchestrator.utils import git_state
from tests.orchestrator.cluster import test_job
from tests.orchestrator.cluster.test_job import PLANTED, SMALL, call
from tests.support.staging import BIN, ROOT, TOKEN, assert_nothing_left, holding, wait_for

pytestmark = pytest.mark.fault  # needs a cluster and a sweep; test_jobs covers the rest without

stage = test_job.stage  # fixtures
machines = test_job.machines
cluster = test_job.cluster


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
    assert (run.state["git_sha"], run.state["git_dirty"]) == git_state()
    (uploaded,) = (
        p
        for p in stage.folder.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*")
        if p.is_dir()
    )
    assert (
        (uploaded / "orchestrator").is_dir()
        and not (uploaded / "tests").exists()
        and float(re.search(r"files, ([\d.]+) MB", said)[1]) < 3
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
    # No secret is in the results, MLflow's database among them, nor in what the cluster knows and
    # wrote of its jobs.
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
