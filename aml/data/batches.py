"""Divide the items of a split into batches over steps and ranks.

Which items a step takes is a plan by index, not a stream.
"""

from collections.abc import Iterator

import numpy as np

from aml.data.dataset import Batch, Items, Tokeniser


def steps_per_epoch(n: int, batch: int) -> int:
    """Return the whole global batches in n items, at least one.

    The rest of an epoch's permutation is left out of that epoch.
    """
    return max(1, n // batch)


def rank_part(batch: int, rank: int, world: int) -> slice:
    """Return a rank's contiguous part of a global batch.

    The parts of two ranks differ by one item at most.
    """
    return slice(rank * batch // world, (rank + 1) * batch // world)


def rank_rows(batch: int, world: int, accumulate: int = 1) -> int:
    """Return the rows of every rank's tensors.

    They are the rows of the largest part, padded to whole micro-steps, so that all ranks do the
    same work.

    Args:
        batch: items of a global batch.
        world: number of ranks.
        accumulate: micro-steps of a step.
    """
    return -(-batch // (world * accumulate)) * accumulate


def train_batches(
    items: Items,
    model: Tokeniser,
    *,
    batch: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    start: int = 0,
) -> Iterator[Batch]:
    """Yield one rank's batches of an epoch.

    Step k takes order[kB:(k+1)B] of Items.order(seed, epoch), and rank r the r-th contiguous part
    of it. So a global step holds the same items on any number of ranks; where they do not divide
    evenly, the shorter parts are padded with invalid rows.

    Args:
        items: items of the train split.
        model: tokenises the sentences.
        batch: items B of a global batch.
        seed: seed of the run.
        epoch: number of the epoch.
        rank: this rank.
        world: number of ranks.
        accumulate: micro-steps of a step.
        start: first step.
    """
    order = items.order(seed, epoch)
    rows = rank_rows(batch, world, accumulate)
    steps = [
        order[k * batch : (k + 1) * batch] for k in range(start, steps_per_epoch(len(items), batch))
    ]
    mine = [whole[rank_part(batch, rank, world)] for whole in steps]
    # where a step has fewer items than ranks, a rank without items takes the step's first item
    shown = [own if len(own) else whole[:1] for own, whole in zip(mine, steps, strict=True)]
    for own, whole, indices in zip(mine, steps, items.ahead(shown), strict=True):
        made = items.batch(indices, model, seed=seed, epoch=epoch, total=len(whole), pad_to=rows)
        if not len(own):
            made.valid[:] = False
        yield made


def eval_batches(
    items: Items, model: Tokeniser, *, batch: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Yield one rank's batches of an evaluation.

    Every item comes exactly once over all ranks, in order; the last batch of a rank may be shorter.

    Args:
        items: items of the split.
        model: tokenises the sentences.
        batch: items of a batch.
        rank: this rank.
        world: number of ranks.
    """
    low = rank * len(items) // world
    high = (rank + 1) * len(items) // world
    yield from some_batches(items, model, np.arange(low, high), batch)


def some_batches(
    items: Items, model: Tokeniser, indices: np.ndarray, batch: int
) -> Iterator[Batch]:
    """Yield batches of the items with these indices, in this order."""
    parts = [indices[start : start + batch] for start in range(0, len(indices), batch)]
    for part in items.ahead(parts):
        yield items.batch(part, model)
