"""Losses of each sample: cross-entropy against the mask, or against a soft target."""

import torch
import torch.nn.functional as F

from aml.masking import Pass


def pass_losses(logits: torch.Tensor, mask: torch.Tensor, one: Pass, kind: str) -> torch.Tensor:
    """Return the loss of each sample of a pass, (B,).

    Args:
        logits: (B, h, w) float.
        mask: (B, H, W) bool, the ground truth; a pass with a soft target learns that, or both.
        one: The pass.
        kind: Name of the loss, see optim.loss.
    """
    if one.soft is None:
        return sample_losses(logits, mask, kind, one.counted)
    soft = soft_losses(logits, one.soft)
    if one.soft_share == 1:
        return soft
    hard = sample_losses(logits, mask, kind, one.counted)
    return one.soft_share * soft + (1 - one.soft_share) * hard


def sample_losses(
    logits: torch.Tensor, mask: torch.Tensor, kind: str, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the segmentation loss of each sample, (B,).

    Args:
        logits: (B, h, w) float.
        mask: (B, H, W) bool, the ground truth.
        kind: ce is two-class cross-entropy at image size with weights 0.9 and 1.1, as LAVT and
            CARIS train: a foreground logit z is the pair (0, z). bce has no weights (CRIS, DETRIS).
            ce+dice adds 1 - Dice.
        counted: (B, H, W) bool; other pixels are left out, and a sample that counts none has
            loss 0. None: all count.
    """
    z = F.interpolate(logits[:, None], mask.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    y = mask.to(z.dtype)
    weight = torch.ones_like(y) if kind == "bce" else 0.9 + 0.2 * y
    if counted is not None:
        weight = weight * counted
    each = F.binary_cross_entropy_with_logits(z, y, weight, reduction="none")
    loss = each.flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1)
    if kind == "ce+dice":
        seen = 1 if counted is None else counted
        p = (z.sigmoid() * seen).flatten(1)
        y = (y * seen).flatten(1)
        loss = loss + 1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)
    return loss


def soft_losses(logits: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """Return MaskRIS's distillation loss of each sample, (B,).

    It is the same weighted cross-entropy against probabilities, at the logits' resolution, as
    torch's cross_entropy takes probabilities: the mean over pixels, not over weights.

    Args:
        logits: (B, h, w) float.
        soft: (B, h, w) probabilities.
    """
    each = -(1.1 * soft * F.logsigmoid(logits) + 0.9 * (1 - soft) * F.logsigmoid(-logits))
    return each.flatten(1).mean(1)
