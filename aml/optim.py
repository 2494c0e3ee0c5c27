"""What is minimised and how: losses, parameter groups, learning-rate schedule. Pure functions.

B samples, H W network image, h w logits
"""

import inspect
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from aml.errors import UserError
from aml.masking import Pass

LOSSES = ("ce", "bce", "ce+dice")
SCHEDULES = ("poly", "steps")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, warm-up then poly decay per step."""

    lr: float = 1e-3
    encoder_lr: float = 0.1
    """Rate of the parameters in model.encoders, as a share of lr."""
    weight_decay: float = 0.01
    """0 on norms, biases, scales and what the model lists in no_decay."""
    warmup_epochs: float = 0.0
    """Linear from 1e-3 of the rate; give this or warmup_steps."""
    warmup_steps: int = 0
    power: float = 0.9
    """Of the poly decay (1 - step/steps)^power."""
    schedule: str = "poly"
    """poly: decay at each step. steps: times gamma after each of the milestones."""
    milestones: list[int] = field(default_factory=list)
    """Epochs after which the rate falls, for schedule steps."""
    gamma: float = 0.1
    clip: float | None = 1.0
    """Largest gradient norm; null: none."""
    loss: str = "ce"
    """ce: cross-entropy with weights 0.9 (background) and 1.1. bce: the same without weights. ce+dice: ce plus 1 - Dice."""

    def __post_init__(self):
        if not self.lr > 0 or self.weight_decay < 0 or self.encoder_lr < 0 or (self.clip is not None and self.clip <= 0):
            raise UserError(
                f"optim.lr {self.lr}, weight_decay {self.weight_decay}, encoder_lr {self.encoder_lr}, clip {self.clip}: "
                "lr and clip must be above 0, the others not below"
            )
        if self.warmup_epochs and self.warmup_steps:
            raise UserError(f"optim.warmup_epochs is {self.warmup_epochs} and optim.warmup_steps is {self.warmup_steps}; give one of them")
        if min(self.warmup_epochs, self.warmup_steps, self.power) < 0:
            raise UserError(
                f"optim.warmup_epochs, warmup_steps and power must not be below 0; got {self.warmup_epochs}, {self.warmup_steps}, {self.power}"
            )
        if self.schedule not in SCHEDULES:
            raise UserError(f"optim.schedule is {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        if (self.schedule == "steps") != bool(self.milestones) or self.gamma <= 0:
            raise UserError(
                f"optim.schedule {self.schedule} with milestones {self.milestones} and gamma {self.gamma}: steps needs epochs in milestones and "
                "a gamma above 0, poly takes none"
            )
        if self.loss not in LOSSES:
            raise UserError(f"optim.loss is {self.loss!r}; known: {', '.join(LOSSES)}")


def pass_losses(logits, mask, one: Pass, kind: str) -> torch.Tensor:
    """Loss of each sample of a pass, against the ground truth or the pass's own soft target.   -> (B,)"""
    return losses(logits, mask, kind, one.counted) if one.soft is None else soft_losses(logits, one.soft)


def losses(logits, mask, kind: str, counted=None) -> torch.Tensor:
    """Segmentation loss of each sample.   logits (B, h, w) float, mask (B, H, W) bool, counted (B, H, W) bool or None -> (B,)

    ce is two-class cross-entropy at image size with weights 0.9 and 1.1, as LAVT and CARIS train: a foreground logit z is the pair (0, z).
    bce has no weights (CRIS, DETRIS). Pixels outside `counted` are left out; a sample that counts none has loss 0.
    """
    z = F.interpolate(logits[:, None], mask.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    y = mask.to(z.dtype)
    weight = torch.ones_like(y) if kind == "bce" else 0.9 + 0.2 * y
    if counted is not None:
        weight = weight * counted
    each = F.binary_cross_entropy_with_logits(z, y, weight, reduction="none").flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1)
    if kind == "ce+dice":
        seen = 1 if counted is None else counted
        p, y = (z.sigmoid() * seen).flatten(1), (y * seen).flatten(1)
        each = each + 1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)
    return each


def soft_losses(logits, soft) -> torch.Tensor:
    """MaskRIS's distillation: the same weighted cross-entropy against probabilities, at logit resolution.   (B, h, w), (B, h, w) -> (B,)

    As torch's cross_entropy takes probabilities: the mean over pixels, not over weights.
    """
    return -(1.1 * soft * F.logsigmoid(logits) + 0.9 * (1 - soft) * F.logsigmoid(-logits)).flatten(1).mean(1)


def lr_factor(step: int, total: int, warmup: int, optim: OptimConfig, steps: int) -> float:
    """Linear from 1e-3 to 1 over the warm-up steps; then (1 - done)^power of what remains, or gamma for each milestone epoch behind.

    steps: of an epoch.
    """
    if step < warmup:
        return 1e-3 + (1 - 1e-3) * step / warmup
    if optim.schedule == "steps":
        return optim.gamma ** sum(step >= milestone * steps for milestone in optim.milestones)
    return (1 - (step - warmup) / max(1, total - warmup)) ** optim.power


def parameter_groups(model, optim: OptimConfig) -> list[dict]:
    """Trainable parameters by (encoder or not) x (decayed or not). 0-d, 1-d and model.no_decay ones are not decayed."""
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or parameter.squeeze().ndim <= 1 or name.startswith(tuple(model.no_decay))
            rate = optim.lr * (optim.encoder_lr if name.startswith(tuple(model.encoders)) and model.encoders else 1.0)
            groups.setdefault((rate, 0.0 if plain else optim.weight_decay), []).append(parameter)
    return [{"params": p, "lr": rate, "base_lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


class EagerAdamW(torch.optim.AdamW):
    """torch's own AdamW for training that is not compiled: its methods without what keeps them out of the compiler, which they import for that,
    4 s of each process."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
