"""What is minimised and how: losses, parameter groups, learning-rate schedule. Pure functions.

B samples, H W network image, h w logits
"""

import inspect

import torch

from aml.training.config import OptimConfig


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
            plain = (
                parameter.ndim <= 1
                or parameter.squeeze().ndim <= 1
                or name.startswith(tuple(model.no_decay))
            )
            rate = optim.lr * (
                optim.encoder_lr
                if name.startswith(tuple(model.encoders)) and model.encoders
                else 1.0
            )
            groups.setdefault((rate, 0.0 if plain else optim.weight_decay), []).append(parameter)
    return [
        {"params": p, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), p in groups.items()
    ]


class EagerAdamW(torch.optim.AdamW):
    """torch's own AdamW for training that is not compiled: its methods without what keeps them out of the compiler, which they import for that,
    4 s of each process."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
