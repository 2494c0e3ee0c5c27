"""Read and decode pictures when they are needed, to train on data that do not fit into memory.

An epoch takes the blocks in a random order, a window of them at a time, and mixes the items inside
each window. The order is a function of (seed, epoch) and of how the pictures lie in blocks, so it
is the same on any number of workers and after a resume. Threads read and decode the pictures of a
plan of batches ahead of it, each picture once a window, and drop a picture after the last batch
that shows it.
"""

from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, overload

import numpy as np

WINDOW_BYTES = 512 * 2**20
"""Bytes of the encoded and decoded pictures of a window together.

The number is the same on every worker, since the order of items depends on it.
"""

AHEAD = 128
"""Pictures decoded before their turn."""

READERS = 4
"""Blocks read at a time; object stores answer slowly, but serve many requests at once."""

LONE_PICTURES = 8
"""Pictures outside of any plan that are kept."""

Place = tuple[int, int]
"""Block and row."""


class Pictures(Protocol):
    """Source of the pictures."""

    nbytes: list[int]
    """Bytes of each block, encoded and decoded."""

    @property
    def meta(self) -> Sequence[Sequence[str]]:
        """JSON of each row of each block."""

    def read(self, block: int) -> Sequence:
        """Return the encoded rows of a block for `decode`."""

    def decode(self, encoded: Sequence, block: int, row: int) -> dict:
        """Return `image` and `masks` of a row at network size (see `decode.decode_row`)."""


class Window(Sequence[dict]):
    """Blocks for `Items`, some of them in memory, the others read when they are needed.

    Args:
        pictures: source of the blocks that are not in memory.
        resident: blocks in memory; they come first.
        nbytes: bytes of a window.
    """

    def __init__(
        self, pictures: Pictures, resident: Sequence[dict] = (), nbytes: int = WINDOW_BYTES
    ) -> None:
        self.pictures = pictures
        self.nbytes = nbytes
        self.first = len(resident)
        """Index of the first block that is not in memory."""
        lazy = [
            {"meta": text, **{name: _Column(self, b, name) for name in ("image", "masks")}}
            for b, text in enumerate(pictures.meta)
        ]
        self.blocks = [*resident, *lazy]
        self.plans: list[dict[Place, Future]] = []
        """Pictures decoded or being decoded, for each plan of batches that is under way."""
        self.lone: dict[Place, dict] = {}
        """Latest pictures that were asked for outside of any plan."""

    def __len__(self) -> int:
        return len(self.blocks)

    @overload
    def __getitem__(self, block: int) -> dict: ...
    @overload
    def __getitem__(self, block: slice) -> Sequence[dict]: ...
    def __getitem__(self, block: int | slice) -> dict | Sequence[dict]:
        return self.blocks[block]

    def span(self, blocks: np.ndarray) -> int:
        """Return how many of these blocks make a window, at least two."""
        lazy = [self.pictures.nbytes[b - self.first] for b in blocks if b >= self.first]
        return max(2, int(self.nbytes // np.mean(lazy or [1])))

    def order(self, blocks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a permutation of items that keeps those of a window together.

        Args:
            blocks: (n,) block of each item.
            rng: source of the draws.

        Returns:
            (n,) indices.
        """
        used, which = np.unique(blocks, return_inverse=True)
        turn = rng.permutation(len(used)) // self.span(used)
        return np.lexsort((rng.random(len(blocks)), turn[which]))

    def ahead(self, batches: list[np.ndarray]) -> Generator[None, None, None]:
        """Yield once a batch, when its pictures are decoded.

        Pictures are dropped after the last batch of the plan that shows them.

        Args:
            batches: (n, 2) block and row of the pictures of each batch.
        """
        import torch  # here, since tasks that only decode import this module, too

        def lazy(batch: np.ndarray) -> list[Place]:
            """Return the places of a batch that are not in memory."""
            return [(b, row) for b, row in batch.tolist() if b >= self.first]

        last = {place: k for k, batch in enumerate(batches) for place in lazy(batch)}
        waiting = deque(last)
        started = 0
        held: dict[Place, Future] = {}
        seen: set[Place] = set()
        readers = ThreadPoolExecutor(READERS)
        decoders = ThreadPoolExecutor(max(1, torch.get_num_threads()))
        blocks = _Blocks(self, readers, Counter(block for block, _ in last))
        self.plans.append(held)
        try:
            for k, batch in enumerate(map(lazy, batches)):
                seen.update(batch)
                while waiting and started < len(seen) + AHEAD:
                    place = waiting.popleft()
                    started += 1
                    held[place] = decoders.submit(blocks.decode, *place, blocks.start(place[0]))
                for place in batch:
                    held[place].result()
                yield
                for place in {place for place in batch if last[place] == k}:
                    del held[place]
        finally:  # without waiting, since a reader may go on asking shards that do not answer
            self.plans.remove(held)
            readers.shutdown(wait=False, cancel_futures=True)
            decoders.shutdown(wait=False, cancel_futures=True)

    def picture(self, block: int, row: int) -> dict:
        """Return `image` and `masks` of a row, decoded by a plan or else now."""
        place = (block, row)
        for held in self.plans:
            if place in held:
                return held[place].result()
        if place not in self.lone:
            encoded = self.pictures.read(block - self.first)
            decoded = self.pictures.decode(encoded, block - self.first, row)
            self.lone = dict([*self.lone.items(), (place, decoded)][-LONE_PICTURES:])
        return self.lone[place]


class _Column:
    """Images or masks of a block by row; `block` counts from the first block not in memory."""

    def __init__(self, window: Window, block: int, name: str) -> None:
        self.window = window
        self.block = block
        self.name = name

    def __getitem__(self, row: int) -> Any:
        return self.window.picture(self.block + self.window.first, row)[self.name]


class _Blocks:
    """Encoded blocks of one plan.

    Each block is read once, and dropped when all rows that the plan shows of it are decoded.

    Args:
        window: the blocks.
        readers: threads that read.
        left: rows of each block that the plan has yet to ask for.
    """

    def __init__(self, window: Window, readers: ThreadPoolExecutor, left: Counter[int]) -> None:
        self.pictures = window.pictures
        self.first = window.first
        self.readers = readers
        self.left = left
        self.read: dict[int, Future] = {}

    def start(self, block: int) -> Future:
        """Return a block being read. One thread calls this method, in the order of the plan."""
        if block not in self.read:
            self.read[block] = self.readers.submit(self.pictures.read, block - self.first)
        future = self.read[block]
        self.left[block] -= 1
        if not self.left[block]:  # nobody will ask again: only the decoding tasks still hold it
            del self.read[block]
        return future

    def decode(self, block: int, row: int, encoded: Future) -> dict:
        """Decode a row of a block, waiting until the block is read."""
        return self.pictures.decode(encoded.result(), block - self.first, row)
