"""The teacher of aml.stage1 teacher: a moving average of a model's weights, which aligns."""

import copy
from typing import Any

import torch
from torch import nn


class Teacher:
    """Exponential moving average of a model's weights.

    After each optimizer step w_teacher = decay w_teacher + (1 - decay) w_model; before the first
    both are the same. Parameters that are not trained, and buffers, are the model's own and take no
    memory.
    """

    def __init__(self, decay: float) -> None:
        """Note how much of its weights the teacher keeps in a step."""
        self.decay = decay
        self.model: Any = None

    def start(self, model: nn.Module) -> None:
        """Begin with the weights of a model, which must be on its device already."""
        shared = [p for p in model.parameters() if not p.requires_grad] + list(model.buffers())
        self.model = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
        self.model.eval().requires_grad_(False)
        pairs = zip(model.named_parameters(), self.model.parameters(), strict=True)
        self._averaged = [(name, own, p) for (name, p), own in pairs if own is not p]

    @torch.no_grad()
    def update(self) -> None:
        """Follow the model by one step."""
        _, own, trained = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(own, trained, 1 - self.decay)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights by their names in the model."""
        return {name: own.detach() for name, own, _ in self._averaged}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over the averaged weights of the run that goes on; `start` comes first."""
        for name, own, _ in self._averaged:
            own.copy_(state[name])
