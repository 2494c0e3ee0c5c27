"""Pixel decoder of CARIS: deformable attention over levels, cross-attention to words."""

import math
from contextlib import nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from aml.models.options import CarisOptions

BACKGROUND_PROMPTS, POOLS, POINTS = 5, (1, 2), 4
"""Learned background prompts; sides of the pooled maps that become language prompts; points that a
head samples at each level."""


class PixelDecoder(nn.Module):
    """Turns maps at 1/4 to 1/32 and text (B, L, D) with its mask into logits (B, h, w) at 1/4."""

    def __init__(self, channels: list[int], text_width: int, options: CarisOptions):
        super().__init__()
        width = options.width
        self.enter = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(c, width, 1), norm(width)) for c in channels[:0:-1]]
        )
        self.level = nn.Parameter(torch.randn(3, width))
        self.words = nn.Linear(text_width, width)
        self.words_norm = nn.LayerNorm(width)
        self.background = nn.Parameter(torch.randn(BACKGROUND_PROMPTS, width))
        self.layers = nn.ModuleList([Layer(options) for _ in range(options.layers)])
        self.side = nn.Sequential(nn.Conv2d(channels[0], width, 1, bias=False), norm(width))
        self.merge = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width), nn.ReLU()
        )
        self.pixels = nn.Sequential(
            nn.Conv2d(width, width, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )
        self.queries = nn.Sequential(
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
        )
        small_weights(self.words)
        for block in (*self.enter, self.side, self.merge):
            nn.init.kaiming_normal_(block[0].weight, mode="fan_out", nonlinearity="relu")
            if block[0].bias is not None:
                nn.init.zeros_(block[0].bias)

    def forward(self, maps, text, token_mask):
        fine, *levels = maps
        levels = levels[::-1]  # coarse first
        shapes = [(m.shape[2], m.shape[3]) for m in levels]
        pixels = torch.cat(
            [enter(m).flatten(2).mT for enter, m in zip(self.enter, levels, strict=True)], 1
        )
        places = torch.cat([self._where(i, h, w, pixels) for i, (h, w) in enumerate(shapes)], 1)
        text = self.words_norm(self.words(text))
        text = torch.cat([text, self.background.to(text.dtype).expand(len(text), -1, -1)], 1)
        readable = torch.cat([token_mask, token_mask.new_ones(len(text), BACKGROUND_PROMPTS)], 1)[
            :, None, None
        ]
        grid = Grid(shapes, pixels.device)
        for layer in self.layers:
            pixels, text = layer(pixels, text, places, readable, grid)
        h, w = shapes[2]
        up = F.interpolate(
            pixels[:, -h * w :].mT.unflatten(2, (h, w)),
            fine.shape[2:],
            mode="bilinear",
            align_corners=False,
        )
        pixels = self.pixels(self.merge(self.side(fine) + up))
        background, foreground = self.queries(
            torch.stack([text[:, token_mask.shape[1] :].mean(1), text[:, 0]], 1)
        ).unbind(1)
        return torch.einsum("bchw,bc->bhw", pixels, foreground) - torch.einsum(
            "bchw,bc->bhw", pixels, background
        )

    def joint(self, maps, text):
        """Return what the first layer's first attention multiplies.

        Returns:
            Keys of the 1/16 map, (B, inner, h, w), and queries of the words, (B, L, inner).
        """
        pixels = self.enter[1](maps[2])
        h, w = pixels.shape[2:]
        places = pixels.flatten(2).mT
        attend = cast(Layer, self.layers[0]).words_read
        keys = attend.key(places + self._where(1, h, w, places))
        return keys.mT.unflatten(2, (h, w)), attend.query(self.words_norm(self.words(text)))

    def _where(self, level: int, height: int, width: int, like):
        """Return an embedding of place and level of each cell, (1, h*w, C)."""
        return sine_places(height, width, like.shape[2], like.device) + self.level[level]


class Layer(nn.Module):
    """Lets words read pixels and words, then pixels read words and pixels.

    Norms come after the residual sums. It takes pixels (B, N, C), text (B, L + P, C), places
    (1, N, C) and readable (B, 1, 1, L + P) bool, and gives pixels and text.
    """

    def __init__(self, options: CarisOptions):
        super().__init__()
        width = options.width
        self.words_read, self.words_mix, self.pixels_read = (
            Attention(width, options.inner, options.heads) for _ in range(3)
        )
        self.words_scale, self.pixels_scale = (
            nn.Parameter(torch.ones(width)),
            nn.Parameter(torch.ones(width)),
        )
        self.words_feed, self.pixels_feed = (
            feed_forward(width, options.inner),
            feed_forward(width, options.inner),
        )
        self.words_norms, self.pixels_norms = (
            nn.ModuleList([nn.LayerNorm(width) for _ in range(3)]) for _ in range(2)
        )
        self.apply(small_weights)
        self.pixels_mix = deformable(width, options.heads)

    def forward(self, pixels, text, places, readable, grid):
        text = self.words_norms[0](
            text + self.words_scale * self.words_read(text, pixels + places, pixels)
        )
        text = self.words_norms[1](text + self.words_mix(text, text, text, readable))
        text = self.words_norms[2](text + self.words_feed(text))
        pixels = self.pixels_norms[0](
            pixels + self.pixels_scale * self.pixels_read(pixels + places, text, text, readable)
        )
        # half precision cannot tell neighbouring places of a fine map apart
        with full_precision(pixels):
            pixels = pixels.float()
            mixed, _ = self.pixels_mix(
                pixels,
                encoder_hidden_states=pixels,
                position_embeddings=places.float(),
                reference_points=grid.centres.expand(len(pixels), -1, -1, -1),
                spatial_shapes=grid.tensor,
                spatial_shapes_list=grid.shapes,
            )
            pixels = pixels + mixed
        pixels = self.pixels_norms[1](pixels)
        return self.pixels_norms[2](pixels + self.pixels_feed(pixels)), text


class Attention(nn.Module):
    """Multi-head attention computed at width `inner`.

    x (B, N, C) asks keys and values (B, M, C), where readable (B, 1, 1, M) bool is True.
    """

    def __init__(self, width: int, inner: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)

    def forward(self, x, keys, values, readable=None):
        q, k, v = (
            z.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for z in (self.query(x), self.key(keys), self.value(values))
        )
        return self.out(
            F.scaled_dot_product_attention(q, k, v, readable).transpose(1, 2).flatten(2)
        )


class Grid:
    """The shapes of the three maps, and each place's centre in [0, 1], x before y.

    The centres are repeated for every level.
    """

    def __init__(self, shapes: list[tuple[int, int]], device):
        self.shapes, self.tensor = shapes, torch.tensor(shapes, device=device)
        centres = []
        for height, width in shapes:
            y = ((torch.arange(height, device=device) + 0.5) / height)[:, None].expand(
                height, width
            )
            x = ((torch.arange(width, device=device) + 0.5) / width)[None].expand(height, width)
            centres.append(torch.stack([x, y], -1).flatten(0, 1))
        self.centres = torch.cat(centres)[None, :, None].expand(-1, -1, len(shapes), -1)


def deformable(width: int, heads: int):
    """Return transformers' multi-scale deformable attention over three levels.

    It is initialised as its authors do (Zhu et al., ICLR 2021, appendix): a head's points lie on a
    ray of its own, point i at distance i, all weighted alike.
    """
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import (
        DeformableDetrMultiscaleDeformableAttention,
    )

    config = DeformableDetrConfig(d_model=width, num_feature_levels=3, disable_custom_kernels=True)
    attend = DeformableDetrMultiscaleDeformableAttention(config, num_heads=heads, n_points=POINTS)
    angle = torch.arange(heads) * (2 * math.pi / heads)
    ray = torch.stack([angle.cos(), angle.sin()], -1)
    ray = ray / ray.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, POINTS + 1)[:, None]
    for layer in (attend.sampling_offsets, attend.attention_weights):
        nn.init.zeros_(layer.weight)
    nn.init.zeros_(attend.attention_weights.bias)
    with torch.no_grad():
        attend.sampling_offsets.bias.copy_(
            (ray[:, None, None] * steps).expand(heads, 3, POINTS, 2).flatten()
        )
    for layer in (attend.value_proj, attend.output_proj):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return attend


def full_precision(x):
    """Return a context without autocast; meta tensors, used to count operations, have none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def sine_places(height: int, width: int, channels: int, device):
    """Return sines and cosines of y, then of x, as (1, h*w, channels).

    Both run over (0, 2 pi] (DETR, Carion et al. 2020).
    """
    each = channels // 2
    rate = 10000.0 ** (torch.arange(0, each, 2, device=device) / each)

    def waves(count):
        phase = (
            torch.arange(1, count + 1, device=device)[:, None]
            * (2 * math.pi / (count + 1e-6))
            / rate
        )
        return torch.stack([phase.sin(), phase.cos()], -1).flatten(1)

    y = waves(height)[:, None].expand(height, width, each)
    x = waves(width)[None].expand(height, width, each)
    return torch.cat([y, x], -1).flatten(0, 1)[None]


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    """Return the feed-forward part of a layer."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))


def norm(width: int) -> nn.GroupNorm:
    """Return the norm of a convolution."""
    return nn.GroupNorm(min(32, width // 4), width)


def small_weights(module: nn.Module) -> None:
    """Initialise a linear layer with small weights and no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
