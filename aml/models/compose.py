"""A model put together from any timm backbone and any text encoder of transformers.

The backbone's maps are brought to 1/4, 1/8 and 1/16, the sentence's states to their width, and the
small model's decoder does the rest. Both encoders may be pretrained, and each may stay as it is.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import nn

from aml.errors import UserError
from aml.models.base import Features, Tokens
from aml.models.decoders.places import PlaceDecoder, norm
from aml.models.encoders.backbone import (
    TABLES,
    build_backbone,
    centred_statistics,
    check_weights,
    keep_statistics,
    picture_statistics,
    plan_backbone,
    visible_patch_maps,
    visual_maps,
)
from aml.models.encoders.siglip import (
    STATISTICS,
    VisionTower,
    check_tower_weights,
    names_tower,
    patch_size,
    vision_tower,
)
from aml.models.encoders.text import check_text, sentence_encoder
from aml.models.encoders.words import Text, Words
from aml.models.options import WORDS, ComposeOptions
from aml.models.options.base import Traits, traits_of
from aml.models.options.compose import RANDOM


class Compose(PlaceDecoder):
    """Any backbone and any text encoder, see the module. Alignment is read from:

    - encoder: the backbone's last map and the text encoder's states, both before anything of this
      model's own (widths may differ);
    - joint: the queries of the places at 1/8 and the keys of the tokens that the first
      cross-attention multiplies (equal widths, all heads). Of the two towers of one SigLIP it is
      the space in which they were trained to agree (see aml.models.encoders.siglip), which is
      aligned before training;
    - prediction: the sigmoid of the logits.

    The maps of `encode` are fine, middle and coarse, and the backbone's last. Of a plain vision
    transformer with patches of p pixels fine and middle are at p/4 and p/2. Such a transformer can
    leave hidden patches out (`drops`); the neck's maps are zero there, too.
    """

    mean: torch.Tensor
    std: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor

    name, sources, fuses = ComposeOptions.name, ComposeOptions.sources, ComposeOptions.fuses
    image_multiple = ComposeOptions.image_multiple

    def __init__(self, options: ComposeOptions, vocabulary: list[str], assets: dict | None = None):
        super().__init__(options, vocabulary, assets)
        built = self.assets
        self.assets = {}
        channels, reductions = self._add_backbone(built)
        self._add_text(built.get("text") or {})
        both = names_tower(options.backbone) and options.backbone == options.text
        text: Any = self.text
        self.aligned = both and text.model.config.projection_size == channels[-1]
        self.neck = Neck(channels, reductions, options.width, options.stem)
        self.add_decoder(
            width=options.width,
            stem=options.stem,
            layers=options.layers,
            heads=options.heads,
            dropout=options.dropout,
        )
        pretrained = options.backbone_weights != RANDOM
        self.frozen = pretrained and "backbone" in options.freeze
        if self.frozen:
            self.backbone.requires_grad_(False)
        self.encoders = tuple(
            part
            for part, trained in (
                ("backbone.", pretrained and not self.frozen),
                ("text.", options.text != WORDS and "text" not in options.freeze),
            )
            if trained
        )
        tables = [
            name
            for name, _ in self.backbone.named_parameters(prefix="backbone")
            if any(part in name for part in TABLES)
        ]
        words = ["text.embed", "text.position"] if options.text == WORDS else []
        self.no_decay = (*tables, *words)

    @classmethod
    def traits(cls, options: ComposeOptions) -> Traits:
        """Return what settings are checked against, before the model is built.

        Raises:
            UserError: A backbone or text encoder that cannot be taken, weights that are not here.
        """
        if names_tower(options.backbone):
            check_tower_weights(options.backbone, options.backbone_weights)
            multiple, drops = patch_size(options.backbone), True
        else:
            plan = plan_backbone(options.backbone)
            multiple, drops = plan.multiple, plan.drops
            check_weights(options.backbone, options.backbone_weights)
        check_text(options.text)
        return traits_of(options, image_multiple=multiple, drops=drops)

    def _add_backbone(self, built: dict[str, Any]) -> tuple[Sequence[int], Sequence[int]]:
        """Add the backbone, out of the assets of a model built before where there are any.

        Returns:
            Channels of its maps, and how many pixels a place of each spans.
        """
        name, weights = self.options.backbone, self.options.backbone_weights
        if built.get("backbone") or (not built and names_tower(name)):
            tower, self.assets["backbone"] = vision_tower(name, weights, built.get("backbone", {}))
            self.backbone: Any = tower
            channels, reductions = [tower.width] * 3, [tower.patch] * 3
            self.image_multiple, mean, std = tower.patch, STATISTICS, STATISTICS
            self.drops = True
        else:
            plan = plan_backbone(name)
            self.backbone = build_backbone(name, weights, plan, read=not built)
            self.image_multiple, channels, reductions = (
                plan.multiple,
                [*plan.channels],
                [*plan.reductions],
            )
            self.drops = plan.drops
            mean, std = built.get("pictures") or picture_statistics(name, weights)
        self._add_statistics(mean, std)
        self.assets["pictures"] = [mean, std]
        return channels, reductions

    def _add_text(self, built: dict[str, Any]) -> None:
        """Add the text encoder, out of the assets of a model built before where there are any."""
        options = self.options
        if options.text == WORDS:
            tokens = Words(self.vocabulary, options.max_tokens)
            self.tokens = tokens
            self.text = Text(
                len(tokens), tokens.length, options.width, options.heads, options.dropout
            )
            self.reduce: nn.Module = nn.Identity()
        else:
            encoder, self.assets["text"] = sentence_encoder(
                options.text, options.max_tokens, "text" in options.freeze, built
            )
            self.tokens, self.text = encoder.tokens, encoder
            self.reduce = nn.Sequential(
                nn.Linear(encoder.width, options.width), nn.LayerNorm(options.width)
            )
        self.take_tokens(self.tokens)

    def _add_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Add mean and spread of pictures, and what turns normalised ones into the backbone's.

        Both are the backbone's own, and nothing is to be turned, unless it reads pictures in
        [0, 1]: a hidden block is 0, which shall be the mean of pictures and not black.
        """
        own, centred = torch.tensor([mean, std]), torch.tensor(centred_statistics(mean, std))
        for name, value in (
            ("mean", 255 * centred[0]),
            ("std", 255 * centred[1]),
            ("scale", centred[1] / own[1]),
            ("shift", (centred[0] - own[0]) / own[1]),
        ):
            self.register_buffer(name, value[:, None, None], persistent=False)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        keep_statistics(self.backbone)
        return self

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """Return uint8 images as float, 0 where the pictures of the backbone have their mean."""
        return (image.float() - self.mean) / self.std

    def tokenise(self, sentences: list[str]) -> Tokens:
        """Return tokens (B, L) int64 and token_mask (B, L) bool."""
        return self.tokens(sentences)

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps at 1/4, 1/8 and 1/16, and the backbone's last."""
        if any(side % self.image_multiple for side in x.shape[2:]):
            raise UserError(
                f"an image of {x.shape[2]} x {x.shape[3]}: model {self.name} with backbone "
                f"{self.options.backbone} takes multiples of {self.image_multiple}; resize it"
            )
        with torch.no_grad() if self.frozen else nullcontext():
            maps = visual_maps(self.backbone, x * self.scale + self.shift)
        return [*self.neck(maps), maps[-1]]

    def encode_visible(self, x: torch.Tensor, visible: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of `encode` as the visible patches alone give them, zero elsewhere."""
        self.patch_grid(x)
        x = x * self.scale + self.shift
        with torch.no_grad() if self.frozen else nullcontext():
            if isinstance(self.backbone, VisionTower):
                maps = self.backbone(x, visible)
            else:
                maps = visible_patch_maps(self.backbone, x, visible)
        return self.see([*self.neck(maps), maps[-1]], visible)

    def features(
        self,
        x: torch.Tensor,
        tokens: torch.Tensor,
        token_mask: torch.Tensor,
        upto: str,
        maps: list[torch.Tensor] | None = None,
    ) -> Features:
        """Return what alignment is computed from, see the class."""
        if upto != "joint" or not self.aligned:
            return super().features(x, tokens, token_mask, upto, maps)
        text: Any = self.text
        visual = self.backbone.joint((self.encode(x) if maps is None else maps)[-1])
        states = text.joint(text(tokens, token_mask))
        return Features(visual, states, *self.tokens.roles(tokens, token_mask))

    def adapt(self, states: torch.Tensor) -> torch.Tensor:
        """Return the text encoder's states at the decoder's width, (B, L, C)."""
        return self.reduce(states)

    def sentence(self, text: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        """Return the state of the pooled token, (B, C)."""
        if getattr(self.tokens, "first", True):
            return text[:, 0]
        return text[torch.arange(len(text), device=text.device), token_mask.sum(1) - 1]


class Neck(nn.Module):
    """Brings maps of any sizes to about 1/4, 1/8 and 1/16: fine (stem wide), middle and coarse.

    A map that is too small is enlarged by a transposed convolution. What lies at 1/32 is added to
    coarse. Maps that are all of one size, as a plain transformer gives them, make one each.
    """

    def __init__(
        self, channels: Sequence[int], reductions: Sequence[int], width: int, stem: int
    ) -> None:
        super().__init__()
        self.groups = group_maps(reductions)
        self.project, self.norms = nn.ModuleList(), nn.ModuleList()
        for level, group in enumerate(self.groups):
            out = width if level else stem
            self.project.append(
                nn.ModuleList(
                    [enlarge(channels[i], out, reductions[i], 4 * 2**level) for i in group]
                )
            )
            self.norms.append(norm(out))

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        found = []
        for group, layers, normed in zip(self.groups, self.project, self.norms, strict=True):
            several = cast(nn.ModuleList, layers)
            parts = [layer(maps[i]) for i, layer in zip(group, several, strict=True)]
            found.append(normed(sum(parts[1:], parts[0])))
        return found


def group_maps(reductions: Sequence[int]) -> list[list[int]]:
    """Return which maps make fine, middle and coarse, of how many pixels a place of each spans."""
    if len(set(reductions)) == 1:
        return [[0], [1], [2]]
    groups: list[list[int]] = [[], [], []]
    for i, reduction in enumerate(reductions):
        groups[min(2, max(0, octave(reduction, 4)))].append(i)
    return [
        group or [min(range(len(reductions)), key=lambda i: abs(octave(reductions[i], 4 * 2**at)))]
        for at, group in enumerate(groups)
    ]


def octave(reduction: int, wanted: int) -> int:
    """Return how many times a map has to be doubled until a place spans about `wanted` pixels."""
    return round(math.log2(reduction / wanted))


def enlarge(channels: int, width: int, reduction: int, wanted: int) -> nn.Module:
    """Return the layer that gives a map its width, and about `wanted` pixels to a place.

    A map that is larger than that stays as large.
    """
    factor = 2 ** max(0, octave(reduction, wanted))
    if factor == 1:
        return nn.Conv2d(channels, width, 1)
    return nn.ConvTranspose2d(channels, width, factor, factor)
