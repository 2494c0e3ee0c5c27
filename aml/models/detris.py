"""DETRIS-like: frozen DINOv2 and frozen CLIP text, joined by small adapters; a transformer decoder and a sentence-made kernel on top.

After DETRIS (Huang et al., AAAI 2025). Beside the MLP of every other block stands a bottleneck whose three convolutions (reach 1, 3, 5) each
read all before them; in the visual blocks its places then read the encoded sentence. Three visual levels, gated by the sentence, meet
in a neck; places read the words; logits come from a 3x3 kernel that the sentence makes. Only these parts train.

Where this differs from the published model: GroupNorm for BatchNorm in neck and head, no norm in the adapters, whose input the block's own
LayerNorm has normalised (published for the text: before that norm); adapters start at zero output; padding is never read; attention over the
one sentence vector, which is a linear map, is written as one.

    B samples, L tokens, h w patches, C_v C_t widths of the two encoders, C of neck and decoder
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from aml.errors import UserError
from aml.models import Features, Model
from aml.models.clip_text import (
    END,
    PAD,
    START,
    WORDS,
    PieceTokens,
    WordTokens,
    check_length,
    config_assets,
    freeze,
    pool,
    read_pieces,
    read_weights,
    roles,
    text_states,
)
from aml.models.dino import adapted_states, build_backbone

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, as published, for DINOv2 too."""
SHARE = 0.2
"""Of an adapter's output in what its block adds."""


@dataclass(frozen=True, kw_only=True)
class DetrisOptions:
    """Options of DETRIS-like; the defaults are DETRIS-B. DETRIS-L: vit_large_patch14_reg4_dinov2, adapter_every 4."""

    text: str = "openai/clip-vit-base-patch16"
    """CLIP text encoder: a hub name, a local folder in Hugging Face format, or words: random, the data set's words as tokens, no network."""
    backbone: str = "vit_base_patch14_reg4_dinov2"
    """A timm vision transformer of plain blocks."""
    pretrained: bool | str = True
    """Of the backbone. true: timm's weights. false: random. A path: that file, timm's or DINOv2's own."""
    size: int = 448
    """Side in pixels of the image the position embeddings are stored for; others interpolate them. A multiple of the patch."""
    vit_width: int | None = None
    vit_depth: int | None = None
    vit_heads: int | None = None
    """Replace the backbone's sizes; null: as its name says."""
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    """Sizes of `text: words`, read there only."""
    max_tokens: int = 17
    """Tokens of a sentence, start and end among them; longer ones are cut. Published: 22 for RefCOCOg."""
    adapter_every: int = 2
    """Every so many-th visual block has an adapter, from block adapter_every // 2 on; of the text's blocks every second."""
    visual_adapter: int = 128
    """Bottleneck width; a multiple of 16 and of heads."""
    text_adapter: int = 64
    """A multiple of 16."""
    width: int = 512
    """Of neck and decoder; a multiple of 8 and of heads."""
    layers: int = 3
    """Of the decoder."""
    heads: int = 8
    feed: int = 512
    """Inner width of the decoder's feed-forward layers."""
    dropout: float = 0.1

    def __post_init__(self):
        if self.visual_adapter % 16 or self.visual_adapter % self.heads or self.text_adapter % 16:
            raise UserError(
                f"model.visual_adapter {self.visual_adapter} and text_adapter {self.text_adapter} must be multiples of 16, "
                f"the first of model.heads {self.heads} too"
            )
        if self.width % 8 or self.width % self.heads:
            raise UserError(f"model.width {self.width} must be a multiple of 8 and of model.heads {self.heads}")
        if self.text == WORDS and (self.text_width % self.text_heads or self.text_layers < 2):
            raise UserError(
                f"model.text_width {self.text_width} must be a multiple of model.text_heads {self.text_heads}, text_layers {self.text_layers} at least 2"
            )
        if min(self.adapter_every, self.layers, self.feed) < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"model.adapter_every {self.adapter_every}, layers {self.layers}, feed {self.feed}, dropout {self.dropout}: "
                "the first three must be at least 1, dropout in [0, 1)"
            )


