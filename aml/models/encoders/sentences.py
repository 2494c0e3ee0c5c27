"""Features of sentences, kept so that a frozen text encoder reads each sentence once."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

CACHE_BYTES = 256 * 2**20
"""Memory that kept features may take, in the memory of the device that computes."""


class SentenceCache:
    """Keeps what a frozen encoder makes of a sentence, by the ids of its tokens.

    The encoder reads each sentence alone and without padding, in float32. So its states are the
    same bits whether they were kept or are computed anew, whoever shares the batch, and after a
    resume, with which nothing is kept. The sentences unused for longest give way. Nothing is kept
    that another weight, device or type of the encoder's parameters made; a copy of the model, also
    one that is sent to another process, begins with nothing.
    """

    def __init__(self, limit: int = CACHE_BYTES):
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.bytes = 0
        self.stamp: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is kept behind, in copies and in pickles."""
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @torch.compiler.disable
    def read(
        self,
        encoder: nn.Module,
        read: Callable[[torch.Tensor], torch.Tensor],
        tokens: torch.Tensor,
        token_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Return the states (B, L, C) of sentences, 0 in their padding.

        Args:
            encoder: The encoder, of whose weights the states depend.
            read: Turns the tokens (1, n) of one sentence into its states (1, n, C).
            tokens: (B, L) int64.
            token_mask: (B, L) bool; padding comes last.
        """
        stamp = _stamp(encoder)
        if stamp != self.stamp:
            self.clear()
            self.stamp = stamp
        rows = [
            row[kept]
            for row, kept in zip(tokens.cpu().numpy(), token_mask.cpu().numpy(), strict=True)
        ]
        found = [self._states(read, row, tokens.device) for row in rows]
        states = found[0].new_zeros(*tokens.shape, found[0].shape[1])
        for place, state in zip(states, found, strict=True):
            place[: len(state)] = state
        return states

    def _states(self, read: Callable, row: Any, device: torch.device) -> torch.Tensor:
        """Return the states (n, C) of one sentence."""
        key = row.tobytes()
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        # what inference mode makes, training could not use
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            state = read(torch.from_numpy(row.copy()).to(device)[None])[0]
        self.kept[key] = state
        self.bytes += state.nbytes
        while self.bytes > self.limit and len(self.kept) > 1:
            self.bytes -= self.kept.popitem(last=False)[1].nbytes
        return state


def _stamp(encoder: nn.Module) -> tuple:
    """Return what changes whenever the encoder's parameters do."""
    parameters = list(encoder.parameters())
    first = parameters[0]
    return first.device, first.dtype, sum(p._version for p in parameters)
