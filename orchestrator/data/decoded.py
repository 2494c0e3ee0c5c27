"""Decoded pictures as trials get them: mapped from Ray's object store, or read through a window where they do not fit there.

Trials do not run Ray Data: they get references to the decoded blocks, or where the shards lie, and gather by index. Both open as the blocks
that aml.data.Items takes, which is all that training sees.
"""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from aml.data import WINDOW_BYTES, Window, decode_row, rows_of_block
from aml.errors import Unreachable, UserError
from orchestrator import cluster
from orchestrator.data.shards import files_with, may_hold, opened, read_manifest, with_refs_of
from orchestrator.storage import READERS, Filesystem

AWAY_S, PAUSE_S = 600.0, 5.0

"""How long a window waits for shards that do not answer, besides what each try takes; between tries."""

FREE_SHARE = 0.8

"""Of the object store's free memory, what decoded pictures may take; the rest is for what passes through while they are made."""


@dataclass(frozen=True)
class ShardSelection:
    """What is read of one store."""

    store: Filesystem
    splits: frozenset[str]
    leave: dict[str, frozenset[int]]
    """{split: image_ids whose refs of that split are left out, too}"""

    def kept(self, of: str, meta: str) -> dict | None:
        """The row with the refs that are read; None where there is none.   of: its splits, comma-separated; meta: its JSON"""
        return (
            with_refs_of(json.loads(meta), self.splits, self.leave)
            if self.splits & set(of.split(","))
            else None
        )

    def decoded_bytes(self, size: int) -> int:
        """All pictures and masks at network size, as the marker counts them."""
        counts = [
            c for split, c in read_manifest(self.store)["splits"].items() if split in self.splits
        ]
        return sum(c["images"] * size * size * 3 + c["refs"] * -(-size * size // 8) for c in counts)


@dataclass(frozen=True)
class ObjectStoreBlocks:
    """Decoded blocks in Ray's object store: cheap to hand to a trial, mapped there without a copy."""

    refs: tuple
    """Object references of Arrow tables with columns image, masks, meta."""

    def open(self) -> list[dict]:
        """The blocks as aml.data.Items takes them."""
        import ray
        from ray.data.block import BlockAccessor

        blocks = []
        for table in ray.get(list(self.refs)):
            images = BlockAccessor.for_block(table).to_numpy(["image"])["image"]
            blocks.append(
                {
                    "image": images,
                    "masks": _Binary(table["masks"]),
                    "meta": table["meta"].to_pylist(),
                }
            )
        return blocks


@contextmanager
def pin_blocks(shared: "ObjectStoreBlocks | StreamingBlocks"):
    """Keep a copy of every decoded block on this machine. Where one that decoded them is lost, trials get this copy; without it they would
    wait for tasks that decode again, which find no CPU, since the trials hold them all."""
    import ray

    resident = shared if isinstance(shared, ObjectStoreBlocks) else shared.resident
    blocks = ray.get(list(resident.refs)) if resident else []  # mapped as long as this frame lives
    yield
    del blocks


class _Binary:
    """An Arrow binary column indexed without copying its values."""

    def __init__(self, column):
        self.column = column

    def __getitem__(self, row: int):
        return self.column[row].as_buffer()


def decode_shards(part: ShardSelection, size: int, fit: str) -> ObjectStoreBlocks:
    """Decode every image of a part in parallel into the object store, a row group a task: it is read once, and its JPEGs stay in the task."""
    import ray

    footers = files_with(part.store, part.splits)
    groups = [
        {"file": name, "group": number}
        for name, footer in footers.items()
        for number in range(footer.num_row_groups)
        if may_hold(footer, number, part.splits)
    ]
    if not groups:
        return ObjectStoreBlocks(())
    where, how = (
        cluster.data_task_options(),
        {"part": part, "footers": footers, "size": size, "fit": fit},
    )
    listed = ray.data.from_items(groups, override_num_blocks=len(groups))
    try:
        decoded = listed.map_batches(_decode, fn_kwargs=how, batch_size=None, **where).materialize()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise type(error.cause)(
                str(error.cause).partition("\nFailed to apply")[0]
            ) from None  # what Ray appends of its own settings
        raise
    return ObjectStoreBlocks(
        tuple(
            entry.ref
            for bundle in decoded.iter_internal_ref_bundles()
            for entry in bundle.blocks
            if entry.metadata.num_rows
        )
    )


def _decode(batch: dict, *, part: ShardSelection, footers: dict, size: int, fit: str) -> dict:
    """Runs in a Ray Data task.   batch: file, group"""
    rows = []
    for name, number in zip(batch["file"], batch["group"], strict=True):
        with opened(part.store, str(name), footers[str(name)]) as file:
            table = file.read_row_group(
                int(number), columns=["splits", "jpeg", "meta"], use_threads=False
            )
        for of, jpeg, text in zip(
            table["splits"].to_pylist(), table["jpeg"], table["meta"].to_pylist(), strict=True
        ):
            if kept := part.kept(of, text):
                rows.append(decode_row(kept | {"jpeg": jpeg.as_py()}, size, fit))
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


def _patiently(ask, *of):
    """ask(*of), again and again while the shards do not answer; Unreachable when they have not for AWAY_S, or the process ends meanwhile."""
    deadline = time.monotonic() + AWAY_S
    while True:
        try:
            return ask(*of)
        except Unreachable:
            # The interpreter joins the threads of pools before it calls its main thread ended, so nothing public tells of it.
            if time.monotonic() > deadline or getattr(threading, "_SHUTTING_DOWN", False):
                raise
            time.sleep(PAUSE_S)


@dataclass(frozen=True)
class StreamingBlocks:
    """Shards that each trial reads for itself, a window at a time, beside decoded blocks that fit the object store."""

    parts: tuple[ShardSelection, ...]
    size: int
    fit: str
    resident: ObjectStoreBlocks | None = None

    def open(self) -> Window:
        """The blocks as aml.data.Items takes them; their annotations are read now."""
        return Window(
            RowGroupReader(self.parts, self.size, self.fit),
            self.resident.open() if self.resident else (),
        )


@dataclass(frozen=True)
class _Group:
    part: int
    file: str
    footer: object
    """Of the file: it is read once, not with each group."""
    number: int
    rows: tuple[int, ...]
    """Those that are used."""


@dataclass
class RowGroupReader:
    """The row groups of some shards as aml.window.Pictures."""

    parts: tuple[ShardSelection, ...]
    size: int
    fit: str
    groups: list[_Group] = field(default_factory=list)
    meta: list[list[str]] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)

    def __post_init__(self):
        for k, part in enumerate(self.parts):
            for name, (footer, used) in _patiently(_annotations, part).items():
                for number, rows in used.items():
                    self._add(_Group(k, name, footer, number, tuple(rows)), list(rows.values()))

    def _add(self, group: _Group, meta: list[str]) -> None:
        held = group.footer.row_group(group.number)
        self.groups.append(group)
        self.meta.append(meta)
        self.nbytes.append(held.total_byte_size + held.num_rows * self.size * self.size * 3)

    def read(self, block: int) -> list[bytes]:
        """The JPEGs of a row group. Unreachable where the shards have not answered for AWAY_S."""
        return _patiently(self._read, self.groups[block])

    def _read(self, group: _Group) -> list[bytes]:
        with opened(self.parts[group.part].store, group.file, group.footer) as file:
            found = file.read_row_group(group.number, columns=["jpeg"], use_threads=False)["jpeg"]
        return [found[row].as_py() for row in group.rows]

    def decode(self, encoded: list[bytes], block: int, row: int) -> dict:
        return decode_row(
            json.loads(self.meta[block][row]) | {"jpeg": encoded[row]}, self.size, self.fit
        )


def _annotations(part: ShardSelection) -> dict[str, tuple[object, dict[int, dict[int, str]]]]:
    """Of each file its footer and what is used of it."""
    files = files_with(part.store, part.splits)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(
            zip(
                files,
                zip(
                    files.values(),
                    pool.map(partial(_used, part), files, files.values()),
                    strict=True,
                ),
                strict=True,
            )
        )


def _used(part: ShardSelection, name: str, footer) -> dict[int, dict[int, str]]:
    """Of each row group of a file that is used, {row: its JSON with the refs that are read}."""
    found = {}
    with opened(part.store, name, footer) as file:
        for number in range(file.num_row_groups):
            if may_hold(footer, number, part.splits):
                table = file.read_row_group(number, columns=["splits", "meta"], use_threads=False)
                rows = enumerate(
                    map(part.kept, table["splits"].to_pylist(), table["meta"].to_pylist())
                )
                if used := {r: json.dumps(row) for r, row in rows if row}:
                    found[number] = used
    return found


def place(
    train: list[ShardSelection],
    val: list[ShardSelection],
    size: int,
    fit: str,
    *,
    windowed: bool | None,
    say,
) -> ObjectStoreBlocks | StreamingBlocks:
    """Decode what fits the object store; where training pictures do not, they are read through a window, and that is said.

    windowed: what an earlier attempt of the run did, since the order of items follows from it; None: whichever fits.
    """
    free = store_free() * FREE_SHARE
    need, need_val = (
        sum(part.decoded_bytes(size) for part in parts) for parts in (train + val, val)
    )
    why = f"decoded pictures take {need / 1e9:.2f} GB of the {free / 1e9:.2f} GB free for them in the object store"
    if windowed is None:
        windowed = need > free
    if not windowed:
        if need > free:
            say(
                f"{why}: what does not fit is spilled to disk, since this run began without a window"
            )
        return ObjectStoreBlocks(
            tuple(ref for part in merged(train, val) for ref in decode_shards(part, size, fit).refs)
        )
    fits = need_val <= free and not any(
        t.splits & v.splits for t in train for v in val
    )  # else an item would be there twice
    say(
        f"{why}: each worker reads {'training' if fits else 'all'} pictures through a window of {WINDOW_BYTES / 2**20:.0f} MiB, "
        "and items are shuffled inside a window of shuffled row groups"
    )
    if not fits:
        return StreamingBlocks(tuple(merged(train, val)), size, fit)
    return StreamingBlocks(
        tuple(train),
        size,
        fit,
        ObjectStoreBlocks(
            tuple(ref for part in val for ref in decode_shards(part, size, fit).refs)
        ),
    )


def merged(train: list[ShardSelection], val: list[ShardSelection]) -> list[ShardSelection]:
    """Parts of one store read together, so that no picture is decoded twice."""
    found = {part.store.uri: part for part in train}
    for part in val:
        one = found.get(part.store.uri)
        found[part.store.uri] = (
            ShardSelection(part.store, one.splits | part.splits, one.leave | part.leave)
            if one
            else part
        )
    return list(found.values())


def store_free() -> float:
    """Bytes free in the smallest object store of the cluster: each machine that trains holds its own copy of what it maps."""
    import ray

    key = "object_store_memory"
    stores = [node["Resources"].get(key, 0) for node in ray.nodes() if node["Alive"]]
    used = ray.cluster_resources().get(key, 0) - ray.available_resources().get(key, 0)
    return max(0.0, min(stores) - used)
