"""A storage root in a bucket (s3://...): each machine works in a folder of its own, and what is finished goes to the bucket.

    ~/.cache/amlris/<hash>/RUN/...               the working copy; XDG_CACHE_HOME moves it
    BUCKET/RUN/driver.manifest.json              which files the driver's bundle of the run holds; the objects are named by their content
    BUCKET/RUN/trials/TRIAL/trial.manifest.json  the same for what the trial's process writes: checkpoints, epochs, pictures, notes
    BUCKET/RUN/.../objects/<SHA-256>             BUCKET/RUN/lease: who works on the run (orchestrator.locks)

A bundle has one writer. Its objects are written first and the manifest that names them last, so that a reader sees a bundle as it was at one
moment or as it was at another. What is taken is held against its digest; aml.checkpoint sees a checkpoint that came damaged and takes the one before.
"""

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from aml.errors import UserError
from orchestrator.storage.paths import bucket_of
from orchestrator.storage.snapshot import (
    CHUNK,
    DRIVER,
    OF_NOBODY,
    OF_TRIAL,
    OWN,
    TRIAL,
    Part,
    Snapshot,
    _json,
    _pieces,
    _sha,
    _stamp,
    _step,
)
from orchestrator.utils import exclusive_lock

TRIES = 3

"""A manifest may be replaced while its objects are read."""


