"""Log a checkpoint as an MLflow pyfunc model and register it."""

import hashlib
import io
import json
import re
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aml.errors import UserError
from orchestrator.tracking.mlflow_server import ExperimentConnection
from orchestrator.tracking.queue import Operation

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import LoggedModel
    from mlflow.models import Model

ALIAS = "champion"
"""Alias of the registered model version that was registered last."""

MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")
"""File that MLflow copies into the logged model and executes to load one."""

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
"""The project's pinned dependencies; absent where the project is installed as a wheel."""

MODEL_NEEDS = (
    "mlflow",
    "torch",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "scipy",
    "safetensors",
)
"""Packages that loading any logged model needs."""

BIG_MODEL_NEEDS = ("torchvision", "timm", "transformers")
"""Packages that every model but the small one needs in addition."""


class ModelRegistry:
    """Log checkpoints as models of MLflow runs and register them.

    Only MlflowClient is called: MLflow's fluent functions use the process's own tracking address.
    Every method may raise whatever MLflow raises.
    """

    def __init__(self, connection: ExperimentConnection):
        self._connection = connection
        self._logged: dict[tuple[str, str], LoggedModel] = {}
        """Logged model by run id and digest: a failing registry must not repeat the upload."""

    def register(self, run_id: str, operation: Operation) -> None:
        """Point the alias `champion` at a version with the checkpoint of a "model" operation.

        A version with the same weights that the run registered before is used again.
        """
        client = self._connection.client
        name = operation["name"]
        checkpoint = Path(operation["path"])
        digest = weights_digest(checkpoint)
        known = [
            version
            for version in client.search_model_versions(f"name = '{name}'")
            if version.run_id == run_id and version.tags.get("amlris.weights") == digest
        ]
        if known:
            number = known[0].version
        else:
            number = self._create_version(run_id, operation, checkpoint, digest)
        client.set_registered_model_alias(name, ALIAS, number)

    def _create_version(
        self, run_id: str, operation: Operation, checkpoint: Path, digest: str
    ) -> str:
        """Log the model with its metrics and create a model version; return its number."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        client = self._connection.client
        config = json.loads((checkpoint / "config.json").read_text())
        about = {
            name: str(config[name])
            for name in ("dataset", "run", "trial", "epoch")
            if name in config
        }
        step = int(config.get("epoch") or 0)
        if (run_id, digest) not in self._logged:
            self._logged[run_id, digest] = self._upload(
                run_id, operation["name"], checkpoint, config, about, step
            )
        logged = self._logged[run_id, digest]
        if operation["metrics"]:
            rows = [
                Metric(name, value, operation["t"], step, model_id=logged.model_id)
                for name, value in operation["metrics"].items()
            ]
            client.log_batch(run_id, metrics=rows)
        try:
            client.create_registered_model(operation["name"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # The plain location, since the SQL registry resolves a models:/ source with the process's
        # own tracking address.
        created = client.create_model_version(
            operation["name"],
            logged.artifact_location,
            run_id,
            {"amlris.weights": digest, **about},
            model_id=logged.model_id,
        )
        return created.version

    def _upload(
        self,
        run_id: str,
        name: str,
        checkpoint: Path,
        config: dict[str, Any],
        about: dict[str, str],
        step: int,
    ) -> "LoggedModel":
        """Create a logged model and upload its files.

        Args:
            run_id: MLflow run that the model is an output of.
            name: Name of the model.
            checkpoint: Checkpoint folder.
            config: Content of the checkpoint's config.json.
            about: Params of the logged model: data set, run, trial and epoch, where known.
            step: Epoch of the checkpoint.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        client = self._connection.client
        created = client.create_logged_model(
            self._connection.experiment_id,
            name,
            run_id,
            params=about,
            model_type="segmentation",
        )
        description = Model(
            artifact_path=created.artifact_location,
            metadata=about,
            run_id=run_id,
            model_uuid=created.model_id,
            model_id=created.model_id,
        )
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "model"
            _save_model(target, checkpoint, config, description)
            client.log_model_artifacts(created.model_id, str(target))
        client.finalize_logged_model(created.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(created.model_id, step)])
        return created


def weights_digest(checkpoint: Path) -> str:
    """Return the first 32 hex digits of the SHA-256 of a checkpoint's weights.

    Raises:
        UserError: The folder is not a checkpoint.
    """
    weights = checkpoint / "model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"{checkpoint.name} holds no model.safetensors; a checkpoint folder was wanted, "
            "written by train or sweep"
        )
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _requirements(big: bool) -> list[str]:
    """Return requirement lines of a logged model.

    In a checkout the project's requirements.txt pins them; where the project is installed, the
    versions in use are taken, as a requirements.txt beside installed packages is another project's.

    Args:
        big: Whether the model is another one than the small one.
    """
    lines = []
    if REQUIREMENTS.is_file() and REQUIREMENTS.with_name("pyproject.toml").is_file():
        lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    pins = {re.split(r"[\[<>=!~ ]", line)[0].lower(): line for line in lines if line}
    return [
        pins.get(name) or f"{name}=={metadata.version(name)}"
        for name in MODEL_NEEDS + (BIG_MODEL_NEEDS if big else ())
    ]


def _example() -> "pd.DataFrame":
    """Return an input row for the model's page in MLflow: a grey square and an expression."""
    import pandas as pd
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(picture, format="PNG")
    return pd.DataFrame({"image": [picture.getvalue()], "expression": ["the left one"]})


def _save_model(
    target: Path, checkpoint: Path, config: dict[str, Any], description: "Model"
) -> None:
    """Write an MLflow model folder.

    The folder holds pyfunc_model.py, the package aml and the checkpoint without its optimizer.

    Args:
        target: Folder to write, which does not exist yet.
        checkpoint: Checkpoint folder.
        config: Content of the checkpoint's config.json.
        description: MLflow's description of the model, with its ids.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    import aml

    signature = ModelSignature(
        Schema([ColSpec("binary", "image"), ColSpec("string", "expression")]),
        Schema([ColSpec("binary", "mask")]),
    )
    with tempfile.TemporaryDirectory() as scratch:
        without_optimizer = shutil.copytree(
            checkpoint, Path(scratch) / "checkpoint", ignore=shutil.ignore_patterns("state.pt")
        )
        mlflow.pyfunc.save_model(
            path=str(target),
            mlflow_model=description,
            python_model=str(MODEL_CODE),
            artifacts={"checkpoint": str(without_optimizer)},
            code_paths=[str(Path(aml.__file__).parent)],
            signature=signature,
            input_example=_example(),
            pip_requirements=_requirements(big=config.get("model", {}).get("name") != "small"),
            model_config={"device": "cpu"},
        )
