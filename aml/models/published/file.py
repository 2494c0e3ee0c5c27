"""Read the weights of a checkpoint that CARIS, MaskRIS or LAVT wrote, and tell whose it is.

Each file is a torch.save of a dict: "model" holds the weights; LAVT trained with BERT beside it has
those under "bert_model"; optimizer, lr_scheduler, scaler, epoch and args (an argparse.Namespace)
are not used. Only plain data, tensors and `PLAIN_CLASSES` are ever unpickled.
"""

import argparse
import pathlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aml.errors import UserError
from aml.models.encoders.pretrained import one_line
from aml.reading import describe

MODEL_OF = {"CARIS": "caris", "MaskRIS": "caris", "LAVT": "lavt"}
"""Author's name of a checkpoint -> the model here that takes it."""

SHOWN = 3
"""Names of a foreign file that a message repeats."""

WEIGHTS_UNDER = ("model", "state_dict", "model_state_dict")
"""Keys of a file one of which holds the weights, where the file is not the weights alone."""

_SCALAR: Any = np.float64(0).__reduce__()[0]

PLAIN_CLASSES: list[Any] = [
    argparse.Namespace,
    # numpy's numbers, under the names that either version of numpy writes
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
    *(np.dtype, *(type(np.dtype(code)) for code in "?bhilBHILefd")),
    *(pathlib.PosixPath, (pathlib.PurePath, "pathlib.WindowsPath")),
]
"""Classes beside plain data and tensors that may stand in a file, none of which runs anything."""


def read(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a published checkpoint by name, LAVT's BERT under text_encoder.

    The weights lie under one of `WEIGHTS_UNDER`, or are the whole file.

    Raises:
        UserError: It is none, or names a foreign class.
    """
    file = _unpickled(path)
    model = _weights_in(file)
    if not model:
        held = ", ".join(map(describe, list(file)[:SHOWN])) if isinstance(file, dict) else ""
        raise UserError(
            f"{path} holds no weights: tensors by name were looked for under "
            f"{', '.join(map(repr, WEIGHTS_UNDER))} and at the top, and {held or describe(file)} "
            "was found; give a .pth as the training of CARIS, MaskRIS or LAVT wrote it"
        )
    bert = {f"text_encoder.{name}": value for name, value in (file.get("bert_model") or {}).items()}
    return {name.removeprefix("module."): value for name, value in (model | bert).items()}


def _unpickled(path: str | Path) -> Any:
    """Return what a file of torch.save holds, of plain data, tensors and `PLAIN_CLASSES` alone."""
    begins = b""
    try:
        with open(path, "rb") as stream:
            begins = stream.read(200).lstrip().lower()
        with torch.serialization.safe_globals(PLAIN_CLASSES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # a damaged or foreign file raises UnpicklingError, RuntimeError, EOFError, OSError ...
        if begins.startswith((b"<!doctype", b"<html", b"<?xml")):
            raise UserError(
                f"{path} is a web page, not a checkpoint: the download gave a page instead of the "
                "file; download the .pth itself"
            ) from None
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise UserError(
                f"{path} names {foreign[1]}, which no published checkpoint holds; nothing of it "
                "was run, get it from its source"
            ) from None
        # torch words what it cannot unpickle as advice to load it unsafely
        why = "it is no file of torch.save, or damaged"
        if isinstance(error, OSError):
            why = one_line(error)
        raise UserError(
            f"{path} cannot be read ({why}); get the .pth again, or give a checkpoint folder"
        ) from None


def _weights_in(file: Any) -> dict[str, torch.Tensor]:
    """Return the tensors by name that a file holds, under one of WEIGHTS_UNDER or at the top."""
    if not isinstance(file, dict):
        return {}
    for found in (*(file.get(place) for place in WEIGHTS_UNDER), file):
        is_named = isinstance(found, dict) and all(isinstance(name, str) for name in found)
        if found and is_named and all(isinstance(v, torch.Tensor) for v in found.values()):
            return found
    return {}


def whose(weights: dict, path: str | Path = "the file") -> str:
    """Return CARIS, MaskRIS or LAVT by the names only one has; raise UserError for none."""
    if "pixel_decoder.vis_prompts.weight" in weights:
        return "MaskRIS" if "backbone.vis_encoder.mask_token" in weights else "CARIS"
    if "classifier.conv1_1.weight" in weights and any(
        ".image_lang_att." in name for name in weights
    ):
        return "LAVT"
    held = ", ".join(map(describe, list(weights)[:SHOWN]))
    more = ", ..." if len(weights) > SHOWN else ""
    raise UserError(
        f"{path} is no checkpoint of {', '.join(MODEL_OF)}, the published ones that can be read: "
        "pixel_decoder.vis_prompts.weight (CARIS, MaskRIS) or classifier.conv1_1.weight with "
        f"*.image_lang_att.* (LAVT) was looked for, and {held}{more} ({len(weights)} in all) was "
        "found; give one of theirs, or a checkpoint folder"
    )
