"""Layers of DETRIS: dense aligner, adapters, neck, decoder, head."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from aml.models.options import DetrisOptions

SHARE = 0.2
"""Factor of an adapter's output in what its block adds."""


class Dense(nn.Module):
    """Adds to x (B, C, *places) three convolutions of reach 1, 3 and 5.

    Each reads x and those before it. Places outside kept (B, 1, *places) bool count as zero, as the
    border does.
    """

    def __init__(self, width: int, conv: type):
        super().__init__()
        narrow = width // 16
        self.near = conv(width, width // 2, 1)
        self.middle_in, self.middle = (
            conv(width * 3 // 2, narrow, 1),
            conv(narrow, width // 4, 3, padding=1),
        )
        self.far_in, self.far = (
            conv(width * 7 // 4, narrow, 1),
            conv(narrow, width // 4, 5, padding=2),
        )
        for module in (self.near, self.middle_in, self.middle, self.far_in, self.far):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)

    def forward(self, x, kept=None):
        def run(conv, y):
            y = conv(y).relu()
            return y if kept is None else y * kept

        x = x if kept is None else x * kept
        near = run(self.near, x)
        middle = run(self.middle, run(self.middle_in, torch.cat([x, near], 1)))
        far = run(self.far, run(self.far_in, torch.cat([x, near, middle], 1)))
        return x + torch.cat([near, middle, far], 1)


class TextAdapter(nn.Module):
    """Stands beside a text MLP and reads its input y (B, L, C_t); gives zero at padding."""

    def __init__(self, c_t: int, options: DetrisOptions):
        super().__init__()
        self.down, self.dense, self.up = (
            nn.Linear(c_t, options.text_adapter),
            Dense(options.text_adapter, nn.Conv1d),
            zero(options.text_adapter, c_t),
        )

    def forward(self, y, token_mask):
        return self.up(self.dense(self.down(y).relu().mT, token_mask[:, None]).mT)


class VisualAdapter(nn.Module):
    """Stands beside a visual MLP: places look around, then read the sentence.

    It reads the MLP's input y (B, prefix + h*w, C_v) and gives the same shape. Class and register
    tokens pass through the bottleneck alone.
    """

    def __init__(self, c_v: int, c_t: int, options: DetrisOptions):
        super().__init__()
        width = options.visual_adapter
        self.down, self.dense, self.up = (
            nn.Linear(c_v, width),
            Dense(width, nn.Conv2d),
            zero(width, c_v),
        )
        self.cross = Attention(width, c_t, options)

    def forward(self, y, grid, text, token_mask):
        narrow, places = self._places(y, grid)
        read = self.cross(places, text, text, token_mask)
        return self.up(narrow + F.pad(read, (0, 0, narrow.shape[1] - places.shape[1], 0)))

    def joint(self, y, grid, text):
        """Return the pair that the attention multiplies: (B, h*w, C), (B, L, C)."""
        return self.cross.query(self._places(y, grid)[1]), self.cross.key(text)

    def _places(self, y, grid):
        narrow = self.down(y).relu()
        return narrow, self.dense(narrow[:, -grid[0] * grid[1] :].mT.unflatten(2, grid)).flatten(
            2
        ).mT


class Attention(nn.Module):
    """Multi-head attention of width C: q (B, N, C) asks k, v (B, M, C_k) where kept is True."""

    def __init__(self, width: int, reads: int, options: DetrisOptions):
        super().__init__()
        self.heads, self.dropout = options.heads, options.dropout
        self.query, self.key, self.value, self.out = (
            nn.Linear(c, width) for c in (width, reads, reads, width)
        )

    def forward(self, q, k, v, kept=None):
        q, k, v = (
            f(z).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for f, z in ((self.query, q), (self.key, k), (self.value, v))
        )
        mask = None if kept is None else kept[:, None, None]
        out = F.scaled_dot_product_attention(
            q, k, v, mask, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(out.transpose(1, 2).flatten(2))


class Neck(nn.Module):
    """Makes one map (B, C, h, w) of three (B, C_v, h, w), gated by the sentence (B, C_s)."""

    def __init__(self, c_v: int, c_s: int, options: DetrisOptions):
        super().__init__()
        c = options.width
        self.levels = nn.ModuleList([unit(c_v, c, 1) for _ in range(3)])
        self.gates = nn.ModuleList([nn.Linear(c_s, c) for _ in range(3)])
        self.merge = unit(3 * c, c, 1)
        self.look = nn.Sequential(unit(c + 2, c, 3), unit(c, c, 3))

    def forward(self, maps, sentence):
        gated = [
            level(m) * gate(sentence)[:, :, None, None]
            for level, gate, m in zip(self.levels, self.gates, maps, strict=True)
        ]
        x = self.merge(torch.cat(gated, 1))
        return x + self.look(torch.cat([x, coordinates(x)], 1))


class DecoderLayer(nn.Module):
    """Lets places (B, h*w, C) read each other, then the words (B, L, C_t)."""

    def __init__(self, c_t: int, options: DetrisOptions):
        super().__init__()
        c, feed = options.width, options.feed
        self.norms = nn.ModuleList([nn.LayerNorm(c) for _ in range(3)])
        self.own, self.cross = Attention(c, c, options), Attention(c, c_t, options)
        self.own_norm, self.cross_norm = nn.LayerNorm(c), nn.LayerNorm(c)
        self.feed = nn.Sequential(
            nn.Linear(c, feed),
            nn.ReLU(),
            nn.Dropout(options.dropout),
            nn.LayerNorm(feed),
            nn.Linear(feed, c),
        )
        self.drop = nn.Dropout(options.dropout)

    def forward(self, places, text, at, order, token_mask):
        y = self.norms[0](places)
        places = places + self.drop(self.own_norm(self.own(y + at, y + at, y)))
        y = self.norms[1](places)
        places = places + self.drop(
            self.cross_norm(self.cross(y + at, text + order, text, token_mask))
        )
        return places + self.drop(self.feed(self.norms[2](places)))


class Head(nn.Module):
    """Makes maps (B, C, h, w) four times finer and applies a 3 x 3 kernel made by the sentence.

    The sentence is (B, C_s), the logits are (B, 4h, 4w).
    """

    def __init__(self, c_s: int, options: DetrisOptions):
        super().__init__()
        c, half = options.width, options.width // 2
        self.up = nn.Sequential(
            Double(), unit(c, c, 3), Double(), unit(c, half, 3), nn.Conv2d(half, half, 1)
        )
        self.kernel = nn.Linear(c_s, 9 * half + 1)

    def forward(self, x, sentence):
        x, kernel = self.up(x), self.kernel(sentence)
        weight = kernel[:, :-1].unflatten(1, (x.shape[1], 3, 3))
        # one group a sample: each map meets its own sentence's kernel
        return F.conv2d(
            x.flatten(0, 1)[None],
            weight.to(x.dtype),
            kernel[:, -1].to(x.dtype),
            padding=1,
            groups=len(x),
        )[0]


class Double(nn.Module):
    """Makes a map twice as fine."""

    def forward(self, x):
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def unit(c_in: int, c_out: int, side: int) -> nn.Sequential:
    """Return a convolution, GroupNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, side, padding=side // 2, bias=False),
        nn.GroupNorm(math.gcd(32, c_out), c_out),
        nn.ReLU(),
    )


def zero(c_in: int, c_out: int) -> nn.Linear:
    """Return a linear map that starts at zero, so that training starts at the frozen encoder."""
    linear = nn.Linear(c_in, c_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def coordinates(x: torch.Tensor) -> torch.Tensor:
    """Return x and y of each cell of a map (B, C, h, w) in [-1, 1], (B, 2, h, w)."""
    b, _, h, w = x.shape
    across, down = (
        torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype),
        torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype),
    )
    return torch.stack([across.expand(h, w), down[:, None].expand(h, w)]).expand(b, 2, h, w)


def waves(length: int, width: int, device: torch.device) -> torch.Tensor:
    """Return sines and cosines of a place, interleaved (Vaswani et al. 2017).

    Returns:
        (length, width) float32.
    """
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angle = torch.arange(length, device=device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)


def positions_1d(text: torch.Tensor) -> torch.Tensor:
    """Return the embeddings of the places of text (B, L, C_t), (L, C_t)."""
    return waves(text.shape[1], text.shape[2], text.device)


def positions_2d(grid: tuple[int, int], places: torch.Tensor) -> torch.Tensor:
    """Return embeddings (h*w, C): half of the channels tell the column, half the row."""
    h, w = grid
    half = places.shape[2] // 2
    across, down = waves(w, half, places.device), waves(h, half, places.device)
    return torch.cat(
        [across[None].expand(h, w, half), down[:, None].expand(h, w, half)], 2
    ).flatten(0, 1)
