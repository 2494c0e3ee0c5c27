"""The same commands as Ray jobs, on a cluster of this one machine."""

import json
import subprocess
import time

import pytest

from orchestrator.storage import run as run_module
from tests.support.staging import BIN, ROOT, Machines, Stage

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
    """Return the environment of the cluster, with secrets that its jobs inherit."""
    stage = Stage(
        HOME=str(tmp_path),
        **dict.fromkeys(("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"), PLANTED),
    )
    yield stage
    stage.close()


@pytest.fixture
def machines(stage):
    """Start a one-machine cluster that asks for a token, as a person does."""
    machines = Machines(stage)
    machines.head(2)
    return machines


@pytest.fixture
def cluster(machines, stage, tmp_path):
    """Return the address of the cluster, its home folder and the environment of commands."""
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
