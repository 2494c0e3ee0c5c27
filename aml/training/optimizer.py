"""Parameter groups and learning-rate schedule of the optimiser. Pure functions."""

import inspect
from typing import Any

import torch

from aml.training.config import OptimConfig


def lr_factor(step: int, total: int, warmup: int, optim: OptimConfig, steps: int) -> float:
    """Return the factor of the learning rate at a step.

    It rises linearly from 1e-3 to 1 over the warm-up; then it is (1 - done)^power of what remains,
    or gamma for each milestone epoch behind.

    Args:
        step: Of the whole training, 0-based.
        total: Steps of the whole training.
        warmup: Steps of the warm-up.
        optim: Settings of the optimiser.
        steps: Steps of an epoch.
    """
    if step < warmup:
        return 1e-3 + (1 - 1e-3) * step / warmup
    if optim.schedule == "steps":
        return optim.gamma ** sum(step >= milestone * steps for milestone in optim.milestones)
    return (1 - (step - warmup) / max(1, total - warmup)) ** optim.power


def parameter_groups(model: Any, optim: OptimConfig) -> list[dict[str, Any]]:
    """Return the trainable parameters by (encoder or not) x (decayed or not).

    0-d and 1-d ones and those of model.no_decay are not decayed.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        vector = parameter.ndim <= 1 or parameter.squeeze().ndim <= 1
        plain = vector or name.startswith(tuple(model.no_decay))
        encoder = bool(model.encoders) and name.startswith(tuple(model.encoders))
        rate = optim.lr * (optim.encoder_lr if encoder else 1.0)
        groups.setdefault((rate, 0.0 if plain else optim.weight_decay), []).append(parameter)
    return [
        {"params": p, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), p in groups.items()
    ]


class EagerAdamW(torch.optim.AdamW):
    """torch's own AdamW for training that is not compiled.

    torch wraps its methods to keep them out of the compiler and imports the compiler for that,
    which takes 4 s of each process; here they are unwrapped.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
