"""The maps W_i, W_t that bring image and text features to one width before they are compared."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from aml.errors import UserError
from aml.masking.alignment import similarity
from aml.masking.config import MaskingConfig

LEARNED_LR = 3e-3

Maps = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
"""W_i (D_a, D_v), W_t (D_a, D_t), b_t (D_a,); None for each that there is not."""


class Projections:
    """The projections of a training run.

    gaussian, shared and linear ones are drawn from the seed, equal on all ranks and in no
    checkpoint; learned ones are trained beside the model.
    """

    def __init__(self, config: MaskingConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.learned: Learned | None = None
        self._fixed: dict[tuple[int, int, torch.device], Maps] = {}
        self._state: dict[str, Any] | None = None

    def of(self, visual: torch.Tensor, text: torch.Tensor) -> Maps:
        """Return the maps for features of these widths.

        Args:
            visual: (B, D_v, h, w).
            text: (B, L, D_t).

        Raises:
            UserError: A projection needs equal widths and the features differ.
        """
        d_v = visual.shape[1]
        d_t = text.shape[2]
        device = visual.device
        kind = self.config.projection
        if kind in ("identity", "shared") and d_v != d_t:
            raise UserError(
                f"aml.projection {kind} needs equal widths, but {self.config.source} gives {d_v} "
                f"(image) and {d_t} (text); "
                "use aml.projection gaussian or learned, or another aml.source"
            )
        if kind == "identity":
            return None, None, None
        if kind == "learned":
            return self._learned(d_v, d_t, device).matrices()
        if (d_v, d_t, device) not in self._fixed:
            generator = torch.Generator().manual_seed(self.seed)
            w_i, w_t, b_t = fixed(kind, d_v, d_t, self.config.width or d_v, generator)
            self._fixed[d_v, d_t, device] = (_to(w_i, device), _to(w_t, device), _to(b_t, device))
        return self._fixed[d_v, d_t, device]

    def learn(
        self,
        visual: torch.Tensor,
        text: torch.Tensor,
        kept: torch.Tensor,
        real: torch.Tensor,
        cover: torch.Tensor,
        mean_over_ranks: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Train the learned maps one step on detached features; do nothing for other kinds.

        Args:
            visual: (B, D_v, h, w).
            text: (B, L, D_t).
            kept: (B, L) bool, the tokens that take part.
            real: (B, h*w) bool, the patches that count.
            cover: (B, h*w), the target's share of a patch.
            mean_over_ranks: Averages a tensor over the workers.
        """
        if self.config.projection == "learned":
            learned = self._learned(visual.shape[1], text.shape[2], visual.device)
            learned.step(visual, text, kept, real, cover, mean_over_ranks)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the learned maps and their optimiser's state; None where nothing is learned."""
        return self.learned.state() if self.learned else self._state

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Take over a state; the maps are made when the features' widths are known."""
        self._state = state
        self.learned = None

    def _learned(self, d_v: int, d_t: int, device: torch.device) -> "Learned":
        if self.learned is None:
            self.learned = Learned(d_v, d_t, self.config, self.seed).to(device)
            if self._state:
                self.learned.load(self._state)
        return self.learned


def _to(x: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if x is None else x.to(device)


def fixed(kind: str, d_v: int, d_t: int, width: int, generator: torch.Generator) -> Maps:
    """Return maps drawn at random, on the CPU.

    Args:
        kind: gaussian or shared, with entries N(0, 1/D_a) (paper, PMME); linear, an untrained torch
            Linear on the text alone.
        d_v: Width of the visual features.
        d_t: Width of the text features.
        width: D_a, the common width.
        generator: Draws the entries.
    """
    if kind == "linear":
        bound = 1 / math.sqrt(d_t)
        w_t = torch.empty(d_v, d_t).uniform_(-bound, bound, generator=generator)
        return None, w_t, torch.empty(d_v).uniform_(-bound, bound, generator=generator)
    w_i = torch.randn(width, d_v, generator=generator) / math.sqrt(width)
    if kind == "shared":
        return w_i, w_i, None
    return w_i, torch.randn(width, d_t, generator=generator) / math.sqrt(width), None


class Learned(nn.Module):
    """Two maps, a temperature and a bias, trained to tell target patches from others.

    The loss is the binary cross-entropy of each patch against the target's share of it; the logit
    of a patch is its best similarity over the kept tokens. Features come detached, so that the
    model gets no gradient of it.
    """

    def __init__(self, d_v: int, d_t: int, config: MaskingConfig, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        w_i, w_t, _ = fixed("gaussian", d_v, d_t, config.width or min(d_v, d_t), generator)
        assert w_i is not None and w_t is not None  # gaussian gives both
        self.w_i = nn.Parameter(w_i)
        self.w_t = nn.Parameter(w_t)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.normalise = config.normalise
        self.optimizer: torch.optim.AdamW | None = None

    def matrices(self) -> Maps:
        """Return the two maps without gradient."""
        return self.w_i.detach(), self.w_t.detach(), None

    @torch.enable_grad()
    def step(
        self,
        visual: torch.Tensor,
        text: torch.Tensor,
        kept: torch.Tensor,
        real: torch.Tensor,
        cover: torch.Tensor,
        mean_over_ranks: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Train one step, see `Projections.learn`."""
        s = similarity(
            visual.detach().flatten(2).mT,
            text.detach(),
            normalise=self.normalise,
            w_i=self.w_i,
            w_t=self.w_t,
        )
        best = s.masked_fill(~kept[:, None], -1e4).amax(-1)
        logits = self.log_temperature.exp() * best.clamp(min=-10) + self.bias
        each = F.binary_cross_entropy_with_logits(logits, cover, reduction="none")
        # ranks may hold different numbers of patches
        count = mean_over_ranks(real.sum().float()).clamp(min=1)
        loss = (each * real).sum() / count
        optimizer = self._optimizer()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad = mean_over_ranks(parameter.grad)
        optimizer.step()

    def state(self) -> dict[str, Any]:
        """Return a copy of the maps and the optimiser's state."""
        return copy.deepcopy(
            {"maps": self.state_dict(), "optimizer": self._optimizer().state_dict()}
        )

    def load(self, state: dict[str, Any]) -> None:
        """Take over maps and optimiser of another run."""
        self.load_state_dict(state["maps"])
        self._optimizer().load_state_dict(state["optimizer"])

    def _optimizer(self) -> torch.optim.AdamW:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.parameters(), lr=LEARNED_LR)
        return self.optimizer
