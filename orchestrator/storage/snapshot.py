"""Snapshots: the files of a run's folder as they are at one moment, with their digests."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

SYNC_FOLDER = ".mirror"
"""Name of the folder inside a synced folder with the state of its synchronisation.

It holds what was last equal here and in the bucket, and what is still to be uploaded.
"""

DRIVER = "driver"
TRIAL = "trial"
"""Kinds of synced folder, by their writer: the driver of a run, or the process that trains."""

TRIAL_FILES = (
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
"""Names of what the process that trains writes into the folder of a run or a trial.

A population member that goes on from another's checkpoint gets that one's copy of some of them.
The other files of a run's folder are the driver's.
"""

LOCAL_FILES = ("tune", "ray", "lock", "STOP", SYNC_FOLDER)
"""Files that concern this machine alone and are not uploaded."""

APPENDED = (".jsonl", ".txt")
"""Suffixes of files that may grow in place, while the bytes they had stay the same.

All other files are replaced whole, so that an open file keeps its content.
"""

PIECE = 2**18
"""Bytes of a piece of a file that may grow in place, so that its earlier bytes are not sent again.

Any other file is one piece.
"""

CHUNK = 2**20
"""Bytes held in memory at once."""

Manifest = dict[str, dict[str, Any]]
"""{file name: {"pieces": SHA-256 digests in order, "mtime_ns": int}}"""


@dataclass
class FileVersion:
    """A file as it was at one moment; of an open file, as many bytes as it held then."""

    stamp: list[int]
    """Inode, size, mtime in ns: equal stamps mean equal content."""
    piece_size: int
    """Bytes."""
    pieces: list[str]
    """SHA-256 digests in order; empty while the file has not been read."""
    file: BinaryIO | None = None
    """The open file; None where its pieces were known from before."""

    def digests(self) -> list[str]:
        """Return the digests of the pieces, reading the file the first time."""
        if not self.pieces:
            number = max(1, math.ceil(self.stamp[1] / self.piece_size))
            self.pieces = [self._digest(k) for k in range(number)]
        return self.pieces

    def chunks(self, k: int) -> Iterator[bytes]:
        """Yield the bytes of piece k."""
        if self.file is None:
            raise ValueError("the file is not open")
        start = k * self.piece_size
        left = min(self.piece_size, self.stamp[1] - start)
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
        """Open a file that was not read again, because the bucket has lost a piece of it.

        Raises:
            OSError: the file is not the same any more.
        """
        known = self.pieces
        self.pieces = []
        self.file = path.open("rb")
        if self.digests() != known:
            raise OSError(f"{path.name} changed while it was to be uploaded")

    def close(self) -> None:
        """Close the file if it is open."""
        if self.file:
            self.file.close()
        self.file = None


@dataclass(frozen=True)
class Snapshot:
    """The files of a synced folder at one moment.

    Files whose stamp is the one that was last uploaded are not opened again.
    """

    at: int
    """The moment, as `time.time_ns()`."""
    files: dict[str, FileVersion]
    """{path in the folder: version}"""

    def close(self) -> None:
        """Close the open files."""
        for version in self.files.values():
            version.close()


def stamp_of(path: Path | int) -> list[int]:
    """Return inode, size and mtime in ns of a path or an open file descriptor."""
    found = os.stat(path)
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def piece_size(name: str, stamp: list[int]) -> int:
    """Return the bytes of a piece of a file of this name and stamp."""
    return PIECE if name.endswith(APPENDED) else max(1, stamp[1])


def pieces_of(manifest: Manifest) -> set[str]:
    """Return the digests of all pieces that a manifest names."""
    return {sha for entry in manifest.values() for sha in entry["pieces"]}


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return a manifest as it is written to the bucket."""
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def sha256(data: bytes) -> str:
    """Return the SHA-256 digest of some bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
