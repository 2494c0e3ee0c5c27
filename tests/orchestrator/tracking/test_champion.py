"""Test the logged MLflow model.

It loads by its alias, needs no project, and pins its requirements.
"""

import io
import json
import os
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.tracking import mlflow_model
from orchestrator.tracking.mlflow_server import tracking_uri
from orchestrator.tracking.mlflow_tracker import Tracker
from tests.orchestrator.tracking.test_tracking import RUN
from tests.support.stores import mlflow_client


@pytest.fixture(autouse=True)
def no_address_from_outside(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


class BrightSegmenter:
    """Stand in for Segmenter: the referent is what is brighter than the checkpoint's threshold.

    An empty expression finds nothing.
    """

    @classmethod
    def load(cls, folder, device="cpu"):
        self = cls()
        assert device == "cpu" and not (Path(folder) / "state.pt").exists()
        self.threshold = json.loads((Path(folder) / "config.json").read_text())["threshold"]
        return self

    def segment(self, image, sentence):
        assert image.dtype == np.uint8 and image.ndim == 3
        return image.max(axis=2).astype(np.float32) / 255 * bool(sentence)


def encoded(pixels, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind)
    return out.getvalue()


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "state.pt").write_bytes(b"optimiser")
    (folder / "config.json").write_text(
        json.dumps({"model": {"name": "small"}, "threshold": 0.5, "trial": "t0", "epoch": 8})
    )
    return folder


def test_the_champion_is_loaded_by_its_alias_and_predicts(root, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "aml.inference", types.SimpleNamespace(Segmenter=BrightSegmenter)
    )
    monkeypatch.chdir(tmp_path)
    before = os.environ.get("MLFLOW_TRACKING_URI"), list(sys.path)
    t = Tracker(tmp_path / RUN, None, "champion", root)
    t.run("parent", "quick")
    t.model("parent", checkpoint, "quick", {"val/mIoU": 0.25})
    t.model("parent", checkpoint, "quick")  # the same weights again, as after a crash
    assert t.flush(60) == 0 and t.rejected == 0
    import mlflow
    import pandas as pd

    api = mlflow_client(root)
    assert (os.environ.get("MLFLOW_TRACKING_URI"), list(sys.path)) == before
    # MLflow made no store of its own choosing.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", RUN]
    version = api.get_model_version_by_alias("quick", "champion")
    assert (int(version.version), version.run_id) == (1, t.record("parent")["run_id"])
    assert len(api.search_model_versions("name = 'quick'")) == 1
    monkeypatch.setattr(sys, "path", list(sys.path))
    mlflow.set_tracking_uri(tracking_uri(None, root))
    try:
        model = mlflow.pyfunc.load_model("models:/quick@champion")
    finally:
        mlflow.set_tracking_uri(None)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    image = np.zeros((20, 30, 3), np.uint8)
    image[5:10, 6:12] = 255
    table = pd.DataFrame(
        {
            "image": [encoded(image), encoded(image, "JPEG"), encoded(image)],
            "expression": ["box", "box", ""],
        }
    )
    masks = [np.array(Image.open(io.BytesIO(mask))) for mask in model.predict(table)["mask"]]
    expected = image[:, :, 0]
    assert (
        np.array_equal(masks[0], expected)
        and (masks[1] != expected).mean() < 0.1
        and not masks[2].any()
    )
    with pytest.raises(Exception, match="row 1: the image cannot be read"):
        model.predict(
            pd.DataFrame({"image": [encoded(image), b"no image"], "expression": ["a", "b"]})
        )

    assert [c.name for c in model.metadata.get_input_schema()] == ["image", "expression"]
    logged = api.get_logged_model(model.metadata.model_id)
    assert {m.key: m.value for m in logged.metrics} == {"val/mIoU": 0.25} and logged.params[
        "trial"
    ] == "t0"
    assert t.close() == ""


def test_a_second_champion_takes_the_alias_over_and_a_missing_one_is_refused(
    root, tmp_path, checkpoint, monkeypatch
):
    monkeypatch.setitem(
        sys.modules, "aml.inference", types.SimpleNamespace(Segmenter=BrightSegmenter)
    )
    t = Tracker(tmp_path / RUN, None, "champions", root)
    t.run("parent", "quick")
    t.model("parent", checkpoint, "second")
    assert t.flush(60) == 0
    (checkpoint / "model.safetensors").write_bytes(b"better weights")
    t.model("parent", checkpoint, "second")
    t.model("parent", tmp_path, "second")
    assert t.flush(60) == 0 and t.rejected == 1
    assert int(mlflow_client(root).get_model_version_by_alias("second", "champion").version) == 2
    t.close()


def test_requirements_are_pinned_ones():
    small = mlflow_model._requirements(big=False)
    big = mlflow_model._requirements(big=True)
    assert {"torch", "safetensors", "numpy", "pillow", "mlflow"} <= {
        line.split("=")[0].split(">")[0] for line in small
    }
    assert any(line.startswith("transformers") for line in big)
    assert all("=" in line and "#" not in line for line in big)
    assert mlflow_model.REQUIREMENTS.is_file()


def test_requirements_without_the_list_of_the_project_are_those_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(mlflow_model, "REQUIREMENTS", tmp_path / "absent.txt")
    assert f"torch=={metadata.version('torch')}" in mlflow_model._requirements(big=False)


def test_a_trained_champion_is_loaded_where_the_project_is_not(root, tmp_path):
    """A new process in another folder needs the MLflow store alone and returns the same mask."""
    import torch

    from aml.inference.segmenter import Segmenter
    from aml.models.registry import build_model
    from aml.training.checkpoint import save_checkpoint

    torch.manual_seed(0)
    save_checkpoint(
        tmp_path / "last",
        build_model("small", vocabulary=["left", "box"]),
        {"image_size": 64, "fit": "square", "threshold": 0.5},
    )
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    segmenter = Segmenter.load(tmp_path / "last")
    probability = segmenter.segment(pixels, "left box")
    # An untrained model is unsure: a threshold at its median gives pixels of both kinds.
    middle = float(np.median(probability))
    save_checkpoint(
        tmp_path / "last",
        segmenter.model,
        {"image_size": 64, "fit": "square", "threshold": middle},
    )
    t = Tracker(tmp_path / RUN, None, "trained", root)
    t.run("parent", "quick")
    t.model("parent", tmp_path / "last", "trained")
    assert t.flush(60) == 0 and t.rejected == 0 and t.close() == ""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "image.png").write_bytes(encoded(pixels))
    code = (
        "import mlflow, pandas as pd, pathlib\n"
        "model = mlflow.pyfunc.load_model('models:/trained@champion')\n"
        "image = pathlib.Path('image.png').read_bytes()\n"
        "row = pd.DataFrame({'image': [image], 'expression': ['left box']})\n"
        "pathlib.Path('mask.png').write_bytes(model.predict(row)['mask'][0])\n"
        "import aml, orchestrator_is_absent\n"
    )
    (elsewhere / "orchestrator_is_absent.py").write_text(
        "import importlib.util\nassert importlib.util.find_spec('orchestrator') is None\n"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri(None, root)}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    same = (np.array(Image.open(elsewhere / "mask.png")) > 0) == (probability >= middle)
    # The other process may use more threads, which add in another order, so pixels at the
    # threshold may differ.
    sure = abs(probability - middle) > 1e-5
    assert same[sure].all() and sure.mean() > 0.99
