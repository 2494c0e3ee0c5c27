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


def real_pixels(real: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return which pixels of an image are of the picture inside its letterbox.

    Args:
        real: (B, 4) int64 top, left, bottom, right of the picture.
        height: Of the image.
        width: Of the image.

    Returns:
        (B, H, W) bool.
    """
    y = torch.arange(height, device=real.device)
    x = torch.arange(width, device=real.device)
    top, left, bottom, right = real[:, :, None].unbind(1)
    return ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None]


def block_sums(pixels: torch.Tensor, block: int) -> torch.Tensor:
    """Return the sums of pixels (B, H, W) over each block, (B, gh, gw); border blocks are cut."""
    height, width = pixels.shape[1:]
    padded = F.pad(pixels, (0, -width % block, 0, -height % block))
    return padded.unflatten(2, (-1, block)).unflatten(1, (-1, block)).sum((2, 4))


def to_blocks(alignment: torch.Tensor, pixels: torch.Tensor, block: int) -> Blocks:
    """Return the mean alignment of each block.

    The map is resized bilinearly to the image first (paper, AFM).

    Args:
        alignment: (B, h, w) float.
        pixels: (B, H, W) bool, the real ones.
        block: Side of a block in pixels.
    """
    fine = F.interpolate(
        alignment[:, None].float(), pixels.shape[1:], mode="bilinear", align_corners=False
    )[:, 0]
    return block_means(fine, pixels, block)


def block_means(fine: torch.Tensor, pixels: torch.Tensor, block: int) -> Blocks:
    """Return the means of values (B, H, W) over the pixels (B, H, W) bool of each block."""
    count = block_sums(pixels.float(), block)
    return Blocks(block_sums(fine * pixels, block) / count.clamp(min=1), count)


def weak_blocks(
    score: torch.Tensor,
    candidate: torch.Tensor,
    *,
    tau: float,
    mode: str,
    tie: torch.Tensor,
    u: torch.Tensor,
) -> torch.Tensor:
    """Return which blocks match the expression too little.

    Args:
        score: (B, G) alignment.
        candidate: (B, G) bool, the blocks that may be weak.
        tau: The threshold.
        mode: absolute calls weak what has score < tau; minmax the same after min-max over the
            candidates; quantile the floor(tau n + u) lowest of the n candidates, so that the
            expected share is exactly tau.
        tie: (B, G) draws, in whose order equal scores are taken.
        u: (B, 1) draws, for rounding.

    Returns:
        (B, G) bool.
    """
    if mode == "absolute":
        return candidate & (score < tau)
    if mode == "minmax":
        return candidate & (min_max(score, candidate) < tau)
    count = (tau * candidate.sum(1, keepdim=True) + u).floor()
    return candidate & (rank_blocks(score.masked_fill(~candidate, math.inf), tie) < count)


def select_blocks(
    weak: torch.Tensor, *, rho: float | torch.Tensor, order: torch.Tensor, u: torch.Tensor
) -> torch.Tensor:
    """Return floor(rho k + u) of the k weak blocks, those of smallest draw.

    Args:
        weak: (B, G) bool.
        rho: A number, or (B, 1) with one for each sample.
        order: (B, G) draws.
        u: (B, 1) draws, for rounding.

    Returns:
        (B, G) bool.
    """
    count = (rho * weak.sum(1, keepdim=True) + u).floor()
    return weak & (rank_blocks(order.masked_fill(~weak, math.inf)) < count)


def select_pixels(weak_pixels: torch.Tensor, *, rho: float, order: torch.Tensor) -> torch.Tensor:
    """Return the blocks of which some weak pixel is drawn with probability rho (paper's rule).

    One draw a block against P(some pixel drawn) = 1 - (1 - rho)^n has the same distribution as n
    draws.

    Args:
        weak_pixels: (B, G), how many weak pixels a block has.
        rho: Probability of each pixel.
        order: (B, G) draws.

    Returns:
        (B, G) bool.
    """
    return order < 1 - (1 - rho) ** weak_pixels


def select_released(
    weak_pixels: torch.Tensor, *, rho: float, order: torch.Tensor, block: int
) -> torch.Tensor:
    """Return the blocks that the released code hides (AMLRIS, mask_image_with_relevance).

    It lists each weak pixel as (block number, offset inside the block), cuts both off at the last
    block's number, draws a share rho of the rows without replacement and blanks the blocks that
    *either* number names.

    Args:
        weak_pixels: (B, H, W) bool; H and W are multiples of block.
        rho: Share of the rows.
        order: (B, H*W) draws.
        block: Side of a block in pixels.

    Returns:
        (B, gh, gw) bool.
    """
    height, width = weak_pixels.shape[1:]
    cut = weak_pixels.unflatten(1, (-1, block)).unflatten(3, (-1, block))
    rows = cut.transpose(2, 3).flatten(3).flatten(1, 2)  # (B, G, b*b)
    count = (rho * rows.sum((1, 2))).floor()
    rank = rank_blocks(order.masked_fill(~rows.flatten(1), math.inf))
    drawn = (rank < count[:, None]).view_as(rows) & rows
    hidden = drawn.any(2)
    last = rows.shape[1] - 1
    offsets = drawn.any(1)
    named = min(last, offsets.shape[1])
    hidden[:, :named] |= offsets[:, :named]
    hidden[:, last] |= offsets[:, last:].any(1)
    return hidden.unflatten(1, (height // block, width // block))


def rank_blocks(x: torch.Tensor, tie: torch.Tensor | None = None) -> torch.Tensor:
    """Return the position of each entry in its row's ascending order, (B, G) int64.

    Equal entries come in the order of `tie` (B, G), without it in the order of their places.
    """
    places = torch.arange(x.shape[1], device=x.device)
    first = places.expand_as(x) if tie is None else tie.argsort(1)
    order = first.gather(1, x.gather(1, first).argsort(dim=1, stable=True))
    return torch.empty_like(order).scatter_(1, order, places.expand_as(order))


def hide_pixels(
    x: torch.Tensor,
    hidden: torch.Tensor,
    block: int,
    fill: str = "zero",
    pixels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return images with hidden blocks blanked.

    Args:
        x: (B, C, H, W) normalised.
        hidden: (B, gh, gw) bool.
        block: Side of a block in pixels.
        fill: mean is the mean over this image's real pixels; any other is zero, the data mean in
            normalised units.
        pixels: (B, H, W) bool, the real ones; None: all.

    Returns:
        (B, C, H, W).
    """
    mask = blocks_to_pixels(hidden, block, x.shape[2], x.shape[3])[:, None]
    if fill != "mean":
        return x.masked_fill(mask, 0.0)
    weight = torch.ones_like(mask) if pixels is None else pixels[:, None]
    mean = (x * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(mask, mean.to(x.dtype), x)


def blocks_to_pixels(blocks: torch.Tensor, block: int, height: int, width: int) -> torch.Tensor:
    """Return blocks (B, gh, gw) as pixels (B, H, W), border blocks cut."""
    return blocks.repeat_interleave(block, 1)[:, :height].repeat_interleave(block, 2)[:, :, :width]
