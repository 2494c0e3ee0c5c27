"""Settings that a checkpoint keeps beside its weights, checked by the schema of the experiment."""

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, field_validator, model_validator

from aml.errors import Unreadable, UserError
from aml.models import MODELS, resolved
from aml.reading import read_json
from aml.schema import Fit, Settings, Side, Threshold, Whole, leaf, shown

CONFIG, ASSETS = "config.json", "assets.json"

LARGEST_JSON = 2**28
"""Bytes; a tokenizer's vocabulary takes some millions."""


class CheckpointConfig(Settings):
    """Holds what a checkpoint must say to be used; whoever saves one may add to it."""

    model_config = ConfigDict(extra="allow")

    model: dict[str, Any] = leaf("The model: its name, and its options.")
    vocabulary: list[str] = leaf("Words of the data set, in the order of their tokens.")
    image_size: Side = leaf("Side of the network image.", unit="pixels")
    fit: Fit = leaf("How a picture becomes square.")
    threshold: Threshold = leaf(
        "From which probability on a pixel is the referent's.", unit="share"
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = leaf("Arithmetic of the training.", None)
    epoch: Whole | None = leaf("Finished epochs.", None, unit="epochs")

    @field_validator("model")
    @classmethod
    def _check_model(cls, given: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(given.get("name"), str):
            raise UserError(f"model.name is {shown(given.get('name'))}; it must name a model")
        return resolved(given)

    @model_validator(mode="after")
    def _check_together(self):
        options = MODELS.get(self.model["name"])
        if options and not options.of_parts:  # parts are known when the model is built
            check_side(self.image_size, options.name, options.image_multiple)
        return self


def check_side(side: int, model: str, multiple: int) -> None:
    """Refuse a side of the network image, in pixels, that a model cannot take."""
    if side % multiple:
        raise UserError(f"image_size is {side}, but model {model} needs a multiple of {multiple}")


def read_checkpoint_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a checkpoint folder, checked; raise UserError where there is none."""
    path = Path(folder) / CONFIG
    try:
        config = read_json(path, limit=LARGEST_JSON, nan=True)
    except Unreadable as error:
        raise UserError(
            f"{folder} is not a checkpoint folder ({error}); give one that training wrote, as "
            ".../best"
        ) from None
    try:
        if not isinstance(config, dict):
            raise UserError(f"it is {shown(config)}; it must be a mapping")
        CheckpointConfig(**config)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}; use another checkpoint") from None
    return config


def read_assets(folder: Path) -> dict[str, Any] | None:
    """Return assets.json of a checkpoint folder; None where it has none."""
    path = Path(folder) / ASSETS
    if not path.exists():
        return None
    assets = read_json(path, limit=LARGEST_JSON)
    if not isinstance(assets, dict):
        raise UserError(f"{path} is {shown(assets)}; it must be a mapping: use another checkpoint")
    return assets
