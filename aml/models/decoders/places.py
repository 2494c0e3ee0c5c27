"""The decoder of the small model, which reads maps at 1/4, 1/8 and 1/16 of any visual encoder.

Cross-attention layers in which every place of the 1/8 map reads the sentence and then the other
places; logits at 1/4. There is no BatchNorm: a batch of a rank, of a micro-step or of a masked pass
gives each sample the same output.

    B samples, C width, h w the 1/8 map, L tokens
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from aml.models.base import Features, Model
from aml.models.encoders.words import Attention, Layer


class PlaceDecoder(Model):
    """Base of the models that decode so.

    One derived from it has `tokens` with `roles`, `text(tokens, token_mask)`, which gives states
    (B, L, D), and `encode`, which gives the maps fine, middle and coarse, at 1/4, 1/8 and 1/16 or
    about that; `fine` is stem wide, the others C. The last of its maps is what alignment reads at
    `encoder`. It calls `add_decoder` where the decoder's parameters shall come.

    The decoder's parameters lie in the model itself, not in a part of it.
    """

    tokens: Any
    """Turns sentences into tokens, and says by `roles` which of them are words."""
    text: nn.Module
    """Turns tokens into states."""

    def add_decoder(
        self, *, width: int, stem: int, layers: int, heads: int, dropout: float
    ) -> None:
        """Add the decoder's parameters.

        Args:
            width: C.
            stem: Width of the 1/4 map.
            layers: Layers of cross-attention.
            heads: Heads of attention.
            dropout: Share of values left out.
        """
        self.place = nn.Conv2d(6, width, 1)
        self.merge = nn.Conv2d(2 * width, width, 1)
        self.fusion = nn.ModuleList([Fusion(width, heads, dropout) for _ in range(layers)])
        self.up = nn.Sequential(nn.Conv2d(width, stem, 1), norm(stem))
        self.pixels = nn.Sequential(nn.Conv2d(2 * stem, stem, 1), norm(stem), Residual(stem))
        self.query = nn.Linear(width, stem)
        # a referent covers a few per cent: start near that
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def adapt(self, states: torch.Tensor) -> torch.Tensor:
        """Return the text encoder's states (B, L, D) at the decoder's width, (B, L, C)."""
        return states

    def sentence(self, text: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        """Return the state of the pooled token, (B, C), of states (B, L, C)."""
        return text[:, 0]

    def features(
        self,
        x: torch.Tensor,
        tokens: torch.Tensor,
        token_mask: torch.Tensor,
        upto: str,
        maps: list[torch.Tensor] | None = None,
    ) -> Features:
        """Return what alignment is computed from, see the model's class."""
        maps = self.encode(x) if maps is None else maps
        visual, text = maps[-1], self.text(tokens, token_mask)
        if upto == "joint":
            first = cast(Fusion, self.fusion[0])
            places = self._places(maps[1], maps[2])
            place, text = first.joint(places.flatten(2).mT, self.adapt(text))
            visual = place.mT.unflatten(2, places.shape[2:])
        return Features(visual, text, *self.tokens.roles(tokens, token_mask))

    def decode(
        self, maps: list[torch.Tensor], tokens: torch.Tensor, token_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return logits (B, h, w) at 1/4."""
        fine, middle, coarse = maps[:3]
        text = self.adapt(self.text(tokens, token_mask))
        places = self._places(middle, coarse)
        size = places.shape[2:]
        places = places.flatten(2).mT
        for layer in self.fusion:
            places = layer(places, text, token_mask)
        places = places.mT.unflatten(2, size)
        up = F.interpolate(self.up(places), fine.shape[2:], mode="bilinear", align_corners=False)
        pixels = self.pixels(torch.cat([fine, up], 1))
        query = self.query(self.sentence(text, token_mask))
        return torch.einsum("bchw,bc->bhw", pixels, query) * pixels.shape[1] ** -0.5 + self.bias

    def _places(self, middle: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Return the 1/8 map with its wider context and each place's coordinates, (B, C, h, w).

        Words as "left" need coordinates.
        """
        wide = F.interpolate(coarse, middle.shape[2:], mode="bilinear", align_corners=False)
        return self.merge(torch.cat([middle, wide], 1)) + self.place(
            coordinates(middle.shape[2], middle.shape[3], middle)
        )


class Fusion(nn.Module):
    """Lets places (B, h*w, C) read the sentence (B, L, C), then each other; (B, h*w, C)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.read = Attention(width, heads, dropout)
        self.layer = Layer(width, heads, dropout)

    def forward(self, places, text, token_mask):
        return self.layer(places + self.read(self.norm(places), text, token_mask))

    def joint(self, places: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pair that the cross-attention multiplies: (B, h*w, C), (B, L, C)."""
        return self.read.query(self.norm(places)), self.read.key(text)


class Residual(nn.Module):
    """x + conv(relu(norm(conv(x)))), 3 x 3."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1),
            norm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1),
        )
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.5))

    def forward(self, x):
        return x + self.scale * self.body(x)


def norm(width: int) -> nn.GroupNorm:
    """Return the norm of all convolutions."""
    return nn.GroupNorm(8, width)


def coordinates(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Return where each cell is, (1, 6, h, w), on the device and of the dtype of `like`.

    The six are y, x, their sines over one period, their distance from the centre.
    """
    y = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype)[:, None].expand(
        height, width
    )
    x = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype)[None].expand(
        height, width
    )
    return torch.stack([y, x, (torch.pi * y).sin(), (torch.pi * x).sin(), y.abs(), x.abs()])[None]
