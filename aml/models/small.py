"""The small model: learns referring segmentation from scratch on a CPU.

Residual convolutions with GroupNorm at 1/4, 1/8 and 1/16; a 2-layer text transformer over words; cross-attention layers in
which every place of the 1/8 map reads the sentence and then the other places; logits at 1/4. No BatchNorm: a batch of a
rank, of a micro-step or of a masked pass gives each sample the same output.

    B samples, C width, h w the 1/8 map, L tokens
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from aml.data import split_words
from aml.errors import UserError
from aml.models.base import Features, Model

PAD, POOL, UNKNOWN, MASK = range(4)

MEAN, STD = 118.0, 64.0

"""Grey level and spread that normalise a picture: about those of COCO and of the generated scenes."""


@dataclass(frozen=True, kw_only=True)
class SmallOptions:
    """Options of the small model."""

    width: int = 192
    """Channels of the 1/8 and 1/16 maps, of words and of attention; a multiple of heads and of 8."""
    stem: int = 64
    """Channels of the 1/4 map; a multiple of 8."""
    blocks: int = 1
    """Residual blocks a stage."""
    layers: int = 2
    """Cross-attention layers, at least 2."""
    heads: int = 4
    max_words: int = 20
    """Longer sentences are cut."""
    dropout: float = 0.1

    def __post_init__(self):
        if self.width % 8 or self.stem % 8 or self.width % self.heads:
            raise UserError(
                f"model.width {self.width} and model.stem {self.stem} must be multiples of 8, and width of model.heads {self.heads}"
            )
        if min(self.blocks, self.max_words) < 1 or self.layers < 2 or not 0 <= self.dropout < 1:
            raise UserError(
                f"model.blocks {self.blocks}, layers {self.layers}, max_words {self.max_words}, dropout {self.dropout}: "
                "blocks and max_words must be at least 1, layers at least 2, dropout in [0, 1)"
            )


class Small(Model):
    """See the module. Alignment sources:

    encoder     the 1/16 map before any word was read, and the text transformer's output (equal widths)
    joint       the 1/8 queries and word keys that the first cross-attention multiplies (equal widths, all heads)
    prediction  the sigmoid of the logits
    """

    name = "small"
    sources = ("encoder", "joint", "prediction")
    image_multiple = 16
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
        self.bias = nn.Parameter(
            torch.tensor(-3.0)
        )  # a referent covers a few per cent: start near that

    def normalise(self, image):
        return (image.float() - MEAN) / STD

    def tokenise(self, sentences: list[str]):
        """Words to ids, the pooling token first; UNKNOWN for a word outside the vocabulary."""
        length = self.options.max_words + 1
        tokens = torch.full((len(sentences), length), PAD)
        for row, sentence in zip(tokens, sentences, strict=True):
            ids = [POOL, *(self.ids.get(word, UNKNOWN) for word in split_words(sentence))][:length]
            row[: len(ids)] = torch.tensor(ids)
        return tokens, tokens != PAD

    def features(self, x, tokens, token_mask, upto: str, maps=None) -> Features:
        maps = self.encode(x) if maps is None else maps
        text = self.text(tokens, token_mask)
        pooled = torch.zeros_like(token_mask)
        pooled[:, 0] = True
        if upto == "joint":
            place, keys = self.fusion[0].joint(self._places(*maps[1:]).flatten(2).mT, text)
            visual = place.mT.unflatten(2, (x.shape[2] // 8, x.shape[3] // 8))
        else:
            visual, keys = maps[2], text
        return Features(visual, keys, token_mask & ~pooled, pooled)

    def encode(self, x):
        fine = self.stage4(x)
        middle = self.stage8(fine)
        return [fine, middle, self.stage16(middle)]

    def decode(self, maps, tokens, token_mask):
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

    def _places(self, middle, coarse):
        """The 1/8 map with its wider context and where each place is: "left" needs coordinates.   -> (B, C, h, w)"""
        wide = F.interpolate(coarse, middle.shape[2:], mode="bilinear", align_corners=False)
        return self.merge(torch.cat([middle, wide], 1)) + self.place(
            coordinates(*middle.shape[2:], middle)
        )


class Text(nn.Module):
    """Words to context-aware vectors.   tokens (B, L) -> (B, L, C)"""

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
    """Pre-norm self-attention and feed-forward."""

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
    """Places read the sentence, then each other.   places (B, h*w, C), text (B, L, C) -> (B, h*w, C)"""

    def __init__(self, options: SmallOptions):
        super().__init__()
        self.norm = nn.LayerNorm(options.width)
        self.read = Attention(options)
        self.layer = Layer(options)

    def forward(self, places, text, token_mask):
        return self.layer(places + self.read(self.norm(places), text, token_mask))

    def joint(self, places, text):
        """The pair the cross-attention multiplies: (B, h*w, C), (B, L, C)."""
        return self.read.query(self.norm(places)), self.read.key(text)


class Attention(nn.Module):
    """Multi-head attention.   x (B, N, C) asks y (B, M, C); mask (B, M) bool: True may be read."""

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


def plain_attention(q, k, v, mask=None):
    """The same product in three steps: on a CPU the fused kernel's backward takes three times as long for maps this small."""
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


def feed_forward(options: SmallOptions):
    hidden = 2 * options.width
    return nn.Sequential(
        nn.Linear(options.width, hidden),
        nn.GELU(),
        nn.Linear(hidden, options.width),
        nn.Dropout(options.dropout),
    )


def norm(width: int):
    return nn.GroupNorm(8, width)


def coordinates(height: int, width: int, like):
    """Where each cell is: y, x, their sines over one period, their distance from the centre.   -> (1, 6, h, w)"""
    y = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype)[:, None].expand(
        height, width
    )
    x = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype)[None].expand(
        height, width
    )
    return torch.stack([y, x, (torch.pi * y).sin(), (torch.pi * x).sin(), y.abs(), x.abs()])[None]
