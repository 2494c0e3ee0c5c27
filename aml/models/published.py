"""Read checkpoints that CARIS, MaskRIS and LAVT wrote as weights of `caris` and `lavt`.

    load_published(model, "refcoco.pth")

Names are those of github.com/lsa1997/CARIS (4b24546), naver-ai/maskris (01b54d5) and
yz93/LAVT-RIS (1da0af9). Each file is a torch.save of a dict: "model" holds the weights; LAVT
trained
with BERT beside it has those under "bert_model"; optimizer, lr_scheduler, scaler, epoch and args
(an
argparse.Namespace) are not used. Only plain data, tensors and that one class are ever unpickled.

MaskRIS has CARIS's network and a token that stands for masked patches in training; it is left out.
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
from aml.models.encoders.swin import TABLE, fitting, square, swin_name

MODEL_OF = {"CARIS": "caris", "MaskRIS": "caris", "LAVT": "lavt"}
"""Author's name of a checkpoint -> the model here that takes it."""

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

UNUSED = re.compile(
    # made anew, or never read
    r"relative_position_index$|attn_mask$|position_ids$|num_batches_tracked$|(^|\.)pooler\."
    # of the loss, of training, behind the last stage
    r"|^criterion\.|^backbone\.vis_encoder\.mask_token$|^backbone\.layers\.3\.res_gate\."
)
"""Entries of a file that the network does not compute with."""

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}

_CARIS_LAYER = {
    "words_read": "v2l_cross_attn",
    "words_mix": "lang_self_attn",
    "pixels_read": "l2v_cross_attn",
    "pixels_mix": "vis_self_attn",
    "words_scale": "gamma_v2l",
    "pixels_scale": "gamma_l2v",
    "words_feed.0": "lang_mlp.fc1",
    "words_feed.2": "lang_mlp.fc2",
    "pixels_feed.0": "vis_mlp.fc1",
    "pixels_feed.2": "vis_mlp.fc2",
    "words_norms.0": "l_norm1",
    "words_norms.1": "l_norm2",
    "words_norms.2": "l_norm3",
    "pixels_norms.0": "v_norm2",
    "pixels_norms.1": "v_norm1",
    "pixels_norms.2": "v_norm3",
}

_CARIS = {
    "visual.norms.": "backbone.vis_encoder.norm",
    "text.": "backbone.lang_encoder.",
    "prompts.inner.": "backbone.conditional_prompts.in_linears.",
    "prompts.outer.": "backbone.conditional_prompts.out_linears.",
    "prompts.learned": "backbone.conditional_prompts.lang_prompts.weight",
    "prompts.norm.": "backbone.conditional_prompts.lang_prompts_norm.",
    "decoder.level": "pixel_decoder.level_encoding.weight",
    "decoder.words.": "pixel_decoder.lang_in_linear.",
    "decoder.words_norm.": "pixel_decoder.lang_in_norm.",
    "decoder.background": "pixel_decoder.vis_prompts.weight",
    "decoder.pixels.": "pixel_decoder.mask_feature.",
    "decoder.queries.": "pixel_decoder.lang_embed.",
    **{
        f"decoder.enter.{i}.{j}.": f"pixel_decoder.input_convs.{i}.{part}."
        for i in range(3)
        for j, part in enumerate(("conv", "gn"))
    },
    **{
        f"decoder.side.{j}.": f"pixel_decoder.lateral_convs.0.{part}."
        for j, part in enumerate(("conv", "gn"))
    },
    **{
        f"decoder.merge.{j}.": f"pixel_decoder.output_convs.0.{part}."
        for j, part in enumerate(("conv", "gn"))
    },
}

_LAVT_FUSION = {
    "place": "vis_project.0",
    "query": "image_lang_att.f_query.0",
    "key": "image_lang_att.f_key.0",
    "value": "image_lang_att.f_value.0",
    "out": "image_lang_att.W.0",
    "mix": "project_mm.0",
}

_LAVT = {
    "visual.norms.": "backbone.norm",
    "text.": "text_encoder.",
    "decoder.head.": "classifier.conv1_1.",
    **{
        f"decoder.merge.{i}.{j}.": f"classifier.{part}_{4 - i}."
        for i in range(3)
        for j, part in ((0, "conv1"), (1, "bn1"), (3, "conv2"), (4, "bn2"))
    },
}


def caris_name(key: str) -> str:
    """Return what CARIS and MaskRIS call a parameter of `caris`."""
    if key.startswith("visual.body."):
        return "backbone.vis_encoder." + swin_name(key.removeprefix("visual.body."))
    if found := re.fullmatch(
        r"decoder\.layers\.(\d+)\.(\w+(?:\.\d)?)(?:\.(query|key|value|out))?(\..+)?", key
    ):
        layer, part, projection, rest = found.groups()
        middle = f".{_ATTENTION[projection]}" if projection else ""
        return f"pixel_decoder.encoder.{layer}.{_CARIS_LAYER[part]}{middle}{rest or ''}"
    return _by_prefix(key, _CARIS)


