"""Decode shards into Ray's object store.

Trials do not run Ray Data. They get object references of decoded blocks, or the addresses of the
shards (orchestrator.data.streaming), and gather items by index. Both open as the blocks that
aml.data.Items takes, so training does not see the difference.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aml.conditions import CLEAN, Condition
from aml.data import decode_row, rows_of_block
from aml.errors import UserError
from orchestrator import cluster
from orchestrator.data.shards import (
    files_with,
    keep_refs,
    may_hold,
    open_file,
    parse_row,
    read_manifest,
)
from orchestrator.storage import Filesystem
from orchestrator.utils import Progress, announced_wait

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


@dataclass(frozen=True)
class ShardSelection:
    """Part of one data set's shards that is read."""

    store: Filesystem
    splits: frozenset[str]
    excluded: dict[str, frozenset[int]]
    """By split the image_ids whose refs of that split are left out."""

    def filter_row(self, splits: str, meta: str) -> dict[str, Any] | None:
        """Return a row with the selected refs; None if it has none.

        Args:
            splits: Splits of the row's refs, comma-separated.
            meta: The row as JSON.
        """
        if self.splits.isdisjoint(splits.split(",")):
            return None
        return keep_refs(parse_row(meta, f"a row of {self.store.uri}"), self.splits, self.excluded)

    def decoded_bytes(self, size: int) -> int:
        """Return the bytes of all pictures and masks at `size` px, by the marker's counts.

        A picture has three bytes a pixel, a mask one bit.
        """
        counts = [
            c for split, c in read_manifest(self.store)["splits"].items() if split in self.splits
        ]
        return sum(c["images"] * size * size * 3 + c["refs"] * -(-size * size // 8) for c in counts)


@dataclass(frozen=True)
class ObjectStoreBlocks:
    """Decoded blocks in Ray's object store.

    References are cheap to send to a trial, which maps the blocks without a copy.
    """

    refs: tuple
    """Object references of Arrow tables with the columns image, masks and meta."""

    def open(self) -> list[dict[str, Any]]:
        """Return the blocks as aml.data.Items takes them."""
        import ray
        from ray.data.block import BlockAccessor

        blocks = []
        for table in ray.get(list(self.refs)):
            if not table.num_rows:
                continue  # no ref of this row group was selected
            images = BlockAccessor.for_block(table).to_numpy(["image"])["image"]
            blocks.append(
                {
                    "image": images,
                    "masks": _BinaryColumn(table["masks"]),
                    "meta": _TextColumn(table["meta"]),
                }
            )
        return blocks


class _TextColumn:
    """Arrow text column of which a value is copied when it is read."""

    def __init__(self, column: "pa.ChunkedArray"):
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: int) -> str:
        return self.column[row].as_py()

    def __iter__(self) -> Iterator[str]:
        return (text.as_py() for text in self.column)


class _BinaryColumn:
    """Arrow binary column that is indexed without copying its values."""

    def __init__(self, column: "pa.ChunkedArray"):
        self.column = column

    def __getitem__(self, row: int) -> "pa.Buffer":
        return self.column[row].as_buffer()


def decode_shards(
    part: ShardSelection, size: int, fit: str, condition: Condition = CLEAN
) -> ObjectStoreBlocks:
    """Decode every selected image into the object store, with one Ray Data task a row group.

    Each row group is read once, and its JPEGs stay in the task.

    Args:
        part: Shards to read.
        size: Width and height of the decoded pictures in pixels.
        fit: How pictures are fitted into the square; setting data.fit.
        condition: Corruption of the pictures, and its severity.

    Raises:
        UserError: A file is damaged or cannot be reached.
    """
    import ray

    footers = files_with(part.store, part.splits)
    groups: list[Any] = [
        {"file": name, "group": number}
        for name, footer in footers.items()
        for number in range(footer.num_row_groups)
        if may_hold(footer, number, part.splits)
    ]
    if not groups:
        return ObjectStoreBlocks(())
    arguments = {"part": part, "footers": footers, "size": size, "fit": fit}
    arguments |= {"condition": condition}
    pictures = sum(footers[g["file"]].row_group(g["group"]).num_rows for g in groups)
    listed = ray.data.from_items(groups, override_num_blocks=len(groups))
    refs: list[Any] = []
    try:
        decoded = listed.map_batches(
            _decode,  # type: ignore[arg-type]  # Ray's type knows nothing of fn_kwargs
            fn_kwargs=arguments,
            batch_size=None,
            **cluster.data_task_options(),
        )
        with announced_wait(f"the first of {pictures:,} pictures to be decoded"):
            bundles = iter(decoded.iter_internal_ref_bundles())
            first = list(itertools.islice(bundles, 1))
        # Ray's start does not count for the speed
        done = sum(bundle.num_rows() or 0 for bundle in first)
        refs += [ref for bundle in first for ref in bundle.block_refs]
        with Progress("decoding", pictures, "pictures", done) as progress:
            for bundle in bundles:
                refs += bundle.block_refs
                progress.add(bundle.num_rows() or 0)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            # Without the settings that Ray appends to the message.
            text = str(error.cause).partition("\nFailed to apply")[0]
            raise type(error.cause)(text) from None
        raise
    return ObjectStoreBlocks(tuple(refs))


def _decode(
    batch: dict[str, Any],
    *,
    part: ShardSelection,
    footers: "dict[str, pq.FileMetaData]",
    size: int,
    fit: str,
    condition: Condition,
) -> dict[str, Any]:
    """Decode row groups in a Ray Data task.

    Args:
        batch: Columns file and group of the row groups.
        part: Shards to read.
        footers: Footers by file.
        size: Width and height of the decoded pictures in pixels.
        fit: Setting data.fit.
        condition: Corruption of the pictures, and its severity.

    Returns:
        Columns image (n, size, size, 3) uint8, masks (n,) bytes and meta (n,) JSON text.
    """
    rows = []
    for name, number in zip(batch["file"], batch["group"], strict=True):
        with open_file(part.store, str(name), footers[str(name)]) as file:
            table = file.read_row_group(
                int(number), columns=["splits", "jpeg", "meta"], use_threads=False
            )
        for splits, jpeg, meta in zip(
            table["splits"].to_pylist(), table["jpeg"], table["meta"].to_pylist(), strict=True
        ):
            row = part.filter_row(splits, meta)
            if row:
                rows.append(decode_row(row | {"jpeg": jpeg.as_py()}, size, fit, condition))
    if not rows:
        return {
            "image": np.zeros((0, size, size, 3), np.uint8),
            "masks": np.array([], dtype=object),
            "meta": np.array([], dtype=str),
        }
    block = rows_of_block(rows)
    masks = np.empty(len(rows), dtype=object)
    masks[:] = block["masks"]
    return {"image": block["image"], "masks": masks, "meta": np.array(block["meta"])}
