"""Kill a conversion to shards and continue it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aml.data import refer
from aml.errors import UserError
from aml.synthetic import refer_files
from orchestrator.data import shards
from orchestrator.storage import filesystem

pytestmark = pytest.mark.fault


def test_a_killed_conversion_is_gone_on_with(tmp_path):
    refer_files.generate_dataset(tmp_path, "refcoco", images=200, size=320, seed=0)
    start = (
        "import os, sys; os.cpu_count = lambda: 2; from orchestrator.cli import main; "
        "from orchestrator.data import convert; convert.ROWS_PER_FILE = 8; main(sys.argv[1:])"
    )
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        start,
        "shard",
        "--refer-root",
        str(tmp_path),
        "--images",
        str(tmp_path / "images"),
        "--out",
        str(out),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while killed.poll() is None and len(list(out.glob("*.parquet"))) < 5:
            time.sleep(0.02)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    there = {f: f.stat().st_mtime_ns for f in out.glob("*.parquet")}
    assert 5 <= len(there) < 25 and not (out / shards.COMPLETE_MARKER).exists()
    with pytest.raises(UserError, match="no complete shards"):
        shards.read_manifest(filesystem.Filesystem(out))
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "of 25 files are there already" in again.stdout
    assert {f: f.stat().st_mtime_ns for f in there} == there
    rows = refer.read_refer(tmp_path, tmp_path / "images", "refcoco", "unc")
    assert shards.verify_shards(filesystem.Filesystem(out))["images"] == len(rows)
