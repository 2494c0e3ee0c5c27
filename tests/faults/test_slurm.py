"""Submit cluster/slurm.sh to a Slurm of two machines: its time runs out, and the sweep goes on."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.config.loader import load
from orchestrator.storage import run as run_module
from tests.orchestrator.sweep.test_sweep import TINY
from tests.support import slurm
from tests.support.staging import BIN, ROOT, Stage, assert_resumed, histories, wait_for

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1800)]

SIX = [
    "tracking.uri=none",
    "search={arms: [off], space: {optim.lr: [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]}, scheduler: none, "
    "seeds: {confirm: 1}}",
    "train={epochs: 14, batch: 2}",
    "data.unit=sentence",
    "resources.gpus_per_worker=0",
]
"""Settings of six trials, two at a time.

What is left when the first has ended takes longer than Slurm needs to look at its clock, 30 s.
"""


@pytest.fixture
def cluster():
    if reason := slurm.missing():
        pytest.skip(reason)
    stage = Stage()
    machines = slurm.SlurmCluster(stage)
    try:
        machines.start()
        yield machines
    finally:
        machines.close()
        stage.close()


@pytest.fixture
def project(tmp_path) -> Path:
    """Return a folder as a person submits from: project, environment, experiment and script."""
    for name in ("aml", "orchestrator"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(BIN.parent)
    (tmp_path / "tiny.yaml").write_text(TINY)
    tree = load(tmp_path / "tiny.yaml", SIX).to_dict()
    del tree["storage"]
    (tmp_path / "six.yaml").write_text(yaml.safe_dump(tree))
    values = ["COMMAND=sweep six.yaml", "GPU_CPUS=1", "TIME=01:00:00"]
    render = [sys.executable, ROOT / "cluster" / "render.py", "slurm.sh", *values]
    (tmp_path / "amlris.sbatch").write_text(subprocess.check_output(render, text=True))
    return tmp_path


def test_a_job_whose_time_is_up_is_submitted_again_and_the_sweep_goes_on(cluster, project):
    root = project / "runs"
    process, number, log = cluster.submit("amlris.sbatch", project)
    (ledger,) = wait_for(lambda: list(root.glob("*/ledger.jsonl")), log=log, process=process)
    cluster.end_soon(number)
    assert process.wait(timeout=300) == 130, log.read_text()
    assert "the same command continues it" in log.read_text()
    had, done = ledger.read_bytes(), histories(root)
    assert 1 <= len(had.splitlines()) < 6

    process, _, log = cluster.submit("amlris.sbatch", project)
    assert process.wait(timeout=800) == 0, log.read_text()
    assert "continuing tiny-" in log.read_text() and ledger.read_bytes().startswith(had)
    (run,) = run_module.list_runs(root)
    records = run.ledger()
    assert run.state["state"] == "done" and {r["state"] for r in records} == {"done"}
    assert len(records) == len(ledger.read_bytes().splitlines()) == 6
    assert_resumed(done, histories(root))
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not cluster.processes(), seconds=60)
    assert cluster.processes() == {}
