"""LAVT: words are fused into the picture inside the visual encoder (Yang et al., CVPR 2022).

After each stage of Swin every place reads the sentence (pixel-word attention); what it read goes to the decoder and, through a gate,
back into the map the next stage sees. A light decoder merges the four fused maps from coarse to fine; the logit is the difference of
its two channels, so that its sigmoid is the softmax of the pair.

    B samples, H W image, h w a map, N = h*w places, C its channels, L tokens, D text width
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from aml.errors import UserError
from aml.models.base import Features, Model
from aml.models.encoders import bert, swin

NORMS = ("group", "batch_frozen")

FROZEN_LAYERS = 2

"""Last layers of BERT that LAVT's training leaves as they are, beside its embeddings."""


@dataclass(frozen=True, kw_only=True)
class LavtOptions:
    """Options of LAVT; the defaults are the published model, but for `norm`."""

    backbone: str = "swin_base"
    """swin_tiny, swin_small, swin_base; swin_test is for tests."""
    window: int = 12
    """Side of Swin's windows, places."""
    pretrained: bool | str = True
    """Swin's weights: true, ImageNet-22k from the hub; a file, the original .pth or timm's; false, random."""
    text: str = "bert-base-uncased"
    """A BERT: hub name, folder in Hugging Face format, or words: a random one that knows the data set's words.
    Of a pretrained one the embeddings and the last two layers are not trained, as published; of a random one everything is."""
    text_width: int = 768
    """With text words only, as text_layers and text_heads: elsewhere the BERT says."""
    text_layers: int = 12
    text_heads: int = 12
    max_tokens: int = 20
    """Longer sentences are cut."""
    norm: str = "group"
    """Of the decoder. group: GroupNorm. batch_frozen: BatchNorm's scale and shift with fixed statistics, for published weights, which
    bring the statistics; the published training updates them with every batch, which no model here does."""
    dropout: float = 0.1
    """Of BERT; nothing else has any."""
    drop_path: float = 0.3
    """Largest share of samples for which a residual branch of Swin is left out."""

    def __post_init__(self):
        bert.check(self)
        if self.norm not in NORMS:
            raise UserError(f"model.norm is {self.norm!r}; known: {', '.join(NORMS)}")


class Lavt(Model):
    """See the module. Words enter after the first of four stages, so no deep map is free of them. Alignment sources:

    encoder     the last stage's map before its own fusion, which has read the words of three stages, and BERT's output (1024 and 768 wide)
    joint       queries of the first stage's places and keys of the words, as its pixel-word attention multiplies them (equal widths);
                the map at 1/4 that two blocks made and no word has touched
    prediction  the sigmoid of the logits

    The model pools no token; `pooled` is [CLS].
    """

    name = "lavt"
    sources = ("encoder", "joint", "prediction")
    image_multiple = 32
    fuses = True
    encoders = ("visual.", "text.")

    def __init__(self, options: LavtOptions, vocabulary: list[str], assets: dict | None = None):
        super().__init__(options, vocabulary, assets)
        self.normalise = swin.Normalise()
        self.text, self.tokenise, self.assets = bert.bert(options, self.vocabulary, self.assets)
        self.mask_token, self.special_tokens, self.word_ids = (
            self.tokenise.mask,
            self.tokenise.special,
            self.tokenise.word_ids,
        )
        self.visual = swin.Swin(
            options.backbone,
            options.window,
            options.drop_path,
            False if assets else options.pretrained,
        )
        channels, width = self.visual.channels, self.text.config.hidden_size
        self.fusion = nn.ModuleList([PixelWords(c, width) for c in channels])
        self.gates = nn.ModuleList(
            [gate(c) for c in channels[:3]]
        )  # behind the last stage nothing would read it
        self.decoder = Decoder(channels, options.norm)
        self.no_decay = bert.undecayed(self, swin.TABLE)
        if options.text != "words":
            for part in (self.text.embeddings, *self.text.encoder.layer[-FROZEN_LAYERS:]):
                part.requires_grad_(False)

    def forward(self, x, tokens, token_mask):
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

    def features(self, x, tokens, token_mask, upto: str) -> Features:
        text, x = bert.read(self.text, tokens, token_mask), self.visual.embed(x)
        if upto == "joint":
            x = self.visual.stage(0, x)
            visual, text = self.fusion[0].joint(x.flatten(1, 2), text)
            visual = visual.mT.unflatten(2, x.shape[1:3])
        else:
            for i in range(3):
                x, _ = self._stage(i, x, text, token_mask)
            visual = self.visual.stage(3, x).permute(0, 3, 1, 2)
        return Features(visual, text, *self.tokenise.words(tokens, token_mask))

    def _stage(self, i: int, x, text, token_mask):
        """Swin's stage i and its fusion.   (B, h, w, C) -> what stage i + 1 sees, what the decoder sees: the same shape"""
        x = self.visual.stage(i, x)
        fused = self.fusion[i](x.flatten(1, 2), text, token_mask).unflatten(1, x.shape[1:3])
        return (x + self.gates[i](fused) * fused if i < 3 else x), fused


class PixelWords(nn.Module):
    """Pixel-word attention: each place's own look at the sentence, multiplied into the place.

    places (B, N, C), text (B, L, D), token_mask (B, L) -> (B, N, C)
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
        """The pair that is multiplied.   -> queries (B, N, C), keys (B, L, C)"""
        return over_places(self.query(places)), self.key(text)


class Decoder(nn.Module):
    """Fused maps at 1/4 to 1/32 -> logits (B, h, w) at 1/4: from coarse to fine, each with the next, two convolutions a time."""

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
    """Batch normalisation by statistics that never change; its scale and shift are trained.   (B, C, h, w) -> the same"""

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


def gate(channels: int):
    """How much of what a place read goes on to the next stage, each channel in [-1, 1]."""
    layers = nn.Sequential(
        nn.Linear(channels, channels, bias=False),
        nn.ReLU(),
        nn.Linear(channels, channels, bias=False),
        nn.Tanh(),
    )
    for layer in (layers[0], layers[2]):
        nn.init.trunc_normal_(layer.weight, std=0.02)
    return layers


def over_places(x):
    """Each channel of each sample normalised over its places (instance normalisation).   (B, N, C) -> the same"""
    return F.layer_norm(x.mT, x.shape[1:2]).mT
