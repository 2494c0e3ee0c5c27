"""Losses of each sample: cross-entropy against the mask, or against a soft target."""

import torch
import torch.nn.functional as F

from aml.masking import Pass


def pass_losses(logits, mask, one: Pass, kind: str) -> torch.Tensor:
    """Loss of each sample of a pass, against the ground truth or the pass's own soft target.   -> (B,)"""
    return (
        sample_losses(logits, mask, kind, one.counted)
        if one.soft is None
        else soft_losses(logits, one.soft)
    )


def sample_losses(logits, mask, kind: str, counted=None) -> torch.Tensor:
    """Segmentation loss of each sample.   logits (B, h, w) float, mask (B, H, W) bool, counted (B, H, W) bool or None -> (B,)

    ce is two-class cross-entropy at image size with weights 0.9 and 1.1, as LAVT and CARIS train: a foreground logit z is the pair (0, z).
    bce has no weights (CRIS, DETRIS). Pixels outside `counted` are left out; a sample that counts none has loss 0.
    """
    z = F.interpolate(logits[:, None], mask.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    y = mask.to(z.dtype)
    weight = torch.ones_like(y) if kind == "bce" else 0.9 + 0.2 * y
    if counted is not None:
        weight = weight * counted
    each = F.binary_cross_entropy_with_logits(z, y, weight, reduction="none").flatten(1).sum(
        1
    ) / weight.flatten(1).sum(1).clamp(min=1)
    if kind == "ce+dice":
        seen = 1 if counted is None else counted
        p, y = (z.sigmoid() * seen).flatten(1), (y * seen).flatten(1)
        each = each + 1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)
    return each


def soft_losses(logits, soft) -> torch.Tensor:
    """MaskRIS's distillation: the same weighted cross-entropy against probabilities, at logit resolution.   (B, h, w), (B, h, w) -> (B,)

    As torch's cross_entropy takes probabilities: the mean over pixels, not over weights.
    """
    return (
        -(1.1 * soft * F.logsigmoid(logits) + 0.9 * (1 - soft) * F.logsigmoid(-logits))
        .flatten(1)
        .mean(1)
    )
