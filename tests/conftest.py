"""Provide fixtures shared by the tests.

They are generated scenes with their rows, blocks and items, a quickly trained model, and real data
if there are any.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from aml.data import dataset, decode, refer, refer_counts
from aml.models.registry import build_model
from aml.synthetic import refer_files
from tests.support import fuzzing  # noqa: F401 (sets hypothesis' profile)
from tests.support.hearing import stop_hearing
from tests.support.stores import save_model, write_store

torch.set_num_threads(1)
# Ray's default of 30 s for a node to start is too short on a busy machine.
os.environ["RAY_raylet_start_wait_time_s"] = "120"  # noqa: SIM112 (Ray's own spelling)
# Tests must not write to the results, cluster or tracking server of the person who runs them.
for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "AMLRIS_HOME"):
    os.environ.pop(name, None)
SIZE = 64
"""Side of the network image in pixels."""

MINUTES = float(os.environ.get("AMLRIS_TEST_MINUTES", "inf"))
"""Minutes after which tests that have not begun are skipped."""
BEGUN = time.monotonic()


def pytest_runtest_setup(item):
    if time.monotonic() - BEGUN > 60 * MINUTES:
        pytest.skip(f"no time left: AMLRIS_TEST_MINUTES is {MINUTES:g}")


@pytest.fixture(autouse=True)
def remove_message_handlers():
    yield
    stop_hearing()


def pytest_exception_interact(node, report):
    """Print a failure when it happens, because a run that is cut off prints no summary."""
    terminal = node.config.pluginmanager.get_plugin("terminalreporter")
    if terminal and getattr(report, "failed", False):
        terminal.write_line(f"\n{report.nodeid}: {report.longreprtext[-4000:]}")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder with mini_refer and coco128."""
    folder = Path(
        os.environ.get("AMLRIS_REAL_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")
    )
    if not (folder / "mini_refer").is_dir():
        pytest.skip(
            f"no real data at {folder}: "
            "set AMLRIS_REAL_DATA to a folder with mini_refer and coco128"
        )
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Return 40 generated RefCOCO pictures of 64 px with 76 train refs and 30 val sentences."""
    out = tmp_path_factory.mktemp("scenes")
    refer_files.generate_dataset(out, "refcoco", images=40, size=SIZE, seed=0, workers=1)
    return out


@pytest.fixture(scope="session")
def rows(scenes) -> list[dict]:
    return refer.read_refer(scenes, scenes / "images", "refcoco", "unc")


@pytest.fixture(scope="session")
def blocks(rows) -> list[dict]:
    """Return the rows decoded at network size, in two blocks."""
    decoded = [
        decode.decode_row(row | {"jpeg": Path(row["path"]).read_bytes()}, SIZE) for row in rows
    ]
    return [decode.rows_of_block(decoded[:17]), decode.rows_of_block(decoded[17:])]


@pytest.fixture(scope="session")
def items(blocks) -> dict[str, dataset.Items]:
    """Return items of two splits: train has one for each ref, val one for each sentence."""
    return {
        "train": dataset.Items(blocks, "train", size=SIZE),
        "val": dataset.Items(blocks, "val", size=SIZE, unit="sentence"),
    }


@pytest.fixture(scope="session", name="data")
def stored(tmp_path_factory):
    """Return 24 generated pictures with their rows, a store of them and a checkpoint."""
    root = tmp_path_factory.mktemp("data")
    refer_files.generate_dataset(root, "refcoco", images=24, size=64, seed=3, workers=1)
    rows = refer.read_refer(root, root / "images", "refcoco", "unc")
    store = write_store(root / "shards", rows)
    return SimpleNamespace(
        root=root,
        rows=rows,
        store=store,
        checkpoint=save_model(root / "checkpoint", refer_counts.vocabulary(rows)),
    )


@pytest.fixture(scope="session")
def make_model(rows):
    """Return make_model(seed=0, **options), which builds a small model.

    The model is narrow enough for training steps of a few milliseconds.
    """
    vocabulary = refer_counts.vocabulary(rows)

    def make(seed: int = 0, **options):
        torch.manual_seed(seed)
        return build_model(
            "small", vocabulary=vocabulary, **{"width": 32, "stem": 16, "heads": 2, **options}
        )

    return make


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Return a storage root whose SQLite store is made once for all tests.

    Each test has experiments of its own.
    """
    from orchestrator.tracking.mlflow_tracker import Tracker

    path = tmp_path_factory.mktemp("root")
    tracker = Tracker(path / "first", None, "first", path)
    assert tracker.ready(120)
    assert tracker.close() == ""
    return path


@pytest.fixture(scope="session")
def ray_session():
    """Return a function that runs a command and returns its exit code and printed text.

    Commands run in this process, on one Ray for the whole session.
    """
    import contextlib
    import io

    import ray

    from orchestrator.cli.app import main
    from orchestrator.cluster import session

    # Ray's workers inherit these keys. The local S3 server of the tests accepts any.
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ.setdefault(name, "testing")
    session.init_ray()

    def command(arguments: list[str]) -> tuple[int, str]:
        out = io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
            pytest.raises(SystemExit) as left,
        ):
            main(arguments)
        return left.value.code, out.getvalue()

    yield command
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server():
    """Yield a client of a running S3 server, and the query that leads an address to it."""
    pytest.importorskip("moto.server", reason="moto is not installed: install requirements-dev.txt")
    from tests.support import s3

    before = {name: os.environ.get(name) for name in s3.KEYS}
    os.environ.update(s3.KEYS)
    running, client, query = s3.serve()
    yield client, query
    running.stop()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """Return an empty bucket that no other test uses."""
    from tests.support import s3

    for name, value in s3.KEYS.items():
        monkeypatch.setenv(name, value)
    client, query = s3_server
    name = f"amlris-{len(client.list_buckets()['Buckets'])}"
    client.create_bucket(Bucket=name)
    return s3.Bucket(client, name, query)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
