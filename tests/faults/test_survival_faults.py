"""Make one MLflow tracking store from several processes at once."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.fault  # every process imports MLflow, which takes its time


def test_two_processes_may_make_one_tracking_store_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from orchestrator.tracking import Tracker\n"
        "root = Path(sys.argv[1]); t = Tracker(root / sys.argv[2], None, 'same', root)\n"
        "t.run('a', sys.argv[2]); t.metrics('a', 1, {'x': 1.0}); t.end('a')\n"
        "assert t.ready(120), t.problem\n"
        "print(t.close(120))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two", "three")
    ]
    assert [(p.communicate(timeout=240), p.returncode) for p in processes] == [(("\n", ""), 0)] * 3
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "same"]
    assert sorted(
        (r.info.run_name, r.info.status, r.data.metrics["x"])
        for r in client.search_runs([experiment.experiment_id])
    ) == [(name, "FINISHED", 1.0) for name in ("one", "three", "two")]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["mlflow.db"]
