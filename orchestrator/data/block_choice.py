"""Choose between pictures in Ray's object store and a window; keep copies of decoded blocks."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aml.conditions import CLEAN, Condition
from aml.data import WINDOW_BYTES
from orchestrator.data.decoded import ObjectStoreBlocks, ShardSelection, decode_shards
from orchestrator.data.streaming import StreamingBlocks

logger = logging.getLogger(__name__)

USABLE_SHARE = 0.8
"""Share of the object store's free memory for decoded pictures; their decoding needs the rest."""


def choose_blocks(
    train: list[ShardSelection],
    val: list[ShardSelection],
    size: int,
    fit: str,
    *,
    windowed: bool | None,
) -> ObjectStoreBlocks | StreamingBlocks:
    """Decode what fits the object store; read training pictures through a window otherwise.

    The choice is logged where anything does not fit.

    Args:
        train: Shards to train on.
        val: Shards to validate on.
        size: Width and height of the decoded pictures in pixels.
        fit: Setting data.fit.
        windowed: What an earlier attempt of the run did, since the order of items follows from
            it. None: whichever fits.
    """
    free = free_object_store_bytes() * USABLE_SHARE
    need_val = sum(part.decoded_bytes(size) for part in val)
    need = need_val + sum(part.decoded_bytes(size) for part in train)
    sizes = (
        f"decoded pictures take {need / 1e9:.2f} GB of the {free / 1e9:.2f} GB free for them in "
        "the object store"
    )
    if windowed is None:
        windowed = need > free
    if not windowed:
        if need > free:
            logger.info(
                f"{sizes}: what does not fit is spilled to disk, since this run began without a "
                "window"
            )
        return _decode_all(merge_selections(train, val), size, fit)
    # An item of a split that both train and val read would be there twice.
    is_shared = any(t.splits & v.splits for t in train for v in val)
    val_fits = need_val <= free and not is_shared
    logger.info(
        f"{sizes}: each worker reads {'training' if val_fits else 'all'} pictures through a window "
        f"of {WINDOW_BYTES / 2**20:.0f} MiB, and items are shuffled inside a window of shuffled "
        "row groups"
    )
    if not val_fits:
        return StreamingBlocks(tuple(merge_selections(train, val)), size, fit)
    return StreamingBlocks(tuple(train), size, fit, _decode_all(val, size, fit))


def choose_corrupted(
    val: list[ShardSelection], size: int, fit: str, conditions: Sequence[Condition]
) -> dict[Condition, ObjectStoreBlocks | StreamingBlocks]:
    """Corrupt and decode the validation pictures of as many conditions as fit the object store.

    Each trial corrupts those of the others for itself, picture by picture; this is logged.

    Args:
        val: Shards to validate on.
        size: Width and height of the decoded pictures in pixels.
        fit: Setting data.fit.
        conditions: Corruptions with their severities.
    """
    each = sum(part.decoded_bytes(size) for part in val)
    fitting = int(free_object_store_bytes() * USABLE_SHARE // max(1, each))
    if fitting < len(conditions):
        logger.info(
            f"validation pictures take {each / 1e9:.2f} GB under each corruption, and those of "
            f"{fitting} of {len(conditions)} fit the object store: trials read and corrupt the "
            "others for themselves"
        )
    shared = {c: _decode_all(val, size, fit, c) for c in conditions[:fitting]}
    return shared | corrupted_windows(val, size, fit, conditions[fitting:])


def corrupted_windows(
    val: list[ShardSelection], size: int, fit: str, conditions: Sequence[Condition]
) -> dict[Condition, StreamingBlocks]:
    """Return the validation pictures under each condition, read and corrupted through a window."""
    return {c: StreamingBlocks(tuple(val), size, fit, condition=c) for c in conditions}


def _decode_all(
    parts: list[ShardSelection], size: int, fit: str, condition: Condition = CLEAN
) -> ObjectStoreBlocks:
    return ObjectStoreBlocks(
        tuple(ref for part in parts for ref in decode_shards(part, size, fit, condition).refs)
    )


@contextmanager
def pin_blocks(*shared: ObjectStoreBlocks | StreamingBlocks) -> Iterator[None]:
    """Keep a copy of every decoded block on this node inside the `with` block.

    If a node that decoded blocks is lost, trials get this copy. Without it they would wait for
    tasks that decode again, and these would find no CPU, since the trials hold all of them.
    """
    import ray

    residents = [s if isinstance(s, ObjectStoreBlocks) else s.resident for s in shared]
    refs = [ref for resident in residents if resident for ref in resident.refs]
    blocks = ray.get(refs)  # mapped as long as this frame lives
    yield
    del blocks


def merge_selections(
    train: list[ShardSelection], val: list[ShardSelection]
) -> list[ShardSelection]:
    """Merge selections of the same store, so that no picture is decoded twice."""
    merged = {part.store.uri: part for part in train}
    for part in val:
        known = merged.get(part.store.uri)
        if known:
            part = ShardSelection(
                part.store, known.splits | part.splits, known.excluded | part.excluded
            )
        merged[part.store.uri] = part
    return list(merged.values())


def free_object_store_bytes() -> float:
    """Return the bytes free in the smallest object store of the cluster.

    Each node that trains holds its own copy of the blocks that it maps.
    """
    import ray

    key = "object_store_memory"
    stores = [node["Resources"].get(key, 0) for node in ray.nodes() if node["Alive"]]
    used = ray.cluster_resources().get(key, 0) - ray.available_resources().get(key, 0)
    return max(0.0, min(stores) - used)
