"""Layers of DETRIS: dense aligner, adapters, neck, decoder, head."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from aml.models.options import DetrisOptions

SHARE = 0.2

"""Of an adapter's output in what its block adds."""


class Dense(nn.Module):
    """x plus three convolutions of reach 1, 3 and 5, each reading x and those before it.   (B, C, *places) -> the same

    kept (B, 1, *places) bool: other places count as zero, as the border does.
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
        for module in self.children():
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
    """Beside a text MLP.   y (B, L, C_t) -> the same, zero at padding"""

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
    """Beside a visual MLP: places look around, then read the sentence.   y (B, prefix + h*w, C_v) -> the same

    Class and register tokens pass through the bottleneck alone.
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
        """The pair the attention multiplies: (B, h*w, C), (B, L, C)."""
        return self.cross.query(self._places(y, grid)[1]), self.cross.key(text)

    def _places(self, y, grid):
        narrow = self.down(y).relu()
        return narrow, self.dense(narrow[:, -grid[0] * grid[1] :].mT.unflatten(2, grid)).flatten(
            2
        ).mT


class Attention(nn.Module):
    """Multi-head attention of width C.   q (B, N, C) asks k, v (B, M, C_k); kept (B, M) bool: True may be read -> (B, N, C)"""

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
    """Three levels gated by the sentence, made one.   3 x (B, C_v, h, w), (B, C_s) -> (B, C, h, w)"""

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
    """Places read each other, then the words.   places (B, h*w, C), text (B, L, C_t) -> (B, h*w, C)"""

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
    """Four times finer, then a 3 x 3 kernel that the sentence makes.   (B, C, h, w), (B, C_s) -> logits (B, 4h, 4w)"""

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
    def forward(self, x):
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def unit(c_in: int, c_out: int, side: int):
    """Convolution, GroupNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, side, padding=side // 2, bias=False),
        nn.GroupNorm(math.gcd(32, c_out), c_out),
        nn.ReLU(),
    )


def zero(c_in: int, c_out: int):
    """A linear map that starts at zero: the frozen encoder is where training starts."""
    linear = nn.Linear(c_in, c_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def coordinates(x):
    """Where each cell is, in [-1, 1]: x, y.   (B, C, h, w) -> (B, 2, h, w)"""
    b, _, h, w = x.shape
    across, down = (
        torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype),
        torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype),
    )
    return torch.stack([across.expand(h, w), down[:, None].expand(h, w)]).expand(b, 2, h, w)


def waves(length: int, width: int, device):
    """Sines and cosines of a place, interleaved (Vaswani et al. 2017).   -> (length, width) float32"""
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angle = torch.arange(length, device=device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)


def positions_1d(text):
    """(B, L, C_t) -> (L, C_t)"""
    return waves(text.shape[1], text.shape[2], text.device)


def positions_2d(grid, places):
    """Half of the channels tell the column, half the row.   -> (h*w, C)"""
    h, w = grid
    half = places.shape[2] // 2
    across, down = waves(w, half, places.device), waves(h, half, places.device)
    return torch.cat(
        [across[None].expand(h, w, half), down[:, None].expand(h, w, half)], 2
    ).flatten(0, 1)
