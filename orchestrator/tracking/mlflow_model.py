"""A checkpoint as an MLflow pyfunc model."""

import hashlib
import importlib.util
import io
import re
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from aml.errors import UserError

ALIAS = "champion"

MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")

MODEL_NEEDS = (
    "mlflow",
    "torch",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "scipy",
    "safetensors",
)

BIG_MODEL_NEEDS = (
    "torchvision",
    "timm",
    "transformers",
)  # every model but the small one is built from these


def weights_digest(checkpoint: Path) -> str:
    weights = checkpoint / "model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"{checkpoint.name} holds no model.safetensors; a checkpoint folder was wanted, written by train or sweep"
        )
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _requirements(big: bool) -> list[str]:
    """What the champion needs, as the project's requirements.txt pins it, else as installed here."""
    listed = MODEL_CODE.parent.parent / "requirements.txt"
    lines = (
        [line.partition("#")[0].strip() for line in listed.read_text().splitlines()]
        if listed.is_file()
        else []
    )
    pins = {re.split(r"[\[<>=!~ ]", line)[0].lower(): line for line in lines if line}
    return [
        pins.get(name) or f"{name}=={metadata.version(name)}"
        for name in MODEL_NEEDS + (BIG_MODEL_NEEDS if big else ())
    ]


def _example():
    """One row of input, as the model's page in MLflow shows it: a grey square and an expression."""
    import pandas as pd
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(picture, format="PNG")
    return pd.DataFrame({"image": [picture.getvalue()], "expression": ["the left one"]})


def _save_model(target: Path, checkpoint: Path, config: dict, model) -> None:
    """Write an MLflow model folder: champion_model.py, the aml package, the checkpoint without its optimiser."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    signature = ModelSignature(
        Schema([ColSpec("binary", "image"), ColSpec("string", "expression")]),
        Schema([ColSpec("binary", "mask")]),
    )
    with tempfile.TemporaryDirectory() as scratch:
        lean = shutil.copytree(
            checkpoint, Path(scratch) / "checkpoint", ignore=shutil.ignore_patterns("state.pt")
        )
        mlflow.pyfunc.save_model(
            path=str(target),
            mlflow_model=model,
            python_model=str(MODEL_CODE),
            artifacts={"checkpoint": str(lean)},
            code_paths=[str(Path(importlib.util.find_spec("aml").origin).parent)],
            signature=signature,
            input_example=_example(),
            pip_requirements=_requirements(big=config.get("model", {}).get("name") != "small"),
            model_config={"device": "cpu"},
        )
