"""Run the command of the RayJob manifest here, as a dry run with the container's environment."""

import os
import shutil
import subprocess

import yaml

from tests.orchestrator.cluster.test_cluster_files import ROOT, printed, render
from tests.support.staging import BIN

COMMAND = "COMMAND=sweep experiments/quickstart.yaml resources.gpus_per_worker=0 --dry-run"


def test_the_command_of_the_manifest_plans_its_sweep_where_the_container_runs_it(bucket, tmp_path):
    """The folder has what the image copies; of Kubernetes there is nothing but the manifest.

    The bucket's server stands for S3, and nobody answers as MLflow: a dry run needs none.
    """
    endpoint = bucket.client.meta.endpoint_url
    values = (COMMAND, f"BUCKET={bucket.name}", f"S3_ENDPOINT={endpoint}", "REGION=us-east-1")
    (job,) = yaml.safe_load_all(render("kubernetes/rayjob.yaml", *values).stdout)
    (head,) = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    for name in ("aml", "orchestrator", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    given = {entry["name"]: entry["value"] for entry in head["env"]}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    here = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    assert shutil.which("python", path=here["PATH"]) == str(BIN / "python")
    # as Ray's job agent does: one line of the words, for a shell
    line = subprocess.list2cmdline(printed("bash", job["spec"]["entrypoint"]))
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=tmp_path,
        env=clean | given | here,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"quickstart: results go to s3://{bucket.name}/amlris" in done.stdout, done.stdout
    assert "15 trials of 5 epochs" in done.stdout and "nothing was started" in done.stdout
    assert bucket.client.list_objects_v2(Bucket=bucket.name)["KeyCount"] == 0
