"""Blocks whose pictures are got when they are needed: training on what does not fit into memory.

An epoch takes the blocks in a random order, a window of them at a time, and mixes the items inside each window. The order is a function of
(seed, epoch) and of how the pictures lie in blocks, so it is the same on any number of workers and after a resume. What a plan of batches will
need is read and decoded ahead of it in threads, each picture once a window, and let go after the last batch that shows it.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

WINDOW_BYTES = 512 * 2**20

"""Encoded and decoded pictures of a window together; the same everywhere, since the order hangs on it."""

AHEAD = 128

"""Pictures decoded before their turn."""

READERS = 4

"""Blocks read at a time: object stores answer slowly, but many at once."""

Place = tuple[int, int]

"""Block and row."""


class Pictures(Protocol):
    """Where the pictures come from."""

    meta: list[list[str]]
    """Of each block, the JSON of each row."""
    nbytes: list[int]
    """Of each block, encoded and decoded."""

    def read(self, block: int) -> Sequence:
        """What `decode` needs of a block's rows."""

    def decode(self, encoded, block: int, row: int) -> dict:
        """A picture at network size as aml.decode.decode_row makes it: image, masks."""


class Window(Sequence):
    """Blocks as aml.data.Items takes them: some in memory (`resident`), then those of `pictures`."""

    def __init__(
        self, pictures: Pictures, resident: Sequence[dict] = (), nbytes: int = WINDOW_BYTES
    ):
        self.pictures, self.first, self.nbytes = pictures, len(resident), nbytes
        lazy = [
            {"meta": text, **{name: _Column(self, b, name) for name in ("image", "masks")}}
            for b, text in enumerate(pictures.meta)
        ]
        self.blocks = [*resident, *lazy]
        self.plans: list[dict[Place, Future]] = []
        self.lone: dict[Place, dict] = {}

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, block: int) -> dict:
        return self.blocks[block]

    def span(self, blocks: np.ndarray) -> int:
        """How many of these blocks make a window."""
        cost = np.mean(
            [self.pictures.nbytes[b - self.first] for b in blocks if b >= self.first] or [1]
        )
        return max(2, int(self.nbytes // cost))

    def order(self, blocks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A permutation of items that keeps those of a window together.   blocks (n,): where each lies"""
        used, which = np.unique(blocks, return_inverse=True)
        turn = rng.permutation(len(used)) // self.span(used)
        return np.lexsort((rng.random(len(blocks)), turn[which]))

    def ahead(self, batches: list[list[Place]]) -> Iterator[None]:
        """Yields once a batch, when its pictures are at hand; they are dropped when nothing further of the plan shows them."""
        import torch  # here, since tasks that only decode import this module, too

        batches = [[(b, row) for b, row in batch if b >= self.first] for batch in batches]
        last = {place: k for k, batch in enumerate(batches) for place in batch}
        waiting, reached, held = deque(last), 0, {}
        seen: set[Place] = set()
        readers, decoders = (
            ThreadPoolExecutor(READERS),
            ThreadPoolExecutor(max(1, torch.get_num_threads())),
        )
        blocks = _Blocks(self, readers, Counter(block for block, _ in last))
        self.plans.append(held)
        try:
            for k, batch in enumerate(batches):
                seen.update(batch)
                while waiting and reached < len(seen) + AHEAD:
                    place, reached = waiting.popleft(), reached + 1
                    held[place] = decoders.submit(blocks.decode, *place, blocks.start(place[0]))
                for place in batch:
                    held[place].result()
                yield
                for place in {place for place in batch if last[place] == k}:
                    del held[place]
        finally:  # without waiting: a reader may be patient with shards that do not answer
            self.plans.remove(held)
            readers.shutdown(wait=False, cancel_futures=True)
            decoders.shutdown(wait=False, cancel_futures=True)

    def picture(self, block: int, row: int) -> dict:
        """image, masks: what a plan holds ready, else decoded now."""
        place = block, row
        for held in self.plans:
            if place in held:
                return held[place].result()
        if place not in self.lone:
            made = self.pictures.decode(
                self.pictures.read(block - self.first), block - self.first, row
            )
            self.lone = dict([*self.lone.items(), (place, made)][-8:])
        return self.lone[place]


class _Column:
    """A block's images or masks by row."""

    def __init__(self, window: Window, block: int, name: str):
        self.window, self.block, self.name = window, block, name

    def __getitem__(self, row: int):
        return self.window.picture(self.block + self.window.first, row)[self.name]


class _Blocks:
    """Encoded blocks of one plan: each is read once and dropped when all that the plan shows of it is decoded."""

    def __init__(self, window: Window, readers: ThreadPoolExecutor, left: Counter):
        self.pictures, self.first, self.readers, self.left = (
            window.pictures,
            window.first,
            readers,
            left,
        )
        self.read: dict[int, Future] = {}

    def start(self, block: int) -> Future:
        """Have a block read; called in the order of the plan by one thread."""
        if block not in self.read:
            self.read[block] = self.readers.submit(self.pictures.read, block - self.first)
        future = self.read[block]
        self.left[block] -= 1
        if not self.left[block]:  # the last that asks: from here only the decoding tasks hold it
            del self.read[block]
        return future

    def decode(self, block: int, row: int, encoded: Future) -> dict:
        return self.pictures.decode(encoded.result(), block - self.first, row)