class Detris(Model):
    """See the module. Words are fused into the visual encoder by its adapters, so there is no encode without a sentence. Alignment sources:

    encoder     the last visual block's patches after the final norm, words already read, and the text encoder's output (C_v and C_t)
    joint       the queries of the places and the keys of the tokens that the first visual adapter's attention multiplies (equal widths,
                all heads): before it no word has touched the picture. Stage 1 then runs the text encoder and adapter_every // 2 + 1 blocks
    prediction  the sigmoid of the logits
    """

    name = "detris"
    sources = ("encoder", "joint", "prediction")
    image_multiple = 14
    fuses = True

    def __init__(self, options: DetrisOptions, vocabulary: list[str], assets: dict | None = None):
        super().__init__(options, vocabulary, assets)
        self.tokens, self.text = self._text_encoder()
        self.visual = freeze(build_backbone(options, read=not self.assets))
        self.assets = {"text": config_assets(self.text.config), "tokenizer": self.tokens.assets, "backbone": options.backbone}
        self.image_multiple = self.visual.patch_embed.patch_size[0]
        self.mask_token, self.special_tokens, self.word_ids = self.tokens.mask_token, self.tokens.special_tokens, self.tokens.word_ids
        c_v, c_t, blocks = self.visual.embed_dim, self.text.config.hidden_size, len(self.visual.blocks)
        self.first = options.adapter_every // 2
        self.levels = (blocks // 3, 2 * blocks // 3)
        if self.first >= blocks or self.levels[0] == self.levels[1]:
            raise UserError(
                f"model.backbone {options.backbone} has {blocks} blocks, but adapter_every {options.adapter_every} starts at block "
                f"{self.first} and three levels are read; take a deeper one, or a smaller adapter_every"
            )
        self.visual_adapters = nn.ModuleDict(
            {str(i): VisualAdapter(c_v, c_t, options) for i in range(self.first, blocks, options.adapter_every)},
        )
        self.text_adapters = nn.ModuleDict({str(i): TextAdapter(c_t, options) for i in range(1, self.text.config.num_hidden_layers, 2)})
        c_s = self.text.config.projection_dim
        self.neck = Neck(c_v, c_s, options)
        self.decoder = nn.ModuleList([DecoderLayer(c_t, options) for _ in range(options.layers)])
        self.norm = nn.LayerNorm(options.width)
        self.head = Head(c_s, options)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.text.eval()
        self.visual.eval()
        return self

    def normalise(self, image):
        return (image.float() / 255 - self.mean) / self.std

    def tokenise(self, sentences: list[str]):
        return self.tokens(sentences)

    def forward(self, x, tokens, token_mask):
        text = self._read(tokens, token_mask)
        sentence = self.text.text_projection(pool(text, token_mask))
        grid = self._grid(x)
        levels = [m.mT.unflatten(2, grid) for m in self._look(x, text, token_mask)]
        places = self.neck(levels, sentence).flatten(2).mT
        at, order = positions_2d(grid, places), positions_1d(text)
        for layer in self.decoder:
            places = layer(places, text, at, order, token_mask)
        return self.head(self.norm(places).mT.unflatten(2, grid), sentence)

    def features(self, x, tokens, token_mask, upto: str) -> Features:
        text = self._read(tokens, token_mask)
        if upto == "joint":
            y = adapted_states(self.visual, x, stop=self.first)
            visual, text = self.visual_adapters[str(self.first)].joint(y, self._grid(x), text)
        else:
            visual = self._look(x, text, token_mask)[-1]
        return Features(visual.mT.unflatten(2, self._grid(x)), text, *roles(token_mask))

    def _read(self, tokens, token_mask):
        """-> (B, L, C_t)"""

        def beside(i, y):
            return SHARE * self.text_adapters[str(i)](y, token_mask) if str(i) in self.text_adapters else None

        return text_states(self.text.text_model, tokens, beside)

    def _look(self, x, text, token_mask) -> list:
        """Patches of two inner blocks and, normed, of the last.   -> 3 x (B, h*w, C_v)"""
        grid = self._grid(x)

        def beside(i, y):
            return SHARE * self.visual_adapters[str(i)](y, grid, text, token_mask) if str(i) in self.visual_adapters else None

        return adapted_states(self.visual, x, beside, levels=self.levels)

    def _grid(self, x):
        (h, down), (w, across) = (divmod(side, self.image_multiple) for side in x.shape[2:])
        if down or across:
            raise UserError(f"an image of {x.shape[2]} x {x.shape[3]}: model {self.name} takes multiples of {self.image_multiple}; resize it")
        return h, w

    def _text_encoder(self):
        """-> tokens, the frozen CLIPTextModelWithProjection"""
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        options = self.options
        if options.text == WORDS:
            tokens = WordTokens(self.vocabulary, options.max_tokens)
        else:
            tokens = PieceTokens(self.assets.get("tokenizer") or read_pieces(options.text, "text"), options.max_tokens)
        if self.assets:
            model = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(self.assets["text"]))
        elif options.text == WORDS:
            sizes = {"hidden_size": options.text_width, "intermediate_size": 4 * options.text_width, "projection_dim": options.text_width}
            sizes |= {"num_hidden_layers": options.text_layers, "num_attention_heads": options.text_heads, "vocab_size": len(tokens)}
            model = CLIPTextModelWithProjection(CLIPTextConfig(**sizes, pad_token_id=PAD, bos_token_id=START, eos_token_id=END))
        else:
            model = read_weights(CLIPTextModelWithProjection, options.text, "text", ("clip", "clip_text_model"))
        check_length(options.max_tokens, model.config, "text")
        return tokens, freeze(model)


