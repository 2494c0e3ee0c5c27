"""AFM: from an alignment map to the blocks that are hidden. Pure functions.

Formulas: AMLRIS (ICLR 2026), "AFM"; deviations are named where they are made.

    B samples, H W network image, h w alignment grid, b block side in pixels, G = gh*gw blocks,
    gh = ceil(H/b), gw = ceil(W/b) (border blocks are cut)
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from aml.masking.alignment import min_max


class Blocks(NamedTuple):
    """An image cut into blocks."""

    score: torch.Tensor
    """(B, gh, gw) mean alignment over a block's real pixels."""
    real: torch.Tensor
    """(B, gh, gw) real pixels of a block; 0 for a block of letterbox only."""


def real_pixels(real, height: int, width: int) -> torch.Tensor:
    """real (B, 4) int64 top, left, bottom, right of the picture inside its letterbox -> (B, H, W) bool"""
    y, x = torch.arange(height, device=real.device), torch.arange(width, device=real.device)
    top, left, bottom, right = real[:, :, None].unbind(1)
    return ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None]


def block_sums(pixels, block: int) -> torch.Tensor:
    """Sum over each block, border blocks cut.   pixels (B, H, W) float -> (B, gh, gw)"""
    height, width = pixels.shape[1:]
    padded = F.pad(pixels, (0, -width % block, 0, -height % block))
    return padded.unflatten(2, (-1, block)).unflatten(1, (-1, block)).sum((2, 4))


def to_blocks(alignment, pixels, block: int) -> Blocks:
    """alignment (B, h, w) float, pixels (B, H, W) bool -> Blocks; the map is resized bilinearly to the image first (paper, AFM)."""
    fine = F.interpolate(
        alignment[:, None].float(), pixels.shape[1:], mode="bilinear", align_corners=False
    )[:, 0]
    count = block_sums(pixels.float(), block)
    return Blocks(block_sums(fine * pixels, block) / count.clamp(min=1), count)


def weak_blocks(score, candidate, *, tau: float, mode: str, tie, u) -> torch.Tensor:
    """Which blocks match the expression too little.   score (B, G), candidate (B, G) bool, tie (B, G), u (B, 1) draws -> (B, G) bool

    absolute: score < tau. minmax: the same after min-max over the candidates. quantile: the floor(tau n + u) lowest of the n
    candidates, equal scores in the order of `tie`, so that the expected share is exactly tau.
    """
    if mode == "absolute":
        return candidate & (score < tau)
    if mode == "minmax":
        return candidate & (min_max(score, candidate) < tau)
    count = (tau * candidate.sum(1, keepdim=True) + u).floor()
    return candidate & (rank_blocks(score.masked_fill(~candidate, math.inf), tie) < count)


def select_blocks(weak, *, rho, order, u) -> torch.Tensor:
    """floor(rho k + u) of the k weak blocks, those of smallest draw.   weak (B, G) bool, order (B, G), u (B, 1) -> (B, G) bool

    rho is a number, or (B, 1) with one for each sample.
    """
    count = (rho * weak.sum(1, keepdim=True) + u).floor()
    return weak & (rank_blocks(order.masked_fill(~weak, math.inf)) < count)


def select_pixels(weak_pixels, *, rho: float, order) -> torch.Tensor:
    """Paper's rule: each weak pixel is drawn with probability rho and hides its block.   weak_pixels (B, G) counts, order (B, G) -> bool

    One draw a block against P(some pixel drawn) = 1 - (1 - rho)^n has the same distribution as n draws.
    """
    return order < 1 - (1 - rho) ** weak_pixels


def select_released(weak_pixels, *, rho: float, order, block: int) -> torch.Tensor:
    """The released code's rule (AMLRIS, mask_image_with_relevance).   weak_pixels (B, H, W) bool, order (B, H*W) draws -> (B, gh, gw) bool

    It lists each weak pixel as (block number, offset inside the block), cuts both off at the last block's number, draws a share rho of
    the rows without replacement and blanks the blocks that *either* number names. H and W are multiples of block.
    """
    batch, height, width = weak_pixels.shape
    rows = (
        weak_pixels.unflatten(1, (-1, block))
        .unflatten(3, (-1, block))
        .transpose(2, 3)
        .flatten(3)
        .flatten(1, 2)
    )  # (B, G, b*b)
    count = (rho * rows.sum((1, 2))).floor()
    drawn = (rank_blocks(order.masked_fill(~rows.flatten(1), math.inf)) < count[:, None]).view_as(
        rows
    ) & rows
    hidden, last = drawn.any(2), rows.shape[1] - 1
    offsets = drawn.any(1)
    named = min(last, offsets.shape[1])
    hidden[:, :named] |= offsets[:, :named]
    hidden[:, last] |= offsets[:, last:].any(1)
    return hidden.unflatten(1, (height // block, width // block))


def rank_blocks(x, tie=None) -> torch.Tensor:
    """Position of each entry in its row's ascending order; equal entries in the order of `tie`, else of place."""
    first = (
        tie.argsort(1)
        if tie is not None
        else torch.arange(x.shape[1], device=x.device).expand_as(x)
    )
    order = first.gather(1, x.gather(1, first).argsort(dim=1, stable=True))
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(x.shape[1], device=x.device).expand_as(order)
    )


def hide_pixels(x, hidden, block: int, fill: str = "zero", pixels=None) -> torch.Tensor:
    """Blank hidden blocks.   x (B, C, H, W) normalised, hidden (B, gh, gw) bool, pixels (B, H, W) bool real ones -> (B, C, H, W)

    fill zero is the data mean in normalised units; mean is the mean over this image's real pixels.
    """
    mask = blocks_to_pixels(hidden, block, x.shape[2], x.shape[3])[:, None]
    if fill == "zero":
        return x.masked_fill(mask, 0.0)
    weight = torch.ones_like(mask) if pixels is None else pixels[:, None]
    mean = (x * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(mask, mean.to(x.dtype), x)


def blocks_to_pixels(blocks, block: int, height: int, width: int) -> torch.Tensor:
    """Blocks to pixels, border blocks cut.   (B, gh, gw) -> (B, H, W)"""
    return blocks.repeat_interleave(block, 1)[:, :height].repeat_interleave(block, 2)[:, :, :width]
