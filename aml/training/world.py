"""The ranks that train together, their random generators, and mid-epoch checkpoints' interface."""

from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision's name -> dtype of autocast; None: no autocast."""


class World:
    """The workers that train together; one process unless torch.distributed is up."""

    def __init__(self) -> None:
        up = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if up else 0
        self.size = dist.get_world_size() if up else 1

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the ranks; it is written into x."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over the ranks."""
        return self.sum(x) / self.size

    def gather(self, mine: Any) -> list[Any]:
        """Return the objects of all ranks, in the order of ranks."""
        every = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(every, mine)
        return every


class MidEpochCheckpointer(Protocol):
    """Saves a run in the middle of an epoch."""

    every: int
    """Most steps after which it is asked again: of several ranks, which have to agree, it is asked
    sooner where steps are slow. It is also asked when all steps of the epoch are done, and after
    each batch of a validation."""

    def due(self) -> bool:
        """Return whether this rank wants a checkpoint now; between steps all save with it."""

    def save(self) -> None:
        """Save the learner as it is, without a word to the other ranks, of which rank 0 writes."""


def reseed(seed: int, epoch: int, rank: int, step: int = 0) -> None:
    """Seed dropout's generator by place, so that an interrupted epoch repeats the same draws."""
    key = [seed, epoch, rank, *([step] if step else [])]
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def set_generators(state: dict[str, Any]) -> None:
    """Put dropout's generators where they were (TrainSums.state)."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
