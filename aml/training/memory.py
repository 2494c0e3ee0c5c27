"""Memory of the process that trains."""

import ctypes
import resource

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, as <malloc.h> numbers them."""


def keep_freed_memory() -> None:
    """Keep the memory that this process frees, for its next allocations.

    glibc otherwise gives the activations of a step back to the system, and the next step has its
    pages mapped and zeroed anew: some 3,000 page faults and a tenth of the time of a step of the
    small model on a CPU. Results are the same bits and the peak is the same; the process shrinks
    no more between its peaks. Other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak of this process (CPU, resident) or the device's allocator (CUDA), in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
