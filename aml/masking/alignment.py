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

"""A map whose maximum and minimum differ by less is constant: it says nothing, and no block of it is weak."""


class Alignment(NamedTuple):
    map: torch.Tensor
    """(B, h, w) float in [0, 1]: how well a patch matches the expression."""
    informative: torch.Tensor
    """(B,) bool: the map is not constant over the image."""


def similarity(
    visual, text, *, normalise: bool = True, scale: float = 1.0, w_i=None, w_t=None, b_t=None
) -> torch.Tensor:
    """s_nl = scale <v'_n, t'_l> (paper, PMME).   visual (B, N, D_v), text (B, L, D_t) -> (B, N, L) float32

    w_i (D_a, D_v) and w_t (D_a, D_t) project after the l2 norm, as the paper writes it; None leaves the features as they are.
    b_t (D_a,) is the bias of a text-side Linear (released code).
    """
    visual, text = visual.float(), text.float()
    if normalise:
        visual, text = F.normalize(visual, dim=-1), F.normalize(text, dim=-1)
    if w_i is not None:
        visual = visual @ w_i.mT
    if w_t is not None:
        text = F.linear(text, w_t, b_t)
    return scale * visual @ text.mT


def patch_scores(s, score: str, kept, pooled, real) -> torch.Tensor:
    """Similarities to one score a patch in [0, 1].   s (B, N, L); kept, pooled (B, L) bool; real (B, N) bool -> (B, N)"""
    if score == "sentence":
        return min_max((s * pooled[:, None]).sum(-1), real)
    s = s.masked_fill(~kept[:, None], -math.inf)
    if score == "token_softmax":
        return (
            s.softmax(-1).amax(-1).nan_to_num(0.0)
        )  # no kept token at all: a softmax over nothing
    if score == "patch_softmax":
        p = s.masked_fill(~real[..., None], -math.inf).softmax(1)
        return (p / p.amax(1, keepdim=True)).nan_to_num(0.0).amax(-1)
    return min_max(s.amax(-1).nan_to_num(neginf=0.0), real)  # cosine


def token_entropy(s, kept) -> torch.Tensor:
    """Mean over patches and samples of entropy(softmax over kept tokens) / log(tokens).   s (B, N, L), kept (B, L) -> ()

    Samples with fewer than two kept tokens have no entropy to speak of and are left out.
    """
    total, several = _token_entropies(s, kept)
    return total / several.clamp(min=1)


def _token_entropies(s, kept) -> torch.Tensor:
    """Sum over the samples with two kept tokens or more, and their number.   -> (2,)"""
    log_p = s.masked_fill(~kept[:, None], -math.inf).log_softmax(-1)
    entropy = -(log_p.exp() * log_p.masked_fill(~kept[:, None], 0)).sum(-1).mean(1)
    tokens = kept.sum(1)
    several = tokens >= 2
    share = entropy / tokens.clamp(min=2).float().log()
    return torch.stack([torch.where(several, share, 0.0).sum(), several.sum().float()])


def solve_scale(s, kept, mean: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> float:
    """The scale at which `token_entropy` is 0.5, by bisection in log scale.   s (B, N, L) at scale 1; `mean` averages a tensor over ranks."""
    low, high = math.log(1e-3), math.log(1e5)
    for _ in range(40):
        middle = (low + high) / 2
        total, several = mean(_token_entropies(s * math.exp(middle), kept)).tolist()
        too_flat = (
            total > 0.5 * several
        )  # ranks may hold different numbers of such samples: sums meet, not means
        low, high = (middle, high) if too_flat else (low, middle)
    return math.exp((low + high) / 2)


def min_max(x, real):
    """Each row stretched to [0, 1] over its real entries; a constant row becomes 0.   x (B, N), real (B, N) bool -> (B, N)"""
    low = x.masked_fill(~real, math.inf).amin(1, keepdim=True)
    high = x.masked_fill(~real, -math.inf).amax(1, keepdim=True)
    span = high - low
    return ((x - low) / span.clamp(min=FLAT)).clamp(0, 1) * (
        span >= FLAT
    )  # a constant row stays constant: no stretched rounding
