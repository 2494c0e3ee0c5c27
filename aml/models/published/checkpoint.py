"""Read checkpoints that CARIS, MaskRIS and LAVT wrote as weights of `caris` and `lavt`.

    load_published(model, "refcoco.pth")

MaskRIS has CARIS's network and a token that stands for masked patches in training; it is left out.
"""

import re
from pathlib import Path
from typing import Any

import torch

from aml.errors import UserError
from aml.models.decoders.caris import POINTS
from aml.models.encoders.pretrained import one_line
from aml.models.encoders.swin import TABLE, fitting, square
from aml.models.published.file import MODEL_OF, read, whose
from aml.models.published.names import CARIS_TEXT, NAME, UNUSED
from aml.models.registry import build_model

SIDES = {"CARIS": 448, "MaskRIS": 448, "LAVT": 480}
"""Side of the pictures in pixels that each was trained and published with."""

TOKENIZER = "bert-base-uncased"
"""The BERT that all of them read sentences with."""

SWIN_OF: dict[tuple[int, tuple[int, ...]], str] = {
    (16, (1, 2, 1, 1)): "swin_test",
    (96, (2, 2, 6, 2)): "swin_tiny",
    (96, (2, 2, 18, 2)): "swin_small",
    (128, (2, 2, 18, 2)): "swin_base",
}
"""Width of the first stage and blocks of the four -> the name of that Swin."""

LEVELS = 3
"""Maps that CARIS's pixel decoder attends to."""


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


def open_published(path: str | Path, tokenizer: str | None = None) -> tuple[Any, dict[str, Any]]:
    """Return the model that a published checkpoint is of, filled, and how pictures are given to it.

    Which model, and its sizes, are read off the names and shapes of the weights. The file holds
    BERT's weights, but not its tokenizer.

    Args:
        path: The .pth file.
        tokenizer: A hub name or folder with BERT's tokenizer; None is TOKENIZER.

    Returns:
        The model, and image_size, fit, threshold and what else its checkpoint says.

    Raises:
        UserError: No such file, weights that are missing, or a tokenizer that cannot be had.
    """
    weights = read(path)
    kind = whose(weights, path)
    sizes = _Shapes(weights, f"the {kind} weights {path}")
    bert = _bert_config(sizes, "text_encoder." if kind == "LAVT" else CARIS_TEXT)
    model = build_model(
        MODEL_OF[kind],
        vocabulary=[],
        assets={"bert": bert, "tokenizer": published_tokenizer(tokenizer or TOKENIZER, path)},
        pretrained=False,
        text=TOKENIZER,
        max_tokens=min(20, bert["max_position_embeddings"]),
        **_sizes_of(sizes, kind),
    )
    load_published(model, path)
    about = {"image_size": SIDES[kind], "fit": "square", "threshold": 0.5}
    return model, about | {"arm": f"published {kind}", "selected_by": "published"}


class _Shapes:
    """Shapes of a file's weights; a name that is missing ends in one sentence."""

    def __init__(self, weights: dict[str, torch.Tensor], where: str):
        self.weights = weights
        self.where = where

    def __call__(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight."""
        if name not in self.weights:
            raise UserError(f"{self.where} hold no {name}; get the file again")
        return tuple(self.weights[name].shape)

    def count(self, prefix: str) -> int:
        """Return how many numbered parts follow a prefix: one more than the largest number."""
        pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
        numbers = [int(found[1]) for name in self.weights if (found := pattern.match(name))]
        return max(numbers, default=-1) + 1


def _bert_config(sizes: _Shapes, prefix: str) -> dict[str, Any]:
    """Return the configuration of a file's BERT; its heads are 64 wide, as BERT's always are."""
    words, width = sizes(f"{prefix}embeddings.word_embeddings.weight")
    return {
        "vocab_size": words,
        "hidden_size": width,
        "num_hidden_layers": sizes.count(f"{prefix}encoder.layer."),
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": sizes(f"{prefix}encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": sizes(f"{prefix}embeddings.position_embeddings.weight")[0],
    }


def _sizes_of(sizes: _Shapes, kind: str) -> dict[str, Any]:
    """Return the options of a model that its weights tell."""
    swin = "backbone." if kind == "LAVT" else "backbone.vis_encoder."
    width = sizes(f"{swin}patch_embed.proj.weight")[0]
    depths = tuple(sizes.count(f"{swin}layers.{stage}.blocks.") for stage in range(4))
    if (width, depths) not in SWIN_OF:
        raise UserError(
            f"{sizes.where} have a Swin of width {width} and {depths} blocks, which is none of "
            f"{', '.join(SWIN_OF.values())}; give a checkpoint with one of them"
        )
    places = sizes(f"{swin}layers.0.blocks.0.attn.{TABLE}")[0]
    found = {"backbone": SWIN_OF[width, depths], "window": (round(places**0.5) + 1) // 2}
    if kind == "LAVT":
        return found | {"norm": "batch_frozen"}
    layer = "pixel_decoder.encoder.0."
    weights = sizes(f"{layer}vis_self_attn.attention_weights.weight")[0]
    return found | {
        "width": sizes("pixel_decoder.vis_prompts.weight")[1],
        "inner": sizes(f"{layer}lang_mlp.fc1.weight")[0],
        "layers": sizes.count("pixel_decoder.encoder."),
        "heads": max(1, weights // (LEVELS * POINTS)),
    }


def published_tokenizer(name: str, path: str | Path) -> str:
    """Return BERT's tokenizer as the text that the assets of such a model hold.

    Args:
        name: A hub name or folder.
        path: The file whose model it is for, for the message.

    Raises:
        UserError: It cannot be had.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name).backend_tokenizer
    except Exception as error:  # hub, network and file libraries each raise their own
        raise UserError(
            f"{path} holds no tokenizer, and that of {name} cannot be had ({one_line(error)}); "
            "give a folder with BERT's tokenizer as --tokenizer"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.to_str()
