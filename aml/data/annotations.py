"""Hold the annotations of blocks as arrays of numbers and one text of all sentences.

A row's JSON parsed takes ten times the memory of its numbers, and every process that reads would
hold it; so a whole row is parsed only where it is asked for.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from aml.data.refer_counts import targets_of

SENTENCE = np.dtype(
    [
        *((name, np.int16) for name in ("split", "dataset", "split_by")),
        *((name, np.int32) for name in ("block", "row", "height", "width", "ref", "sent_bytes")),
        *((name, np.int64) for name in ("image_id", "ref_id", "sent_id", "sent_start", "key")),
        ("no_target", np.bool_),
    ]
)
"""A sentence of a ref of a row of a block. `split`, `dataset` and `split_by` are indices in
`Annotations.names`; `ref` is the index of the ref in the row; `sent_start` and `sent_bytes` are the
place of its text; `key` is `item_key`."""


def item_key(dataset: str, split_by: str, ref_id: int, sent_id: int) -> int:
    """Return a stable signed 64-bit hash of an item's identity."""
    identity = f"{dataset}/{split_by}/{ref_id}/{sent_id}".encode()
    digest = hashlib.blake2b(identity, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class Annotations:
    """Annotations of blocks.

    Args:
        blocks: decoded blocks, of which `meta` is read (see `decode.rows_of_block`).
    """

    def __init__(self, blocks: Sequence[dict]) -> None:
        self.blocks = blocks
        self.names: dict[str, list[str]] = {"split": [], "dataset": [], "split_by": []}
        """Different names, sorted."""
        codes: dict[str, dict[str, int]] = {name: {} for name in self.names}
        text = bytearray()
        found = np.fromiter(_sentences(blocks, codes, text), SENTENCE)
        for name, given in codes.items():
            self.names[name] = sorted(given)
            found[name] = np.argsort([given[n] for n in self.names[name]])[found[name]]
        self.text = bytes(text)
        """All sentences, UTF-8."""
        # sorted, since the plan must not depend on how rows were spread over blocks
        order = np.lexsort(
            [found[n] for n in ("ref_id", "image_id", "split_by", "dataset", "split")]
        )
        self.sentences: np.ndarray = found[order]
        """(n,) SENTENCE, those of a split together, and in it those of a ref."""

    def split(self, name: str) -> np.ndarray:
        """Return the sentences of a split, (n,) SENTENCE, without a copy; empty without it."""
        if name not in self.names["split"]:
            return self.sentences[:0]
        code = self.names["split"].index(name)
        return self.sentences[slice(*np.searchsorted(self.sentences["split"], [code, code + 1]))]

    def texts(self, sentences: np.ndarray) -> Iterator[str]:
        """Yield the texts of sentences, (n,) SENTENCE."""
        starts, sizes = (sentences[name].tolist() for name in ("sent_start", "sent_bytes"))
        for start, size in zip(starts, sizes, strict=True):
            yield self.text[start : start + size].decode()

    def row(self, block: int, row: int) -> dict[str, Any]:
        """Return a row without its picture, parsed anew."""
        return json.loads(self.blocks[block]["meta"][row])


def _sentences(
    blocks: Sequence[dict], codes: dict[str, dict[str, int]], text: bytearray
) -> Iterator[tuple]:
    """Yield the fields of each sentence of the blocks, adding new names and all texts to others."""

    def code(kind: str, name: str) -> int:
        return codes[kind].setdefault(name, len(codes[kind]))

    for block, columns in enumerate(blocks):
        for number, row in enumerate(map(json.loads, columns["meta"])):
            named = row["dataset"], row["split_by"]
            of_row = code("dataset", named[0]), code("split_by", named[1])
            place = block, number, row["height"], row["width"]
            for index, ref in enumerate(row["refs"]):
                split, no_target = code("split", ref["split"]), not targets_of(ref)
                for sentence in ref["sentences"]:
                    sent = sentence["sent"].encode()
                    ids = row["image_id"], ref["ref_id"], sentence["sent_id"]
                    key = item_key(*named, *ids[1:])
                    yield (
                        split,
                        *of_row,
                        *place,
                        index,
                        len(sent),
                        *ids,
                        len(text),
                        key,
                        no_target,
                    )
                    text += sent