class Dense(nn.Module):
    """x plus three convolutions of reach 1, 3 and 5, each reading x and those before it.   (B, C, *places) -> the same

    kept (B, 1, *places) bool: other places count as zero, as the border does.
    """

    def __init__(self, width: int, conv: type):
        super().__init__()
        narrow = width // 16
        self.near = conv(width, width // 2, 1)
        self.middle_in, self.middle = conv(width * 3 // 2, narrow, 1), conv(narrow, width // 4, 3, padding=1)
        self.far_in, self.far = conv(width * 7 // 4, narrow, 1), conv(narrow, width // 4, 5, padding=2)
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
        self.down, self.dense, self.up = nn.Linear(c_t, options.text_adapter), Dense(options.text_adapter, nn.Conv1d), zero(options.text_adapter, c_t)

    def forward(self, y, token_mask):
        return self.up(self.dense(self.down(y).relu().mT, token_mask[:, None]).mT)


class VisualAdapter(nn.Module):
    """Beside a visual MLP: places look around, then read the sentence.   y (B, prefix + h*w, C_v) -> the same

    Class and register tokens pass through the bottleneck alone.
    """

    def __init__(self, c_v: int, c_t: int, options: DetrisOptions):
        super().__init__()
        width = options.visual_adapter
        self.down, self.dense, self.up = nn.Linear(c_v, width), Dense(width, nn.Conv2d), zero(width, c_v)
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
        return narrow, self.dense(narrow[:, -grid[0] * grid[1] :].mT.unflatten(2, grid)).flatten(2).mT


class Attention(nn.Module):
    """Multi-head attention of width C.   q (B, N, C) asks k, v (B, M, C_k); kept (B, M) bool: True may be read -> (B, N, C)"""

    def __init__(self, width: int, reads: int, options: DetrisOptions):
        super().__init__()
        self.heads, self.dropout = options.heads, options.dropout
        self.query, self.key, self.value, self.out = (nn.Linear(c, width) for c in (width, reads, reads, width))

    def forward(self, q, k, v, kept=None):
        q, k, v = (f(z).unflatten(2, (self.heads, -1)).transpose(1, 2) for f, z in ((self.query, q), (self.key, k), (self.value, v)))
        mask = None if kept is None else kept[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.dropout if self.training else 0.0)
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
        gated = [level(m) * gate(sentence)[:, :, None, None] for level, gate, m in zip(self.levels, self.gates, maps, strict=True)]
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
        self.feed = nn.Sequential(nn.Linear(c, feed), nn.ReLU(), nn.Dropout(options.dropout), nn.LayerNorm(feed), nn.Linear(feed, c))
        self.drop = nn.Dropout(options.dropout)

    def forward(self, places, text, at, order, token_mask):
        y = self.norms[0](places)
        places = places + self.drop(self.own_norm(self.own(y + at, y + at, y)))
        y = self.norms[1](places)
        places = places + self.drop(self.cross_norm(self.cross(y + at, text + order, text, token_mask)))
        return places + self.drop(self.feed(self.norms[2](places)))


class Head(nn.Module):
    """Four times finer, then a 3 x 3 kernel that the sentence makes.   (B, C, h, w), (B, C_s) -> logits (B, 4h, 4w)"""

    def __init__(self, c_s: int, options: DetrisOptions):
        super().__init__()
        c, half = options.width, options.width // 2
        self.up = nn.Sequential(Double(), unit(c, c, 3), Double(), unit(c, half, 3), nn.Conv2d(half, half, 1))
        self.kernel = nn.Linear(c_s, 9 * half + 1)

    def forward(self, x, sentence):
        x, kernel = self.up(x), self.kernel(sentence)
        weight = kernel[:, :-1].unflatten(1, (x.shape[1], 3, 3))
        # one group a sample: each map meets its own sentence's kernel
        return F.conv2d(x.flatten(0, 1)[None], weight.to(x.dtype), kernel[:, -1].to(x.dtype), padding=1, groups=len(x))[0]


class Double(nn.Module):
    def forward(self, x):
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def unit(c_in: int, c_out: int, side: int):
    """Convolution, GroupNorm, ReLU."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, side, padding=side // 2, bias=False), nn.GroupNorm(math.gcd(32, c_out), c_out), nn.ReLU())


def zero(c_in: int, c_out: int):
    """A linear map that starts at zero: the frozen encoder is where training starts."""
    linear = nn.Linear(c_in, c_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def coordinates(x):
    """Where each cell is, in [-1, 1]: x, y.   (B, C, h, w) -> (B, 2, h, w)"""
    b, _, h, w = x.shape
    across, down = torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype), torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype)
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
    return torch.cat([across[None].expand(h, w, half), down[:, None].expand(h, w, half)], 2).flatten(0, 1)
