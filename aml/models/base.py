"""Architectures, one file each, and the interface the loop and masking know them by.

    name, sources       the model's name; which of encoder, joint, prediction alignment can be read from
    image_multiple      side lengths must be multiples of this
    normalise(image)                       (B, 3, H, W) uint8 -> float, the data mean at 0
    encode(x)                              normalised x -> visual maps [(B, C, h, w), ...], no word read yet
    decode(maps, tokens, token_mask)       those maps -> foreground logits (B, h, w), h and w any fixed share of H and W
    forward(x, tokens, token_mask)         decode(encode(x)). visible= (B, H, W) bool hides places of the maps instead of the image;
                                           upto= a source: returns (logits, Features of the same run of the encoder)
    features(x, tokens, token_mask, upto, maps)  Features at `encoder` or `joint`, no deeper than that needs; maps: encode(x), if at hand
    tokenise(sentences)                    list of str -> tokens (B, L) int64, token_mask (B, L) bool, L fixed
    mask_token, special_tokens, word_ids   ids: what a masked word becomes (None: has none), that are no words, first and end of words
    encoders                               prefixes of the parameters trained at optim.encoder_lr times the rate
    no_decay                               prefixes of parameters never decayed (all 0-d and 1-d ones are not either)
    assets                                 JSON: what a rebuild without network needs (configurations, a tokenizer's vocabulary)

A model that fuses words into its visual encoder sets `fuses = True`, has its own forward(x, tokens, token_mask),
no encode, no decode and no `maps` in features.
A new model is one file with a frozen dataclass of options and a class taking (options, vocabulary, assets), named in MODELS below.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Features(NamedTuple):
    """What alignment is computed from."""

    visual: torch.Tensor
    """(B, D_v, h, w)"""
    text: torch.Tensor
    """(B, L, D_t)"""
    words: torch.Tensor
    """(B, L) bool: tokens that are words of the sentence."""
    pooled: torch.Tensor
    """(B, L) bool: the one token the model pools the sentence into."""


class Model(nn.Module):
    """Defaults of the interface; see the module."""

    name: str
    sources: tuple[str, ...]
    image_multiple = 1
    fuses = False
    encoders: tuple[str, ...] = ()
    no_decay: tuple[str, ...] = ()
    mask_token: int | None = None
    special_tokens: tuple[int, ...] = ()
    word_ids: tuple[int, int]

    def __init__(self, options, vocabulary: list[str], assets: dict | None = None):
        super().__init__()
        self.options, self.vocabulary, self.assets = options, list(vocabulary), dict(assets or {})

    def forward(self, x, tokens, token_mask, visible=None, upto=None):
        maps = self.encode(x)
        logits = self.decode(
            maps if visible is None else self.see(maps, visible), tokens, token_mask
        )
        if upto is None:
            return logits
        with torch.no_grad():
            return logits, self.features(x, tokens, token_mask, upto, [m.detach() for m in maps])

    def see(self, maps, visible):
        """Maps with hidden places at zero, partly hidden ones by their visible share.   visible (B, H, W) bool"""
        return [
            m * F.interpolate(visible[:, None].to(m.dtype), m.shape[2:], mode="area") for m in maps
        ]


def word_range(special: tuple[int, ...], size: int) -> tuple[int, int]:
    """First and end of the longest run of ids, of `size`, that holds no special token."""
    stops = sorted({-1, *special, size})
    return max(
        ((a + 1, b) for a, b in zip(stops, stops[1:], strict=False)),
        key=lambda run: run[1] - run[0],
    )
