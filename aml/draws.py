"""Make random draws without a generator: u(seed, epoch, item, what, index), a hash to [0, 1).

A draw is the same on any number of workers, in any batch order, after a resume, on CPU and on CUDA.
The mixer is splitmix64 (Steele, Lea, Flood 2014) in int64 arithmetic, which wraps around in torch
as it does in C.
"""

import functools
import zlib

import torch

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)

MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)

MIX_2 = 0x94D049BB133111EB - (1 << 64)


def uniform(seed: int, epoch: int, item: torch.Tensor, what: str, count: int = 1) -> torch.Tensor:
    """Return draws in [0, 1).

    Args:
        seed: seed of the run.
        epoch: number of the epoch.
        item: (B,) int64 keys of the items.
        what: name of the draws; different names give independent draws.
        count: draws for each item.

    Returns:
        (B, count) float32 on the device of `item`, the draws of index 0 to count - 1.
    """
    return uniforms(seed, epoch, item, {what: count})[0]


def uniforms(
    seed: int, epoch: int, item: torch.Tensor, counts: dict[str, int]
) -> tuple[torch.Tensor, ...]:
    """Return several draws in [0, 1) as `uniform` gives them, by as many operations as one takes.

    Args:
        seed: seed of the run.
        epoch: number of the epoch.
        item: (B,) int64 keys of the items.
        counts: names of the draws, and how many of each an item gets.

    Returns:
        (B, count) float32 for each name, in order.
    """
    names, indices = _summands(seed, epoch, tuple(counts.items()), item.device)
    bits = _mix(_mix(item[:, None] + names) + indices)
    draws = _shift(bits, 40).to(torch.float32) * 2.0**-24  # the 24 bits a float32 holds exactly
    return draws.split([*counts.values()], 1)


@functools.lru_cache(maxsize=16)
def _summands(
    seed: int, epoch: int, counts: tuple[tuple[str, int], ...], device: torch.device
) -> torch.Tensor:
    """Return what the draws' names and then their indices add, (2, sum of counts) int64.

    It is kept, since it is the same in all steps of an epoch.
    """
    each = torch.tensor([_constant(seed, epoch, what) for what, _ in counts])
    names = each.repeat_interleave(torch.tensor([count for _, count in counts]))
    indices = torch.cat([torch.arange(1, count + 1) for _, count in counts])
    return torch.stack([names, indices * GOLDEN]).to(device)


def _constant(seed: int, epoch: int, what: str) -> int:
    """Return one signed 64-bit number from the arguments that all items of a step share.

    The arithmetic is in Python integers, so that no tensor or device is needed.
    """
    state = 0
    for part in (seed, epoch, zlib.crc32(what.encode())):
        state = _mix_int((state ^ part) + GOLDEN)
    return state - (1 << 64) if state >= 1 << 63 else state


def _mix_int(x: int) -> int:
    """Mix an unsigned 64-bit number as `_mix` does."""
    mask = (1 << 64) - 1
    x &= mask
    x = (x ^ (x >> 30)) * (MIX_1 & mask) & mask
    x = (x ^ (x >> 27)) * (MIX_2 & mask) & mask
    return x ^ (x >> 31)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Mix int64 numbers by the finaliser of splitmix64."""
    x = (x ^ _shift(x, 30)) * MIX_1
    x = (x ^ _shift(x, 27)) * MIX_2
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right and fill with zeros, where torch's >> on int64 would keep the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
