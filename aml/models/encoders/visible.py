"""Vision transformers that read the visible patches of an image alone (aml.fill drop).

Images of a batch may hide different numbers of patches. As many tokens are read of each as the
image with most visible ones has; the rest pads, and no token attends to it.

    B samples, N tokens (class token and registers first), K tokens that are read, C width
"""

import math
from typing import NamedTuple

import torch


class VisibleTokens(NamedTuple):
    """The tokens of a batch that a transformer reads."""

    places: torch.Tensor
    """(B, K) int64: the tokens that are read, no two of an image alike."""
    kept: torch.Tensor
    """(B, K) bool: those of `places` that are visible; the others pad."""
    total: int
    """N, how many tokens a whole image has."""

    def gather(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states (B, K, C) of the tokens that are read, of all states (B, N, C)."""
        return states.gather(1, self.places[:, :, None].expand(-1, -1, states.shape[2]))

    def bias(self, states: torch.Tensor) -> torch.Tensor:
        """Return what is added to attention, (B, 1, 1, K) of the states' type: -inf at padding.

        In an image without any visible token padding attends to itself, since a softmax over
        nothing is NaN.
        """
        bias = torch.zeros_like(self.kept, dtype=states.dtype)
        padding = ~self.kept & self.kept.any(1, keepdim=True)
        return bias.masked_fill(padding, -math.inf)[:, None, None]

    def spread(self, states: torch.Tensor) -> torch.Tensor:
        """Return states (B, K, C) at their places among all tokens, zero elsewhere: (B, N, C)."""
        whole = states.new_zeros(len(states), self.total, states.shape[2])
        index = self.places[:, :, None].expand_as(states)
        return whole.scatter(1, index, states * self.kept[:, :, None])


def visible_tokens(visible: torch.Tensor, patch: int, prefix: int) -> VisibleTokens:
    """Return which tokens are read.

    Args:
        visible: (B, H, W) bool, the same throughout a patch.
        patch: Side of a patch in pixels.
        prefix: How many tokens without a place come first; they are always read.
    """
    seen = visible[:, ::patch, ::patch].flatten(1)
    seen = torch.cat([seen.new_ones(len(seen), prefix), seen], 1)
    places = (~seen).byte().argsort(dim=1, stable=True)  # visible ones first
    places = places[:, : max(1, int(seen.sum(1).max()))]
    return VisibleTokens(places, seen.gather(1, places), seen.shape[1])
