"""The small model: learns referring segmentation from scratch on a CPU.

Residual convolutions with GroupNorm at 1/4, 1/8 and 1/16; a 2-layer text transformer over words;
cross-attention layers in which every place of the 1/8 map reads the sentence and then the other
places; logits at 1/4. There is no BatchNorm: a batch of a rank, of a micro-step or of a masked pass
gives each sample the same output.

    B samples, C width, h w the 1/8 map, L tokens
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from aml.data import split_words
from aml.models.base import Features, Model, Tokens
from aml.models.options import SmallOptions

PAD, POOL, UNKNOWN, MASK = range(4)

MEAN, STD = 118.0, 64.0
"""Grey level and spread that normalise a picture: about those of COCO and the drawn scenes."""


class Small(Model):
    """The small model, see the module. Alignment is read from:

    - encoder: the 1/16 map before any word was read, and the text transformer's output (equal
      widths);
    - joint: the 1/8 queries and word keys that the first cross-attention multiplies (equal widths,
      all heads);
    - prediction: the sigmoid of the logits.
    """

    name, sources = SmallOptions.name, SmallOptions.sources
    image_multiple, fuses = SmallOptions.image_multiple, SmallOptions.fuses
    no_decay = ("text.embed", "text.position")
    mask_token, special_tokens = MASK, (PAD, POOL, MASK)

    def __init__(self, options: SmallOptions, vocabulary: list[str], assets: dict | None = None):
        super().__init__(options, vocabulary)
        self.word_ids = (MASK + 1, MASK + 1 + max(1, len(self.vocabulary)))
        self.ids = {word: i + MASK + 1 for i, word in enumerate(self.vocabulary)}
        width, stem = options.width, options.stem
        self.text = Text(len(self.vocabulary) + MASK + 1, options)
        self.stage4 = nn.Sequential(
            nn.Conv2d(3, stem, 7, 4, 3),
            norm(stem),
            *[Residual(stem) for _ in range(options.blocks)],
        )
        self.stage8 = nn.Sequential(
            nn.Conv2d(stem, width, 3, 2, 1),
            norm(width),
            *[Residual(width) for _ in range(options.blocks)],
        )
        self.stage16 = nn.Sequential(
            nn.Conv2d(width, width, 3, 2, 1),
            norm(width),
            *[Residual(width) for _ in range(options.blocks)],
        )
        self.place = nn.Conv2d(6, width, 1)
        self.merge = nn.Conv2d(2 * width, width, 1)
        self.fusion = nn.ModuleList([Fusion(options) for _ in range(options.layers)])
        self.up = nn.Sequential(nn.Conv2d(width, stem, 1), norm(stem))
        self.pixels = nn.Sequential(nn.Conv2d(2 * stem, stem, 1), norm(stem), Residual(stem))
        self.query = nn.Linear(width, stem)
        # a referent covers a few per cent: start near that
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """Return uint8 images as float with mean 0."""
        return (image.float() - MEAN) / STD

    def tokenise(self, sentences: list[str]) -> Tokens:
        """Return words as ids, the pooling token first; UNKNOWN for words not in vocabulary."""
        length = self.options.max_words + 1
        tokens = torch.full((len(sentences), length), PAD)
        for row, sentence in zip(tokens, sentences, strict=True):
            ids = [POOL, *(self.ids.get(word, UNKNOWN) for word in split_words(sentence))][:length]
            row[: len(ids)] = torch.tensor(ids)
        return tokens, tokens != PAD

    def features(
        self,
        x: torch.Tensor,
        tokens: torch.Tensor,
        token_mask: torch.Tensor,
        upto: str,
        maps: list[torch.Tensor] | None = None,
    ) -> Features:
        """Return what alignment is computed from, see the class."""
        maps = self.encode(x) if maps is None else maps
        text = self.text(tokens, token_mask)
        pooled = torch.zeros_like(token_mask)
        pooled[:, 0] = True
        if upto == "joint":
            first = cast(Fusion, self.fusion[0])
            place, keys = first.joint(self._places(maps[1], maps[2]).flatten(2).mT, text)
            visual = place.mT.unflatten(2, (x.shape[2] // 8, x.shape[3] // 8))
        else:
            visual, keys = maps[2], text
        return Features(visual, keys, token_mask & ~pooled, pooled)

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps at 1/4, 1/8 and 1/16."""
        fine = self.stage4(x)
        middle = self.stage8(fine)
        return [fine, middle, self.stage16(middle)]

    def decode(
        self, maps: list[torch.Tensor], tokens: torch.Tensor, token_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return logits (B, h, w) at 1/4."""
        fine, middle, coarse = maps
        text = self.text(tokens, token_mask)
        places = self._places(middle, coarse)
        size = places.shape[2:]
        places = places.flatten(2).mT
        for layer in self.fusion:
            places = layer(places, text, token_mask)
        places = places.mT.unflatten(2, size)
        up = F.interpolate(self.up(places), fine.shape[2:], mode="bilinear", align_corners=False)
        pixels = self.pixels(torch.cat([fine, up], 1))
        return (
            torch.einsum("bchw,bc->bhw", pixels, self.query(text[:, 0])) * pixels.shape[1] ** -0.5
            + self.bias
        )

    def _places(self, middle: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Return the 1/8 map with its wider context and each place's coordinates, (B, C, h, w).

        Words as "left" need coordinates.
        """
        wide = F.interpolate(coarse, middle.shape[2:], mode="bilinear", align_corners=False)
        return self.merge(torch.cat([middle, wide], 1)) + self.place(
            coordinates(middle.shape[2], middle.shape[3], middle)
        )


class Text(nn.Module):
    """Turns tokens (B, L) into vectors (B, L, C) that know their context."""

    def __init__(self, vocabulary_size: int, options: SmallOptions):
        super().__init__()
        self.embed = nn.Embedding(vocabulary_size, options.width, padding_idx=PAD)
        self.position = nn.Parameter(torch.randn(options.max_words + 1, options.width) * 0.02)
        self.layers = nn.ModuleList([Layer(options) for _ in range(2)])
        self.norm = nn.LayerNorm(options.width)
        nn.init.normal_(self.embed.weight, std=0.3)

    def forward(self, tokens, token_mask):
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, token_mask)
        return self.norm(x)


