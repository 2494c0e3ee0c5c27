"""The files of a run's folder as they are at one moment, with their digests."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

OWN = ".mirror"

"""In a bundle's folder: what was last in step with the bucket, what is still to be delivered."""

DRIVER, TRIAL = "driver", "trial"

OF_TRIAL = (
    "last",
    "last.previous",
    "best",
    "best.previous",
    "pictures",
    "epochs.jsonl",
    "notes.txt",
    "failed.json",
    "generation.json",
)

"""What those who train write into a run's or a trial's folder, and whose copy a population's member goes on from; the rest is the driver's."""

OF_NOBODY = ("tune", "ray", "lock", "STOP", OWN)

"""Of this machine alone."""

APPENDED = (".jsonl", ".txt")

"""Files that may grow in place: their first bytes stay what they were. All others are replaced whole, and an open file stays what it was."""

PIECE = 2**18

"""Bytes of a piece of a file that may grow in place, so that what it held before is not sent again. Any other file is one piece."""

CHUNK = 2**20

"""Bytes in memory at once."""


@dataclass
class Part:
    """A file of a bundle as it was at one moment: of an open file as many bytes as it held then."""

    stamp: list[int]
    """inode, size, mtime in ns: equal ones mean equal content."""
    step: int
    """Bytes of a piece."""
    pieces: list[str]
    """Digests in order; none: not yet read."""
    file: BinaryIO | None = None

    def digests(self) -> list[str]:
        if not self.pieces:
            self.pieces = [
                self._digest(k) for k in range(max(1, math.ceil(self.stamp[1] / self.step)))
            ]
        return self.pieces

    def chunks(self, k: int) -> Iterator[bytes]:
        """The bytes of piece k."""
        start = k * self.step
        left = min(self.step, self.stamp[1] - start)
        self.file.seek(start)
        while left and (chunk := self.file.read(min(left, CHUNK))):
            left -= len(chunk)
            yield chunk

    def _digest(self, k: int) -> str:
        digest = hashlib.sha256()
        for chunk in self.chunks(k):
            digest.update(chunk)
        return digest.hexdigest()

    def reopen(self, path: Path) -> None:
        """Of one that was not read again: the bucket has lost it. OSError where it is not the same any more."""
        known, self.pieces, self.file = self.pieces, [], path.open("rb")
        if self.digests() != known:
            raise OSError(f"{path.name} changed while it was to be delivered")

    def close(self) -> None:
        if self.file:
            self.file.close()
        self.file = None


def _stamp(path: Path | int) -> list[int]:
    """Of a path or an open file."""
    found = os.stat(path)
    return [found.st_ino, found.st_size, found.st_mtime_ns]


@dataclass(frozen=True)
class Snapshot:
    """The files of a bundle at one moment; those of an unchanged stamp are not read again."""

    at: int
    """time.time_ns()"""
    parts: dict[str, Part]

    def close(self) -> None:
        for part in self.parts.values():
            part.close()


def _step(name: str, stamp: list[int]) -> int:
    """Bytes of a piece of such a file."""
    return PIECE if name.endswith(APPENDED) else max(1, stamp[1])


def _pieces(manifest: dict) -> set[str]:
    """The objects that a manifest names."""
    return {sha for entry in manifest.values() for sha in entry["pieces"]}


def _json(manifest: dict) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
