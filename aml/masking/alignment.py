"""PMME: how well each patch of an image matches an expression. Pure functions.

Formulas: AMLRIS (ICLR 2026), "PMME"; deviations are named where they are made.

    B samples, h w alignment grid, N = h*w patches, L tokens, D features
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

FLAT = 1e-6
"""Smallest span of a map; one whose maximum and minimum differ by less is constant.

Such a map says nothing, and no block of it is weak.
"""


class Alignment(NamedTuple):
    """Scores of how well the patches of a batch match their expressions."""

    map: torch.Tensor
    """(B, h, w) float in [0, 1]: how well a patch matches the expression; of words (B, 1, L)."""
    informative: torch.Tensor
    """(B,) bool: the map is not constant over the image."""
    known: torch.Tensor | None = None
    """(B, gh, gw) bool: blocks whose alignment is known; None: all (see aml.masking.stage1)."""


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def similarity(
    visual: torch.Tensor,
    text: torch.Tensor,
    *,
    normalise: bool = True,
    scale: float = 1.0,
    w_i: torch.Tensor | None = None,
    w_t: torch.Tensor | None = None,
    b_t: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return s_nl = scale <v'_n, t'_l> of every patch n and token l (paper, PMME).

    The projections come after the l2 norm, as the paper writes it; None leaves features as they
    are.

    Args:
        visual: (B, N, D_v).
        text: (B, L, D_t).
        normalise: Bring features to l2 norm 1 first.
        scale: Factor of the product.
        w_i: (D_a, D_v), projects the patches.
        w_t: (D_a, D_t), projects the tokens.
        b_t: (D_a,), the bias of a Linear on the text's side (released code).

    Returns:
        (B, N, L) float32.
    """
    visual = visual.float()
    text = text.float()
    if normalise:
        visual = F.normalize(visual, dim=-1)
        text = F.normalize(text, dim=-1)
    if w_i is not None:
        visual = visual @ w_i.mT
    if w_t is not None:
        text = F.linear(text, w_t, b_t)
    return scale * visual @ text.mT


def patch_scores(
    s: torch.Tensor, score: str, kept: torch.Tensor, pooled: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """Return one score a patch in [0, 1] out of similarities.

    Args:
        s: (B, N, L) similarities.
        score: Name of the score, see aml.score.
        kept: (B, L) bool, the tokens that take part.
        pooled: (B, L) bool, the token that stands for the sentence.
        real: (B, N) bool, patches with some of the picture.

    Returns:
        (B, N) float32.
    """
    if score == "sentence":
        return min_max((s * pooled[:, None]).sum(-1), real)
    s = s.masked_fill(~kept[:, None], -math.inf)
    if score == "token_softmax":
        # without any kept token the softmax is over nothing
        return s.softmax(-1).amax(-1).nan_to_num(0.0)
    if score == "patch_softmax":
        p = s.masked_fill(~real[..., None], -math.inf).softmax(1)
        return (p / p.amax(1, keepdim=True)).nan_to_num(0.0).amax(-1)
    return min_max(s.amax(-1).nan_to_num(neginf=0.0), real)  # cosine


def word_scores(
    s: torch.Tensor, score: str, kept: torch.Tensor, words: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """Return one score a word in [0, 1] out of similarities: that of its best patch.

    token_softmax is the highest share of a patch's softmax over tokens, patch_softmax that of the
    word's softmax over patches, cosine the highest similarity, min-max over the sentence.

    Args:
        s: (B, N, L) similarities.
        score: Name of the score, see aml.score; sentence has none a word.
        kept: (B, L) bool, the tokens that take part.
        words: (B, L) bool, the words.
        real: (B, N) bool, patches with some of the picture.

    Returns:
        (B, L) float32.
    """
    if score == "token_softmax":
        s = s.masked_fill(~kept[:, None], -math.inf).softmax(-1).nan_to_num(0.0)
    s = s.masked_fill(~real[..., None], -math.inf)
    if score == "patch_softmax":
        s = s.softmax(1)
    best = s.amax(1).nan_to_num(neginf=0.0)
    return min_max(best, words) if score == "cosine" else best


def token_entropy(s: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the mean of entropy(softmax over kept tokens) / log(tokens) over patches and samples.

    Samples with fewer than two kept tokens have no entropy to speak of and are left out.

    Args:
        s: (B, N, L) similarities.
        kept: (B, L) bool.
    """
    total, several = _token_entropies(s, kept)
    return total / several.clamp(min=1)


def _token_entropies(s: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the sum over the samples with two kept tokens or more, and their number, as (2,)."""
    log_p = s.masked_fill(~kept[:, None], -math.inf).log_softmax(-1)
    entropy = -(log_p.exp() * log_p.masked_fill(~kept[:, None], 0)).sum(-1).mean(1)
    tokens = kept.sum(1)
    several = tokens >= 2
    share = entropy / tokens.clamp(min=2).float().log()
    return torch.stack([torch.where(several, share, 0.0).sum(), several.sum().float()])


def solve_scale(
    s: torch.Tensor, kept: torch.Tensor, mean: Callable[[torch.Tensor], torch.Tensor] = _same
) -> float:
    """Return the scale at which `token_entropy` is 0.5, by bisection of its logarithm.

    Args:
        s: (B, N, L) similarities at scale 1.
        kept: (B, L) bool.
        mean: Averages a tensor over the ranks.
    """
    low = math.log(1e-3)
    high = math.log(1e5)
    for _ in range(40):
        middle = (low + high) / 2
        total, several = mean(_token_entropies(s * math.exp(middle), kept)).tolist()
        # ranks may hold different numbers of such samples: sums meet, not means
        if total > 0.5 * several:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def min_max(x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return each row of x (B, N) stretched to [0, 1] over its real entries (B, N) bool.

    A constant row becomes 0: rounding errors are not stretched.
    """
    low = x.masked_fill(~real, math.inf).amin(1, keepdim=True)
    high = x.masked_fill(~real, -math.inf).amax(1, keepdim=True)
    span = high - low
    return ((x - low) / span.clamp(min=FLAT)).clamp(0, 1) * (span >= FLAT)
