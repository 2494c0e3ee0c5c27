"""The process group of a training (rank and size), its random generators, and the interface of mid-
epoch checkpoints.
"""

import resource
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist


class World:
    """The workers that train together; one process unless torch.distributed is up."""

    def __init__(self):
        up = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if up else (0, 1)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        return self.sum(x) / self.size

    def gather(self, mine) -> list:
        """What each rank has, in the order of ranks."""
        every = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(every, mine)
        return every


class MidEpochCheckpointer(Protocol):
    """Who saves a run in the middle of an epoch."""

    every: int
    """Steps after which it is asked; also when all steps of the epoch are done."""

    def due(self) -> bool:
        """Whether this rank wants it saved now; where one does, all save."""

    def save(self) -> None:
        """Save the learner as it is: called on every rank, and one writes."""


def reseed(seed: int, epoch: int, rank: int, step: int = 0) -> None:
    """Dropout's generator, a function of where we are: an interrupted epoch repeats with the same draws."""
    key = [seed, epoch, rank, *([step] if step else [])]
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def set_generators(state: dict) -> None:
    """Put dropout's generators where they were (TrainSums.state)."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def peak_memory_mb(device: torch.device) -> float:
    """Peak of this process (CPU, resident) or of this device's allocator (CUDA), in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
