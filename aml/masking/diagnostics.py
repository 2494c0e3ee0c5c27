"""Measure what masks did and what they knew.

Sums over samples add over batches and workers; means are taken at the end:

- weak, hidden: share of real pixels in blocks called weak, and hidden; with aml.level words the
  share of words, and then neither the target nor an AUROC is defined;
- hidden_target: share of the target's pixels that is hidden; lift is its ratio to hidden (1: the
  mask knows nothing of the target);
- auroc: probability that a target pixel is better aligned than another pixel (0.5: the alignment
  knows nothing);
- mask_auroc: the same of the mask itself, visible against hidden: how far the holes alone give the
  target away;
- uninformative: share of samples whose alignment map is constant or, with aml.stage1 cached, not
  known yet; nothing is hidden of them.

    B samples, G blocks
"""

from collections.abc import Callable

import torch

from aml.masking.passes import Mask
from aml.masking.selection import block_sums
from aml.metrics import mask_auroc, weighted_auroc

DIAGNOSTICS = ("weak", "hidden", "hidden_target", "auroc", "mask_auroc", "uninformative")


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


class MaskSums:
    """Running sums on the masks' device; nothing waits for the device before `means`."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.sums = torch.zeros(2, len(DIAGNOSTICS), device=device, dtype=torch.float64)

    @torch.no_grad()
    def add(self, mask: Mask, target: torch.Tensor, valid: torch.Tensor, block: int) -> None:
        """Add the masks of a batch.

        Args:
            mask: The masks.
            target: (B, H, W) bool.
            valid: (B,) bool, False for padding.
            block: Side of a block in pixels.
        """
        values = measure_masks(mask, target, block)
        defined = torch.isfinite(values) & valid[:, None]
        self.sums[0] += torch.where(defined, values, 0.0).sum(0)
        self.sums[1] += defined.sum(0)

    def means(
        self, sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] = _same
    ) -> dict[str, float]:
        """Return the mean of each over the samples where it is defined, and the lift.

        What was defined nowhere is left out.
        """
        total, count = sum_over_ranks(self.sums).tolist()
        means = {name: s / n for name, s, n in zip(DIAGNOSTICS, total, count, strict=True) if n}
        if means.get("hidden") and "hidden_target" in means:
            means["lift"] = means["hidden_target"] / means["hidden"]
        return means


def measure_masks(mask: Mask, target: torch.Tensor, block: int) -> torch.Tensor:
    """Return what each mask did and knew.

    Args:
        mask: The masks of a batch.
        target: (B, H, W) bool.
        block: Side of a block in pixels.

    Returns:
        (B, 6) float64 in the order of DIAGNOSTICS; NaN where a quantity is undefined (no target, no
        stage 1, nothing hidden).
    """
    real = mask.blocks.real.flatten(1).double()
    if mask.words:
        on_target = torch.zeros_like(real)
    else:
        on_target = block_sums((target & mask.pixels).float(), block).flatten(1).double()
    weak = mask.weak.flatten(1)
    hidden = mask.hidden.flatten(1)
    shares = [
        (real * weak).sum(1) / real.sum(1),
        (real * hidden).sum(1) / real.sum(1),
        (on_target * hidden).sum(1) / on_target.sum(1),
    ]
    auroc = flat = torch.full_like(real[:, 0], torch.nan)
    if mask.alignment is not None:
        cover = on_target / real.clamp(min=1)
        seen = real > 0
        if mask.alignment.known is not None:
            seen = seen & mask.alignment.known.flatten(1)
        auroc = weighted_auroc(mask.blocks.score.flatten(1).double(), cover, seen)
        flat = (~mask.alignment.informative).double()
    of_mask = torch.where(hidden.any(1), mask_auroc(hidden, on_target, real), torch.nan)
    return torch.stack([*shares, auroc, of_mask, flat], 1)
