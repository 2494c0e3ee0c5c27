"""Read shards in each trial, one window of row groups at a time."""

import json
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from aml.conditions import CLEAN, Condition
from aml.data import Window, decode_row
from aml.errors import Unreachable
from orchestrator.data.decoded import ObjectStoreBlocks, ShardSelection
from orchestrator.data.shards import files_with, may_hold, open_file
from orchestrator.storage import Filesystem

if TYPE_CHECKING:
    import pyarrow.parquet as pq

UNREACHABLE_LIMIT_S = 600.0
"""Seconds that a window waits for shards that cannot be reached, besides the tries themselves."""

RETRY_PAUSE_S = 5.0
"""Seconds between two tries."""

Answer = TypeVar("Answer")

GroupRows = dict[int, dict[int, bytes]]
"""By row group and row, the row as JSON with its selected refs."""


def retry_unreachable(call: Callable[..., Answer], *args: Any) -> Answer:
    """Return call(*args), repeated while the shards cannot be reached.

    Raises:
        Unreachable: They could not be reached for UNREACHABLE_LIMIT_S, or the process is ending.
    """
    deadline = time.monotonic() + UNREACHABLE_LIMIT_S
    while True:
        try:
            return call(*args)
        except Unreachable:
            # Nothing public tells that the process is ending: the interpreter joins the threads of
            # pools before it marks its main thread as ended.
            if time.monotonic() > deadline or getattr(threading, "_SHUTTING_DOWN", False):
                raise
            time.sleep(RETRY_PAUSE_S)


@dataclass(frozen=True)
class StreamingBlocks:
    """Shards that each trial reads for itself, beside decoded blocks that fit the object store."""

    parts: tuple[ShardSelection, ...]
    size: int
    """Width and height of the decoded pictures in pixels."""
    fit: str
    """Setting data.fit."""
    resident: ObjectStoreBlocks | None = None
    condition: Condition = CLEAN
    """Corruption of the pictures that are read, and its severity."""

    def open(self) -> Window:
        """Read the annotations and return the blocks as aml.data.Items takes them."""
        return Window(
            RowGroupReader(self.parts, self.size, self.fit, self.condition),
            self.resident.open() if self.resident else (),
        )


@dataclass(frozen=True)
class _RowGroup:
    """Row group of a file, and the rows of it that are used."""

    part: int
    """Number of the ShardSelection."""
    file: str
    footer: "pq.FileMetaData"
    """Footer of the file, which is read once and not with each row group."""
    number: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class PackedTexts(Sequence[str]):
    """Texts that are compressed one by one, in two fifths of the memory."""

    packed: list[bytes]
    """Each as UTF-8, compressed by zlib."""

    def __len__(self) -> int:
        return len(self.packed)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [zlib.decompress(one).decode() for one in self.packed[row]]
        return zlib.decompress(self.packed[row]).decode()


@dataclass
class RowGroupReader:
    """Pictures for aml.data.Window: each row group of some shards is a block.

    Annotations are read when the reader is made, JPEGs when `read` is called.
    """

    parts: tuple[ShardSelection, ...]
    size: int
    """Width and height of the decoded pictures in pixels."""
    fit: str
    """Setting data.fit."""
    condition: Condition = CLEAN
    """Corruption of the pictures, and its severity."""
    groups: list[_RowGroup] = field(default_factory=list)
    meta: list["PackedTexts"] = field(default_factory=list)
    """Rows of each block as JSON."""
    nbytes: list[int] = field(default_factory=list)
    """Bytes of each block, encoded and decoded."""

    def __post_init__(self) -> None:
        for number, part in enumerate(self.parts):
            for name, (footer, used) in retry_unreachable(_annotations, part).items():
                for group, rows in used.items():
                    self._add(
                        _RowGroup(number, name, footer, group, tuple(rows)),
                        PackedTexts(list(rows.values())),
                    )

    def _add(self, group: _RowGroup, meta: "PackedTexts") -> None:
        held = group.footer.row_group(group.number)
        self.groups.append(group)
        self.meta.append(meta)
        self.nbytes.append(held.total_byte_size + held.num_rows * self.size * self.size * 3)

    def read(self, block: int) -> list[bytes]:
        """Return the JPEGs of the used rows of a block.

        Raises:
            Unreachable: The shards could not be reached for UNREACHABLE_LIMIT_S.
        """
        return retry_unreachable(self._read, self.groups[block])

    def _read(self, group: _RowGroup) -> list[bytes]:
        with open_file(self.parts[group.part].store, group.file, group.footer) as file:
            jpegs = file.read_row_group(group.number, columns=["jpeg"], use_threads=False)["jpeg"]
        return [jpegs[row].as_py() for row in group.rows]

    def decode(self, encoded: Sequence, block: int, row: int) -> dict[str, Any]:
        """Return a decoded picture.

        Args:
            encoded: What `read` returned for the block.
            block: Number of the block.
            row: Number of the picture among the used rows of the block.

        Returns:
            image (size, size, 3) uint8, masks bytes, and meta JSON text.
        """
        meta = json.loads(self.meta[block][row])
        return decode_row(meta | {"jpeg": encoded[row]}, self.size, self.fit, self.condition)


def _annotations(part: ShardSelection) -> "dict[str, tuple[pq.FileMetaData, GroupRows]]":
    """Return by file its footer and the rows that are used."""
    footers = files_with(part.store, part.splits)
    with ThreadPoolExecutor(Filesystem.READERS) as pool:
        used = list(pool.map(partial(_used_rows, part), footers, footers.values()))
    return {
        name: (footer, rows) for (name, footer), rows in zip(footers.items(), used, strict=True)
    }


def _used_rows(part: ShardSelection, name: str, footer: "pq.FileMetaData") -> GroupRows:
    """Return the rows of a file that are used, by row group; groups without any are left out."""
    used = {}
    with open_file(part.store, name, footer) as file:
        for group in range(file.num_row_groups):
            if not may_hold(footer, group, part.splits):
                continue
            table = file.read_row_group(group, columns=["splits", "meta"], use_threads=False)
            rows = map(part.filter_row, table["splits"].to_pylist(), table["meta"].to_pylist())
            kept = {
                number: zlib.compress(json.dumps(row).encode(), 1)
                for number, row in enumerate(rows)
                if row
            }
            if kept:
                used[group] = kept
    return used
