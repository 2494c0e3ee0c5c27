"""LAVT: words are fused into the picture inside the visual encoder (Yang et al., CVPR 2022).

After each stage of Swin every place reads the sentence (pixel-word attention); what it read goes to
the decoder and, through a gate, back into the map that the next stage sees. A light decoder merges
the four fused maps from coarse to fine; the logit is the difference of its two channels, so that
its sigmoid is the softmax of the pair.

    B samples, H W image, h w a map, N = h*w places, C its channels, L tokens, D text width
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from aml.models.base import Features, Model
from aml.models.encoders import bert, swin
from aml.models.options import LavtOptions

FROZEN_LAYERS = 2
"""Last layers of BERT that LAVT's training leaves as they are, beside its embeddings."""


class Lavt(Model):
    """LAVT, see the module.

    Words enter after the first of four stages, so no deep map is free of them. Alignment is read
    from:

    - encoder: the last stage's map before its own fusion, which has read the words of three stages,
      and BERT's output (1024 and 768 wide);
    - joint: queries of the first stage's places and keys of the words, as its pixel-word attention
      multiplies them (equal widths); the map at 1/4 that two blocks made and no word has touched;
    - prediction: the sigmoid of the logits.

    The model pools no token; `pooled` is [CLS].
    """

    name, sources = LavtOptions.name, LavtOptions.sources
    image_multiple, fuses = LavtOptions.image_multiple, LavtOptions.fuses
    encoders = ("visual.", "text.")

    def __init__(self, options: LavtOptions, vocabulary: list[str], assets: dict | None = None):
        super().__init__(options, vocabulary, assets)
        self.normalise = swin.Normalise()
        self.text, words, self.assets = bert.bert(options, self.vocabulary, self.assets)
        self.tokens = words
        self.tokenise = words
        self.mask_token = words.mask
        self.special_tokens = words.special
        self.word_ids = words.word_ids
        self.visual = swin.Swin(
            options.backbone,
            options.window,
            options.drop_path,
            False if assets else options.pretrained,
        )
        channels, width = self.visual.channels, self.text.config.hidden_size
        self.fusion = nn.ModuleList([PixelWords(c, width) for c in channels])
        # behind the last stage nothing would read a gated map
        self.gates = nn.ModuleList([gate(c) for c in channels[:3]])
        self.decoder = Decoder(channels, options.norm)
        self.no_decay = bert.undecayed(self, swin.TABLE)
        if options.text != "words":
            for part in (self.text.embeddings, *self.text.encoder.layer[-FROZEN_LAYERS:]):
                part.requires_grad_(False)

    def forward(  # type: ignore[override]  # no maps before the words, so neither visible nor upto
        self, x: torch.Tensor, tokens: torch.Tensor, token_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return logits (B, H, W)."""
        text = bert.read(self.text, tokens, token_mask)
        x, maps = self.visual.embed(x), []
        for i in range(4):
            x, fused = self._stage(i, x, text, token_mask)
            maps.append(self.visual.out(i, fused))
        # To image size here, since the published weights learned with corners aligned.
        logits = self.decoder(maps).float()
        return F.interpolate(logits[:, None], scale_factor=4, mode="bilinear", align_corners=True)[
            :, 0
        ]

    def features(  # type: ignore[override]  # no maps before the words
        self, x: torch.Tensor, tokens: torch.Tensor, token_mask: torch.Tensor, upto: str
    ) -> Features:
        """Return what alignment is computed from, see the class."""
        text, x = bert.read(self.text, tokens, token_mask), self.visual.embed(x)
        if upto == "joint":
            x = self.visual.stage(0, x)
            first = cast(PixelWords, self.fusion[0])
            visual, text = first.joint(x.flatten(1, 2), text)
            visual = visual.mT.unflatten(2, x.shape[1:3])
        else:
            for i in range(3):
                x, _ = self._stage(i, x, text, token_mask)
            visual = self.visual.stage(3, x).permute(0, 3, 1, 2)
        return Features(visual, text, *self.tokens.words(tokens, token_mask))

    def _stage(self, i: int, x, text, token_mask):
        """Run Swin's stage i and its fusion on a map (B, h, w, C).

        Returns:
            What stage i + 1 sees and what the decoder sees, of the same shape.
        """
        x = self.visual.stage(i, x)
        fused = self.fusion[i](x.flatten(1, 2), text, token_mask).unflatten(1, x.shape[1:3])
        return (x + self.gates[i](fused) * fused if i < 3 else x), fused


class PixelWords(nn.Module):
    """Pixel-word attention: what each place reads of the sentence is multiplied into the place.

    It takes places (B, N, C), text (B, L, D) and token_mask (B, L) and gives (B, N, C).
    """

    def __init__(self, channels: int, text_width: int):
        super().__init__()
        self.place, self.query, self.out, self.mix = (
            nn.Linear(channels, channels) for _ in range(4)
        )
        self.key, self.value = nn.Linear(text_width, channels), nn.Linear(text_width, channels)

    def forward(self, places, text, token_mask):
        queries, keys = self.joint(places, text)
        scores = queries * queries.shape[2] ** -0.5 @ keys.mT
        looked = scores.masked_fill(~token_mask[:, None], -torch.inf).softmax(2) @ self.value(text)
        return F.gelu(self.mix(F.gelu(self.place(places)) * over_places(self.out(looked))))

    def joint(self, places, text):
        """Return the pair that is multiplied: queries (B, N, C), keys (B, L, C)."""
        return over_places(self.query(places)), self.key(text)


class Decoder(nn.Module):
    """Merges fused maps at 1/4 to 1/32 from coarse to fine into logits (B, h, w) at 1/4.

    Each is joined with the next finer one, and two convolutions follow.
    """

    def __init__(self, channels: list[int], kind: str):
        super().__init__()
        hidden = channels[3] // 2
        inputs = [channels[3] + channels[2], hidden + channels[1], hidden + channels[0]]
        self.merge = nn.ModuleList(
            [nn.Sequential(*_conv(c, hidden, kind), *_conv(hidden, hidden, kind)) for c in inputs]
        )
        self.head = nn.Conv2d(hidden, 2, 1)

    def forward(self, maps):
        *rest, x = maps
        for merge, finer in zip(self.merge, rest[::-1], strict=True):
            x = merge(
                torch.cat(
                    [F.interpolate(x, finer.shape[2:], mode="bilinear", align_corners=True), finer],
                    1,
                )
            )
        background, foreground = self.head(x).unbind(1)
        return foreground - background


class FrozenBatchNorm(nn.Module):
    """Batch normalisation of (B, C, h, w) by fixed statistics; scale and shift are trained."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False
        )


def _conv(channels: int, width: int, kind: str):
    norm = nn.GroupNorm(math.gcd(32, width), width) if kind == "group" else FrozenBatchNorm(width)
    return nn.Conv2d(channels, width, 3, padding=1, bias=False), norm, nn.ReLU()


def gate(channels: int) -> nn.Sequential:
    """Return the layers that say how much of what a place read goes on, channels in [-1, 1]."""
    first = nn.Linear(channels, channels, bias=False)
    second = nn.Linear(channels, channels, bias=False)
    for layer in (first, second):
        nn.init.trunc_normal_(layer.weight, std=0.02)
    return nn.Sequential(first, nn.ReLU(), second, nn.Tanh())


def over_places(x: torch.Tensor) -> torch.Tensor:
    """Return x (B, N, C), each channel of each sample normalised over its places."""
    return F.layer_norm(x.mT, x.shape[1:2]).mT
