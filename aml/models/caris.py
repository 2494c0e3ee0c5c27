"""CARIS: two encoders and a pixel decoder in which words and pixels read each other.

Liu et al., ACM MM 2023. Swin sees the picture and BERT the sentence, together with prompts made of
the picture's last map. Six layers then update the words from the maps at 1/32, 1/16 and 1/8 and the
maps from the words, with deformable attention among pixels; learned background prompts travel with
the words. At 1/4 each pixel is compared with [CLS] and with the mean background prompt: the logit
is the difference, so that its sigmoid is the softmax of the pair.

A backbone of timm with such maps may stand in for Swin, and another text encoder of transformers
for BERT. BERT's prompts are joined behind its embeddings with their places, those of another
encoder behind the vectors of its tokens, to which it adds the places itself.

    B samples, H W image, h w a map, N places of the three maps, C decoder width, L tokens,
    P background prompts, D text width
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from aml.models.base import Features, Model
from aml.models.decoders.caris import POOLS, PixelDecoder, small_weights
from aml.models.encoders import bert, swin
from aml.models.encoders.backbone import TABLES, Pyramid, check_weights, plan_pyramid
from aml.models.encoders.text import check_text, is_bert, prompted_encoder, read_prompted
from aml.models.options import CarisOptions
from aml.models.options.base import Traits, traits_of
from aml.models.options.compose import PRETRAINED, RANDOM


class Caris(Model):
    """CARIS, see the module. Alignment is read from:

    - encoder: the backbone's last map (Swin's normalised) and the text encoder's output (1024 and
      768 wide as published), which has read the prompts and so the picture;
    - joint: keys of the 1/16 map and queries of the words in the decoder's first attention, words
      reading pixels (equal widths, all heads); of its three levels the one with a place for every
      32-px block when stage 1 sees the image at half size;
    - prediction: the sigmoid of the logits.
    """

    name, sources = CarisOptions.name, CarisOptions.sources
    image_multiple, fuses = CarisOptions.image_multiple, CarisOptions.fuses
    encoders = ("visual.", "text.")

    def __init__(self, options: CarisOptions, vocabulary: list[str], assets: dict | None = None):
        super().__init__(options, vocabulary, assets)
        self.roles: Callable[..., tuple[torch.Tensor, torch.Tensor]]
        self.reads_bert = "bert" in assets if assets else is_bert(options.text)
        if self.reads_bert:
            self.text, words, self.assets = bert.bert(options, self.vocabulary, self.assets)
            self.mask_token, self.special_tokens = words.mask, words.special
            self.word_ids = words.word_ids
            self.tokenise, self.roles = words, words.words
        else:
            self.text, pieces, self.assets = prompted_encoder(
                options.text, options.max_tokens, PROMPTS, self.assets
            )
            self.take_tokens(pieces)
            self.tokenise, self.roles = pieces, pieces.roles
        self.visual: Any
        if options.backbone in swin.SWINS:
            self.normalise = swin.Normalise()
            self.visual = swin.Swin(
                options.backbone,
                options.window,
                options.drop_path,
                False if assets else options.pretrained,
            )
        else:
            self.visual = Pyramid(options.backbone, timm_weights(options), read=not assets)
            self.normalise = swin.Normalise(self.visual.mean, self.visual.std)
        width = self.text.config.hidden_size
        read = self.text.get_input_embeddings().embedding_dim  # ELECTRA's and ALBERT's are narrower
        self.prompts = LanguagePrompts(self.visual.channels[3], read)
        self.decoder = PixelDecoder(self.visual.channels, width, options)
        self.no_decay = bert.undecayed(
            self, *TABLES, "embeddings", "prompts.learned", "decoder.background"
        )

    @classmethod
    def traits(cls, options: CarisOptions) -> Traits:
        """Return what settings are checked against, before the model is built.

        Raises:
            UserError: A backbone or text encoder that cannot be taken, weights that are not here.
        """
        if options.backbone not in swin.SWINS:
            plan_pyramid(options.backbone, swin.SWINS)
            check_weights(options.backbone, timm_weights(options), "pretrained")
        if options.text != CarisOptions().text:
            check_text(options.text)
        return traits_of(options, image_multiple=cls.image_multiple, drops=cls.drops)

    def encode(self, x):
        return self.visual(x)

    def decode(self, maps, tokens, token_mask):
        logits = self.decoder(maps, self._read(maps[3], tokens, token_mask), token_mask)
        # To image size here, since the published weights learned with corners aligned.
        return F.interpolate(
            logits[:, None].float(), scale_factor=4, mode="bilinear", align_corners=True
        )[:, 0]

    def features(self, x, tokens, token_mask, upto: str, maps=None) -> Features:
        maps = self.encode(x) if maps is None else maps
        text = self._read(maps[3], tokens, token_mask)
        visual, text = self.decoder.joint(maps, text) if upto == "joint" else (maps[3], text)
        return Features(visual, text, *self.roles(tokens, token_mask))

    def _read(self, last, tokens, token_mask):
        read = bert.read if self.reads_bert else read_prompted
        return read(self.text, tokens, token_mask, self.prompts(last))


def timm_weights(options: CarisOptions) -> str:
    """Return the weights of a timm backbone as `build_backbone` takes them."""
    given = options.pretrained
    return given if isinstance(given, str) else PRETRAINED if given else RANDOM


PROMPTS = sum(side * side for side in POOLS)
"""Vectors that the text encoder reads of the picture."""


class LanguagePrompts(nn.Module):
    """Makes of the last map (B, C, h, w) what the text encoder reads of the picture, (B, 5, D').

    D' is the width of its embeddings.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(channels, width) for _ in POOLS])
        self.outer = nn.ModuleList([nn.Linear(width, width) for _ in POOLS])
        self.learned = nn.Parameter(torch.randn(PROMPTS, width))
        self.norm = nn.LayerNorm(width)
        self.apply(small_weights)

    def forward(self, last):
        pooled = [F.adaptive_avg_pool2d(last, side).flatten(2).mT for side in POOLS]
        seen = [
            outer(inner(p).relu())
            for p, inner, outer in zip(pooled, self.inner, self.outer, strict=True)
        ]
        return self.norm(self.learned + torch.cat(seen, 1))