class Layer(nn.Module):
    """Self-attention and feed-forward, each after its norm."""

    def __init__(self, options: SmallOptions):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(options.width), nn.LayerNorm(options.width)
        self.attend = Attention(options)
        self.feed = feed_forward(options)

    def forward(self, x, mask=None):
        y = self.norm1(x)
        x = x + self.attend(y, y, mask)
        return x + self.feed(self.norm2(x))


class Fusion(nn.Module):
    """Lets places (B, h*w, C) read the sentence (B, L, C), then each other; (B, h*w, C)."""

    def __init__(self, options: SmallOptions):
        super().__init__()
        self.norm = nn.LayerNorm(options.width)
        self.read = Attention(options)
        self.layer = Layer(options)

    def forward(self, places, text, token_mask):
        return self.layer(places + self.read(self.norm(places), text, token_mask))

    def joint(self, places: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pair that the cross-attention multiplies: (B, h*w, C), (B, L, C)."""
        return self.read.query(self.norm(places)), self.read.key(text)


class Attention(nn.Module):
    """Multi-head attention: x (B, N, C) asks y (B, M, C) where mask (B, M) bool is True."""

    def __init__(self, options: SmallOptions):
        super().__init__()
        width = options.width
        self.heads, self.dropout = options.heads, options.dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, y, mask=None):
        q, k, v = (
            f(z).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for f, z in ((self.query, x), (self.key, y), (self.value, y))
        )
        mask = None if mask is None else mask[:, None, None]
        out = (F.scaled_dot_product_attention if x.is_cuda else plain_attention)(q, k, v, mask)
        return F.dropout(self.out(out.transpose(1, 2).flatten(2)), self.dropout, self.training)


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the attention product in three steps.

    On a CPU the fused kernel's backward takes three times as long for maps this small.
    """
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ v


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


def feed_forward(options: SmallOptions) -> nn.Sequential:
    """Return the feed-forward part of a layer."""
    hidden = 2 * options.width
    return nn.Sequential(
        nn.Linear(options.width, hidden),
        nn.GELU(),
        nn.Linear(hidden, options.width),
        nn.Dropout(options.dropout),
    )


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
