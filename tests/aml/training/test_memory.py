"""Memory that a training process frees and takes again."""

import resource

import numpy as np

from aml.training import keep_freed_memory

ROUNDS = 20
SIDE = 6 << 20
"""Bytes of an array; several are held at once, as the activations of a step are."""


def page_faults() -> int:
    """Return the page faults of a round that takes six arrays, writes on them and frees them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(ROUNDS):
        held = [np.full(SIDE, 1, np.uint8) for _ in range(6)]
        held.clear()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // ROUNDS


def test_memory_that_was_freed_is_taken_again_without_page_faults():
    keep_freed_memory()
    page_faults()  # the first round takes the memory from the system
    assert page_faults() < 6 * SIDE // 4096 // 10
