"""The copy of a synced folder in its bucket: pieces of files, and the manifest that names them."""

import contextlib
import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from aml.errors import UserError
from orchestrator.storage.snapshot import (
    CHUNK,
    Manifest,
    manifest_bytes,
    pieces_of,
    sha256,
)

if TYPE_CHECKING:
    from orchestrator.storage.filesystem import Filesystem

DIGEST = re.compile("[0-9a-f]{64}")

TRIES = 3
"""A manifest may be replaced while its pieces are read: it is then read again."""


class RemoteFolder:
    """The files that one writer keeps in a folder of a bucket.

    Every piece of a file is an object `objects/<SHA-256>`. Methods raise an OSError or a UserError
    where the bucket cannot be reached.
    """

    def __init__(self, uri: str, kind: str) -> None:
        """Name the folder; nothing is read yet.

        Args:
            uri: the address of the folder.
            kind: its writer, `snapshot.DRIVER` or `snapshot.TRIAL`.
        """
        self.uri = uri
        self.manifest_name = f"{kind}.manifest.json"

    @functools.cached_property
    def store(self) -> "Filesystem":
        """The file system of the bucket, opened when it is first used."""
        from orchestrator.storage.filesystem import Filesystem

        return Filesystem(self.uri, impatient=True)

    def exists(self) -> bool:
        """Return whether the writer has uploaded anything."""
        return self.raw_manifest() is not None

    def raw_manifest(self) -> bytes | None:
        """Return the bytes of the manifest; None where there is none."""
        return self.store.read(self.manifest_name)

    def manifest(self) -> Manifest:
        """Return the manifest; empty where there is none."""
        return self.parse(self.raw_manifest() or b"{}")

    def parse(self, raw: bytes) -> Manifest:
        """Return the manifest that some bytes hold.

        Raises:
            UserError: they are no manifest, or name a file outside the folder: whoever may write to
                the bucket may not write anywhere on the machines that read it.
        """
        try:
            manifest = json.loads(raw)
            for path in map(PurePosixPath, manifest):
                if path.is_absolute() or ".." in path.parts:
                    raise ValueError(f"it names {path}, which is outside its folder")
            if odd := [sha for sha in pieces_of(manifest) if not DIGEST.fullmatch(sha)]:
                raise ValueError(f"it names the piece {odd[0]}, which is no digest")
            return manifest
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{self.uri} holds a {self.manifest_name} that this program did not write; "
                "restore it, or start another with --fresh"
            ) from None

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file; None where the manifest does not name it.

        Raises:
            FileNotFoundError: pieces of the file are missing.
        """
        for _ in range(TRIES):
            entry = self.manifest().get(name)
            if entry is None:
                return None
            found = [self.store.read(f"objects/{sha}") for sha in entry["pieces"]]
            pieces = [piece for piece in found if piece is not None]
            if len(pieces) == len(found):
                return b"".join(pieces)
        raise FileNotFoundError(f"{self.uri} lacks objects of {name}")

    def download_piece(self, sha: str, file: BinaryIO) -> str:
        """Append a piece to a file and return the digest of the bytes that came."""
        digest = hashlib.sha256()
        path = self.store.join(f"objects/{sha}")
        with self.store.answering(), self.store.fs.open_input_stream(path) as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    def upload_piece(self, sha: str, chunks: Iterable[bytes]) -> None:
        """Write a piece, given its digest and its bytes."""
        path = self.store.join(f"objects/{sha}")
        with self.store.answering(), self.store.fs.open_output_stream(path) as stream:
            for chunk in chunks:
                stream.write(chunk)

    def replace_manifest(self, manifest: Manifest, before: Manifest) -> None:
        """Write a manifest whose pieces are all there, then delete pieces that it does not name.

        Args:
            manifest: the new manifest.
            before: the one that it replaces.
        """
        path = self.store.join(self.manifest_name)
        with self.store.answering(), self.store.fs.open_output_stream(path) as stream:
            stream.write(manifest_bytes(manifest))
        for sha in pieces_of(before) - pieces_of(manifest):
            with contextlib.suppress(FileNotFoundError):
                self.store.fs.delete_file(self.store.join(f"objects/{sha}"))

    def clone_from(
        self,
        source: "RemoteFolder",
        names: tuple[str, ...],
        unwanted: tuple[str, ...],
        added: dict[str, bytes],
    ) -> None:
        """Replace files by those of another remote folder, without a local copy.

        No process may be writing either folder. An interrupted call has changed nothing and may be
        repeated.

        Args:
            source: the folder to copy from, in the same bucket.
            names: top-level files and folders to take from `source` in place of this folder's.
            unwanted: top-level files and folders to delete.
            added: bytes of new files by name.
        """
        before = self.manifest()
        copied = {
            name: entry for name, entry in source.manifest().items() if name.split("/")[0] in names
        }
        for sha in pieces_of(copied) - pieces_of(before):
            self.store.fs.copy_file(
                source.store.join(f"objects/{sha}"), self.store.join(f"objects/{sha}")
            )
        for data in added.values():
            self.upload_piece(sha256(data), [data])
        kept = {
            name: entry
            for name, entry in before.items()
            if name.split("/")[0] not in (*names, *unwanted)
        }
        new = {
            name: {"pieces": [sha256(data)], "mtime_ns": time.time_ns()}
            for name, data in added.items()
        }
        self.replace_manifest(kept | copied | new, before)

    def delete(self, unwanted: Callable[[str], bool]) -> tuple[bytes, Manifest] | None:
        """Delete the files whose names a function picks.

        Returns:
            The bytes of the manifest before, and the manifest after; None where nothing changed.
        """
        raw = self.raw_manifest() or b"{}"
        before = self.parse(raw)
        manifest = {name: entry for name, entry in before.items() if not unwanted(name)}
        if manifest == before:
            return None
        self.replace_manifest(manifest, before)
        return raw, manifest