class SyncedFolder:
    """What one writer keeps in a folder of a mirrored root, and its copy in the bucket.

    Whoever cannot reach the bucket gets an OSError or a UserError, which says why.
    """

    def __init__(self, folder: Path, kind: str):
        self.folder, self.kind = Path(folder).absolute(), kind
        self.uri = bucket_of(self.folder)
        self.manifest_name = f"{kind}.manifest.json"
        self.own = self.folder / OWN / kind

    @functools.cached_property
    def store(self):
        from orchestrator.storage.filesystem import Filesystem

        return Filesystem(self.uri, impatient=True)

    # -- here

    def names(self) -> Iterator[str]:
        """The files of the bundle that are here, relative to the folder."""
        if self.kind == TRIAL:
            tops = [self.folder / name for name in OF_TRIAL]
        else:
            mine = (
                p
                for p in self.folder.glob("*")
                if p.name not in (*OF_TRIAL, *OF_NOBODY, "trials")
                and not p.name.endswith((".draft", ".new"))
            )
            tops = [*mine, *self.folder.glob("trials/*/trial.json")]
        for path in (
            path for top in tops for path in ([top] if top.is_file() else sorted(top.rglob("*")))
        ):
            if path.is_file() and not path.name.endswith(".tmp"):
                yield path.relative_to(self.folder).as_posix()

    def snapshot(self) -> Snapshot:
        """The files as they are now. Taken by the one who writes them, between two writes; whatever happens to them then, it stays."""
        at, parts, known = time.time_ns(), {}, self._synced()["files"]
        for name in self.names():
            path, noted = self.folder / name, known.get(name, {})
            try:
                stamp = _stamp(path)
                if noted.get("stamp") == stamp:
                    parts[name] = Part(stamp, _step(name, stamp), noted["pieces"])
                else:
                    file = path.open("rb")
                    stamp = _stamp(file.fileno())
                    parts[name] = Part(stamp, _step(name, stamp), [], file)
            except FileNotFoundError:  # the tracking queue's thread has put it away
                continue
        self.own.mkdir(parents=True, exist_ok=True)
        (self.own / "offered").write_text(str(at))
        return Snapshot(at, parts)

    def undelivered(self) -> bool:
        """Whether something of this folder was to go to the bucket and has not arrived."""
        offered = self.own / "offered"
        return offered.exists() and int(offered.read_text() or 0) > self._synced()["at"]

    # -- there

    def exists(self) -> bool:
        return self.store.read(self.manifest_name) is not None

    def push(self, snapshot: Snapshot, *, ours_only: bool = False) -> None:
        """Objects first, the manifest last, then what nothing names any more is removed.

        ours_only: leave the bucket as it is where somebody else has written to it since this folder was in step with it.
        """
        with exclusive_lock(self.own):
            synced = self._synced()
            if snapshot.at <= synced["at"]:  # a later one was quicker
                return
            raw = self.store.read(self.manifest_name) or b"{}"
            if ours_only and _sha(raw) != synced["manifest"]:
                return self._save(synced | {"at": snapshot.at})
            manifest = self._write(snapshot, self._parsed(raw))
            files = {
                name: {"pieces": part.pieces, "stamp": part.stamp}
                for name, part in snapshot.parts.items()
            }
            self._save({"at": snapshot.at, "manifest": _sha(_json(manifest)), "files": files})

    def _write(self, snapshot: Snapshot, there: dict) -> dict:
        present = _pieces(there)
        for name, part in snapshot.parts.items():
            if part.file is None and not present.issuperset(part.pieces):
                part.reopen(self.folder / name)
            for k, sha in enumerate(part.digests()):
                if sha not in present:
                    self._upload(sha, part.chunks(k))
                    present.add(sha)
        manifest = {
            name: {"pieces": part.pieces, "mtime_ns": part.stamp[2]}
            for name, part in snapshot.parts.items()
        }
        self._put(manifest, there)
        return manifest

    def _upload(self, sha: str, chunks: Iterable[bytes]) -> None:
        with self.store.fs.open_output_stream(self.store.join(f"objects/{sha}")) as stream:
            for chunk in chunks:
                stream.write(chunk)

    def _put(self, manifest: dict, before: dict) -> None:
        with self.store.fs.open_output_stream(self.store.join(self.manifest_name)) as stream:
            stream.write(_json(manifest))
        for sha in _pieces(before) - _pieces(manifest):
            self._remove(f"objects/{sha}")

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.store.fs.delete_file(self.store.join(name))

    def read(self, name: str) -> bytes | None:
        """A file as the bucket has it; None where it has none of that name."""
        for _ in range(TRIES):
            entry = self._there().get(name)
            pieces = [self.store.read(f"objects/{sha}") for sha in entry["pieces"]] if entry else []
            if None not in pieces:
                return b"".join(pieces) if entry else None
        raise FileNotFoundError(f"{self.uri} lacks objects of {name}")

    def take(
        self,
        donor: "SyncedFolder",
        names: tuple[str, ...],
        unwanted: tuple[str, ...],
        added: dict[str, bytes],
    ) -> None:
        """In the bucket alone: files and folders as another bundle there has them, in place of this one's; nothing of `unwanted`; new files.

        Nobody may be writing either of them. Cut off in the middle it has changed nothing, and may be done again.
        """
        with exclusive_lock(self.own):
            before = self._there()
            theirs = {
                name: entry for name, entry in donor._there().items() if name.split("/")[0] in names
            }
            for sha in _pieces(theirs) - _pieces(before):
                self.store.fs.copy_file(
                    donor.store.join(f"objects/{sha}"), self.store.join(f"objects/{sha}")
                )
            for data in added.values():
                self._upload(_sha(data), [data])
            kept = {
                name: entry
                for name, entry in before.items()
                if name.split("/")[0] not in (*names, *unwanted)
            }
            new = {
                name: {"pieces": [_sha(data)], "mtime_ns": time.time_ns()}
                for name, data in added.items()
            }
            self._put(kept | theirs | new, before)

    def drop(self, unwanted: Callable[[str], bool]) -> None:
        """Take files out of the bucket, and only there; nothing where it holds none of them."""
        with exclusive_lock(self.own):
            raw = self.store.read(self.manifest_name) or b"{}"
            before, synced = self._parsed(raw), self._synced()
            manifest = {name: entry for name, entry in before.items() if not unwanted(name)}
            if manifest != before:
                self._put(manifest, before)
                if synced["manifest"] == _sha(raw):
                    self._save(synced | {"manifest": _sha(_json(manifest))})

    def pull(
        self, wanted: Callable[[dict], set[str]] = set, *, exact: bool = False, wait: bool = True
    ) -> bool:
        """Bring what the bucket has and this folder lacks, or has as it was before.   -> whether the bucket holds the bundle

        wanted: the names to bring of a manifest, all by default. What was written here since it was last in step stays unless the bucket
        has gone on, too: then the bucket's counts, and with exact in any case. wait False: nothing, while a process of this machine is
        delivering it: then the newest is here.
        """
        if not exact and not self.exists():
            return False
        with exclusive_lock(self.own, wait=wait) as held:
            if not held:
                return True
            for attempt in range(TRIES):
                raw = self.store.read(self.manifest_name)
                manifest = self._parsed(raw or b"{}")
                try:
                    self._bring(manifest, wanted(manifest), exact)
                    return raw is not None
                except FileNotFoundError:
                    if attempt == TRIES - 1:
                        raise
        raise AssertionError("unreachable")

    def _bring(self, manifest: dict, wanted: set[str], exact: bool) -> None:
        synced = self._synced()
        files = synced["files"]
        moved = exact or any(
            files.get(n, {}).get("pieces") != manifest[n]["pieces"] for n in wanted
        )
        if not moved and (self.own / "offered").exists():  # written here, perhaps at this moment
            return
        for name in sorted(wanted):
            noted, path = files.get(name, {}), self.folder / name
            same = noted.get("pieces") == manifest[name]["pieces"] and path.exists()
            if same and (not moved or noted["stamp"] == _stamp(path)):
                continue
            if self._download(manifest[name], path):
                files[name] = {"pieces": manifest[name]["pieces"], "stamp": _stamp(path)}
        whole = wanted == set(manifest)
        if moved and whole:  # of a part of the bundle nothing is known to be gone
            for name in (set(self.names()) if exact else set(files)) - set(manifest):
                (self.folder / name).unlink(missing_ok=True)
                files.pop(name, None)
        self._save(
            synced | {"files": files} | ({"manifest": _sha(_json(manifest))} if whole else {})
        )

    def _download(self, entry: dict, path: Path) -> bool:
        """-> whether what came is what was written; it is put in place either way: who reads it looks at digests of its own."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".tmp")
        with draft.open("wb") as file:
            damaged = [sha for sha in entry["pieces"] if self._fetch(sha, file) != sha]
        if damaged and self.kind == DRIVER:
            raise UserError(
                f"{self.uri}/objects/{damaged[0]} ({path.name}) is not as it was written; restore it, or start another with --fresh"
            )
        os.utime(
            draft, ns=(entry["mtime_ns"], entry["mtime_ns"])
        )  # the order of starts is read from it
        os.replace(draft, path)
        return not damaged

    def _fetch(self, sha: str, file: BinaryIO) -> str:
        """Append an object to a file.   -> its digest as it came"""
        digest = hashlib.sha256()
        with self.store.fs.open_input_stream(self.store.join(f"objects/{sha}")) as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    def _there(self) -> dict:
        return self._parsed(self.store.read(self.manifest_name) or b"{}")

    def _parsed(self, raw: bytes) -> dict:
        try:
            manifest = json.loads(raw)
            if any(
                PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
                for name in manifest
            ):
                raise ValueError("it names a file outside its folder")
            return manifest
        except ValueError:
            raise UserError(
                f"{self.uri} holds a {self.manifest_name} that is none of ours; restore it, or start another with --fresh"
            ) from None

    # -- what was last in step

    def _synced(self) -> dict:
        path = self.own / "synced.json"
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return {"at": 0, "manifest": _sha(b"{}"), "files": {}}

    def _save(self, synced: dict) -> None:
        self.own.mkdir(parents=True, exist_ok=True)
        draft = self.own / "synced.json.tmp"
        draft.write_text(json.dumps(synced))
        os.replace(draft, self.own / "synced.json")
