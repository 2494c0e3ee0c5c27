"""The maps W_i, W_t that bring image and text features to one width before they are compared."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from aml.errors import UserError
from aml.masking.alignment import similarity
from aml.masking.config import MaskingConfig

LEARNED_LR = 3e-3


class Projections:
    """gaussian, shared, linear: drawn from the seed, equal on all ranks, in no checkpoint. learned: trained beside the model."""

    def __init__(self, config: MaskingConfig, seed: int):
        self.config, self.seed = config, seed
        self._fixed: dict = {}
        self.learned: Learned | None = None
        self._state: dict | None = None

    def of(self, visual, text):
        """W_i (D_a, D_v), W_t (D_a, D_t), b_t (D_a,), each None where there is none.   visual (B, D_v, h, w), text (B, L, D_t)

        UserError where a projection needs equal widths and the features differ.
        """
        d_v, d_t, device, kind = (
            visual.shape[1],
            text.shape[2],
            visual.device,
            self.config.projection,
        )
        if kind in ("identity", "shared") and d_v != d_t:
            raise UserError(
                f"aml.projection {kind} needs equal widths, but {self.config.source} gives {d_v} (image) and {d_t} (text); "
                "use aml.projection gaussian or learned, or another aml.source"
            )
        if kind == "identity":
            return None, None, None
        if kind == "learned":
            return self._learned(d_v, d_t, device).matrices()
        if (d_v, d_t, device) not in self._fixed:
            made = fixed(
                kind, d_v, d_t, self.config.width or d_v, torch.Generator().manual_seed(self.seed)
            )
            self._fixed[d_v, d_t, device] = tuple(m if m is None else m.to(device) for m in made)
        return self._fixed[d_v, d_t, device]

    def learn(self, visual, text, kept, real, cover, mean_over_ranks) -> None:
        """One step of the learned maps on detached features; nothing for the other kinds.

        visual (B, D_v, h, w), text (B, L, D_t), kept (B, L) bool, real (B, h*w) bool, cover (B, h*w): the target's share of a patch.
        """
        if self.config.projection == "learned":
            self._learned(visual.shape[1], text.shape[2], visual.device).step(
                visual, text, kept, real, cover, mean_over_ranks
            )

    def state_dict(self) -> dict | None:
        return self.learned.state() if self.learned else self._state

    def load_state_dict(self, state: dict | None) -> None:
        self._state, self.learned = state, None

    def _learned(self, d_v: int, d_t: int, device) -> "Learned":
        if self.learned is None:
            self.learned = Learned(d_v, d_t, self.config, self.seed).to(device)
            if self._state:
                self.learned.load(self._state)
        return self.learned


def fixed(kind: str, d_v: int, d_t: int, width: int, generator):
    """W_i, W_t, b_t on the CPU. gaussian, shared: entries N(0, 1/D_a) (paper, PMME). linear: an untrained torch Linear on the text alone."""
    if kind == "linear":
        bound = 1 / math.sqrt(d_t)
        return (
            None,
            torch.empty(d_v, d_t).uniform_(-bound, bound, generator=generator),
            torch.empty(d_v).uniform_(-bound, bound, generator=generator),
        )
    w_i = torch.randn(width, d_v, generator=generator) / math.sqrt(width)
    return (
        w_i,
        w_i
        if kind == "shared"
        else torch.randn(width, d_t, generator=generator) / math.sqrt(width),
        None,
    )


class Learned(nn.Module):
    """Two maps, a temperature and a bias, trained by binary cross-entropy of each patch against the target's share of it.

    The logit of a patch is its best similarity over the kept tokens. Features come detached: the model feels nothing of it.
    """

    def __init__(self, d_v: int, d_t: int, config: MaskingConfig, seed: int):
        super().__init__()
        w_i, w_t, _ = fixed(
            "gaussian", d_v, d_t, config.width or min(d_v, d_t), torch.Generator().manual_seed(seed)
        )
        self.w_i, self.w_t = nn.Parameter(w_i), nn.Parameter(w_t)
        self.log_temperature, self.bias = (
            nn.Parameter(torch.tensor(math.log(10.0))),
            nn.Parameter(torch.tensor(-2.0)),
        )
        self.normalise = config.normalise
        self.optimizer: torch.optim.AdamW | None = None

    def matrices(self):
        return self.w_i.detach(), self.w_t.detach(), None

    @torch.enable_grad()
    def step(self, visual, text, kept, real, cover, mean_over_ranks) -> None:
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
        loss = (each * real).sum() / mean_over_ranks(real.sum().float()).clamp(
            min=1
        )  # ranks may hold different numbers of patches
        optimizer = self._optimizer()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameter in self.parameters():
            parameter.grad = mean_over_ranks(parameter.grad)
        optimizer.step()

    def state(self) -> dict:
        return copy.deepcopy(
            {"maps": self.state_dict(), "optimizer": self._optimizer().state_dict()}
        )

    def load(self, state: dict) -> None:
        self.load_state_dict(state["maps"])
        self._optimizer().load_state_dict(state["optimizer"])

    def _optimizer(self):
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.parameters(), lr=LEARNED_LR)
        return self.optimizer