def lavt_name(key: str) -> str:
    """Return what LAVT calls a parameter of `lavt`; BERT's as where it is a part of the model."""
    if key.startswith("visual.body."):
        return "backbone." + swin_name(key.removeprefix("visual.body."))
    if found := re.fullmatch(r"fusion\.(\d)\.(\w+)\.(\w+)", key):
        return f"backbone.layers.{found[1]}.fusion.{_LAVT_FUSION[found[2]]}.{found[3]}"
    if found := re.fullmatch(r"gates\.(\d)\.(.+)", key):
        return f"backbone.layers.{found[1]}.res_gate.{found[2]}"
    return _by_prefix(key, _LAVT)


NAME = {"caris": caris_name, "lavt": lavt_name}


def _by_prefix(key: str, table: dict[str, str]) -> str:
    prefix = next(p for p in table if key.startswith(p))
    return table[prefix] + key.removeprefix(prefix)


def load_published(model: Any, path: str | Path) -> None:
    """Fill a model with the weights of a published checkpoint of its kind and size.

    Raises:
        UserError: See `convert`.
    """
    model.load_state_dict(convert(path, model))


def convert(path: str | Path, model: Any) -> dict[str, torch.Tensor]:
    """Return a published checkpoint as a state_dict of `model`, a `caris` or a `lavt`.

    Raises:
        UserError: Not such a file, one of another model, Swin windows of another size, or the first
            parameter that is missing, has another shape, or has no place in the model.
    """
    weights = read(path)
    kind = whose(weights, path)
    where = f"the {kind} weights {path}"
    if MODEL_OF[kind] != model.name:
        raise UserError(
            f"{where} are for model {MODEL_OF[kind]}, not {model.name}; set model.name to "
            f"{MODEL_OF[kind]}"
        )
    own = model.state_dict()
    if kind == "LAVT" and not any(key.endswith("running_mean") for key in own):
        raise UserError(
            f"{where} were trained with batch normalisation; set model.norm to batch_frozen to use "
            "its statistics"
        )
    state: dict[str, torch.Tensor] = {}
    name_of = NAME[model.name]
    for key, target in own.items():
        name = name_of(key)
        value = weights.pop(name, None)
        if (
            key.endswith(TABLE)
            and value is not None
            and value.shape != target.shape
            and value.shape[1:] == target.shape[1:]
            and square(value)
        ):
            window = (round(len(value) ** 0.5) + 1) // 2
            raise UserError(
                f"{where} were trained with windows of {window} places, but the model's have "
                f"{model.options.window}; set model.window"
            )
        if value is not None and value.squeeze().shape == target.squeeze().shape:
            value = value.reshape(target.shape)  # 1 x 1 convolutions are linear layers here
        state[key] = fitting(
            name,
            value,
            target,
            where,
            "use the sizes (visual, text, width, layers) it was trained with",
        )
    left = sorted(name for name in weights if not UNUSED.search(name))
    parts = {name_of(key).split(".")[0] for key in own}
    if other := [name for name in left if name.split(".")[0] not in parts]:
        raise UserError(
            f"{where} hold {other[0]} ({len(other)} such), a part that {kind} as published does "
            "not have; get the published file, or save one without these entries if the network "
            "does not compute with them"
        )
    if left:
        raise UserError(
            f"{where} hold {left[0]} ({len(left)} such), which the model has no place for; use the "
            "sizes it was trained with"
        )
    return state


def read(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a published checkpoint by name, LAVT's BERT under text_encoder.

    The weights lie under one of `WEIGHTS_UNDER`, or are the whole file.

    Raises:
        UserError: It is none, or names a foreign class.
    """
    file = _unpickled(path)
    known = file if isinstance(file, dict) else {}
    under = next((key for key in WEIGHTS_UNDER if isinstance(known.get(key), dict)), None)
    weights = known[under] if under else known
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(
            f"{path} holds no weights: neither a mapping of names to tensors nor one under "
            f"{', '.join(WEIGHTS_UNDER)}; give a .pth as the training of CARIS, MaskRIS or LAVT "
            "wrote it"
        )
    bert = known.get("bert_model") if under else None
    weights |= {f"text_encoder.{name}": value for name, value in (bert or {}).items()}
    return {str(name).removeprefix("module."): value for name, value in weights.items()}


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


def whose(weights: dict, path: str | Path = "the file") -> str:
    """Return CARIS, MaskRIS or LAVT by the names only one has; raise UserError for none."""
    if "pixel_decoder.vis_prompts.weight" in weights:
        return "MaskRIS" if "backbone.vis_encoder.mask_token" in weights else "CARIS"
    if "classifier.conv1_1.weight" in weights and any(
        ".image_lang_att." in name for name in weights
    ):
        return "LAVT"
    raise UserError(
        f"{path} is no checkpoint of {', '.join(MODEL_OF)}; those are the published ones that "
        "can be "
        "read"
    )
