"""The small model: learns referring segmentation from scratch on a CPU.

Residual convolutions with GroupNorm at 1/4, 1/8 and 1/16; a 2-layer text transformer over words;
the decoder of aml.models.decoders.places.
"""

import torch
from torch import nn

from aml.models.base import Tokens
from aml.models.decoders.places import PlaceDecoder, Residual, norm
from aml.models.encoders.words import Text, Words
from aml.models.options import SmallOptions

MEAN, STD = 118.0, 64.0
"""Grey level and spread that normalise a picture: about those of COCO and the drawn scenes."""


class Small(PlaceDecoder):
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
    mask_token, special_tokens = Words.mask_token, Words.special_tokens

    def __init__(self, options: SmallOptions, vocabulary: list[str], assets: dict | None = None):
        super().__init__(options, vocabulary)
        self.tokens = Words(self.vocabulary, options.max_words + 1)
        self.word_ids = self.tokens.word_ids
        width, stem = options.width, options.stem
        self.text = Text(
            len(self.tokens), self.tokens.length, width, options.heads, options.dropout
        )
        self.stage4 = stage(nn.Conv2d(3, stem, 7, 4, 3), options.blocks)
        self.stage8 = stage(nn.Conv2d(stem, width, 3, 2, 1), options.blocks)
        self.stage16 = stage(nn.Conv2d(width, width, 3, 2, 1), options.blocks)
        self.add_decoder(
            width=width,
            stem=stem,
            layers=options.layers,
            heads=options.heads,
            dropout=options.dropout,
        )

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """Return uint8 images as float with mean 0."""
        return (image.float() - MEAN) / STD

    def tokenise(self, sentences: list[str]) -> Tokens:
        """Return words as ids, the pooling token first; UNKNOWN for words not in vocabulary."""
        return self.tokens(sentences)

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps at 1/4, 1/8 and 1/16."""
        fine = self.stage4(x)
        middle = self.stage8(fine)
        return [fine, middle, self.stage16(middle)]


def stage(down: nn.Conv2d, blocks: int) -> nn.Sequential:
    """Return a stage: a convolution that makes the map smaller, then residual blocks."""
    width = down.out_channels
    return nn.Sequential(down, norm(width), *[Residual(width) for _ in range(blocks)])
