"""SigLIP's two towers as transformers ships them, SigLIP 2 among them.

Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023; Tschannen et al., SigLIP 2, 2025.
Checkpoints of one size of picture are of type siglip, those of any size (NaFlex) of type siglip2.
Here both read images of any size, with places interpolated.

Both towers end in a space in which pictures and sentences were compared: the text tower by a
linear layer on the state of its last place, the vision tower by a head whose one query attends to
all patches. Alignment needs a patch, not the picture: the head is applied to each patch alone, as
if it were the only one, so that its attention weight is 1.

    B samples, C width, h w patches, L tokens
"""

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from aml.errors import UserError
from aml.models.encoders.clip_text import config_assets
from aml.models.encoders.pretrained import fetched, quiet_transformers, read_weights
from aml.models.encoders.visible import visible_tokens
from aml.models.options.compose import PRETRAINED, RANDOM

KINDS = ("siglip", "siglip2")
"""transformers' types of a model with both towers; that of a tower has _text_model or
_vision_model behind it."""

STATISTICS = [0.5] * 3
"""Mean and spread, in [0, 1], of each channel of the pictures that it takes."""

INSTEAD = "the name of a timm backbone"


def is_siglip(model_type: str, tower: str) -> bool:
    """Return whether a type is one of SigLIP, or of its tower "text" or "vision"."""
    return model_type in (*KINDS, *(f"{kind}_{tower}_model" for kind in KINDS))


def names_tower(backbone: str) -> bool:
    """Return whether a backbone is named as transformers names models: a folder, or OWNER/NAME."""
    is_hub_name = backbone.count("/") == 1 and ":" not in backbone
    return is_hub_name or Path(backbone).expanduser().is_dir()


class VisionTower(nn.Module):
    """Vision tower that gives maps of a third, two thirds and all of its layers, the last normed.

    The head stays as it is: no mask needs it.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        model.head.requires_grad_(False)
        count = len(model.encoder.layers)
        self.read_after = (count // 3 - 1, 2 * count // 3 - 1, count - 1)
        self.patch: int = model.config.patch_size
        self.width: int = model.config.hidden_size

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Return three maps (B, C, h, w) of images (B, 3, H, W).

        With `visible`, (B, H, W) bool, the visible patches alone are read, and maps are zero
        elsewhere.
        """
        grid = tuple(side // self.patch for side in x.shape[2:])
        states, bias, seen = self._embedded(x, grid), None, None
        found: list[torch.Tensor] = []
        if visible is not None:
            seen = visible_tokens(visible, self.patch, prefix=0)
            states = seen.gather(states)
            bias = seen.bias(states)
        for i, layer in enumerate(self.model.encoder.layers):
            states = layer(states, attention_mask=bias)
            if i in self.read_after:
                found.append(states)
        found[-1] = self.model.post_layernorm(found[-1])
        if seen is not None:
            found = [seen.spread(state) for state in found]
        return [state.mT.unflatten(2, grid) for state in found]

    def _embedded(self, x: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        """Return the patches as the first layer reads them, (B, h*w, C)."""
        embeddings = self.model.embeddings
        if isinstance(embeddings.patch_embedding, nn.Conv2d):
            return embeddings(x, interpolate_pos_encoding=True)
        # a patch is rows, columns, channels there
        patches = F.unfold(x, self.patch, stride=self.patch).mT
        patches = patches.unflatten(2, (3, -1)).transpose(2, 3).flatten(2)
        return embeddings(patches, torch.tensor([grid] * len(x), device=x.device))

    def joint(self, last: torch.Tensor) -> torch.Tensor:
        """Return patches (B, C, h, w) in the space in which pictures and sentences are compared.

        Args:
            last: The last map of `forward`.
        """
        head, width = self.model.head, self.width
        attention = head.attention
        value = F.linear(
            last.flatten(2).mT,
            attention.in_proj_weight[2 * width :],
            attention.in_proj_bias[2 * width :],
        )
        state = attention.out_proj(value)
        return (state + head.mlp(head.layernorm(state))).mT.unflatten(2, last.shape[2:])


def patch_size(name: str) -> int:
    """Return the side of a vision tower's patches in pixels, read off a hub name where it says it.

    So settings are checked without a network: every SigLIP of the hub has its patch in its name.

    Raises:
        UserError: As `vision_config`, where the name says nothing or is that of a folder.
    """
    found = None if Path(name).exists() else re.search(r"-patch(\d+)", name)
    return int(found[1]) if found else vision_config(name).patch_size


def vision_config(name: str) -> Any:
    """Return the configuration of the vision tower that a folder or hub name holds.

    Raises:
        UserError: It cannot be had, is of another kind, or has too few layers or no head.
    """
    from transformers import AutoConfig

    config = fetched(
        lambda: AutoConfig.from_pretrained(name), name, "backbone", "the configuration", INSTEAD
    )
    if not is_siglip(config.model_type, "vision"):
        raise UserError(
            f"model.backbone {name!r} holds a model of type {config.model_type!r}, but of "
            f"transformers only {' and '.join(KINDS)} are taken; give one of these, or {INSTEAD}"
        )
    config = getattr(config, "vision_config", config)
    if config.num_hidden_layers < 3 or not config.vision_use_head:
        raise UserError(
            f"model.backbone {name!r} has {config.num_hidden_layers} layers and "
            f"{'a' if config.vision_use_head else 'no'} head; give one of three layers or more "
            "that has its head"
        )
    return config


def check_tower_weights(name: str, weights: str) -> None:
    """Refuse what no vision tower of transformers can be built of."""
    if weights not in (PRETRAINED, RANDOM):
        raise UserError(
            f"model.backbone_weights is {weights!r}, but {name} brings its own; give {PRETRAINED}, "
            f"or {RANDOM}"
        )


def vision_tower(
    name: str, weights: str, built: dict[str, Any]
) -> tuple[VisionTower, dict[str, Any]]:
    """Return the vision tower of a folder or hub name, and the assets of a rebuild.

    Args:
        name: As model.backbone.
        weights: As model.backbone_weights.
        built: Configuration of a tower built before: then nothing is read, and weights stay random.
    """
    import transformers
    from transformers import AutoConfig

    if built:
        rest = dict(built)
        config = AutoConfig.for_model(rest.pop("model_type"), **rest)
    else:
        check_tower_weights(name, weights)
        config = vision_config(name)
    kind = config.model_type.removesuffix("_vision_model").capitalize()
    cls: Any = getattr(transformers, f"{kind}VisionModel")
    if built or weights == RANDOM:
        model = cls(config)
    else:
        kinds = tuple(k for kind in KINDS for k in (kind, f"{kind}_vision_model"))
        with quiet_transformers():
            model = read_weights(cls, name, "backbone", kinds, instead=INSTEAD)
    kept = {k: v for k, v in config_assets(config).items() if k != "_name_or_path"}
    return VisionTower(model), kept
