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
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from aml.errors import UserError
from orchestrator.locks import alone

ADDRESS = "bucket.txt"
"""In a working root: the address of its bucket."""

OWN = ".mirror"
"""In a bundle's folder: what was last in step with the bucket, what is still to be delivered."""

DRIVER, TRIAL = "driver", "trial"

OF_TRIAL = ("last", "last.previous", "best", "best.previous", "pictures", "epochs.jsonl", "notes.txt", "failed.json", "generation.json")
"""What those who train write into a run's or a trial's folder, and whose copy a population's member goes on from; the rest is the driver's."""

OF_NOBODY = ("tune", "ray", "lock", "STOP", OWN)
"""Of this machine alone."""

APPENDED = (".jsonl", ".txt")
"""Files that may grow in place: their first bytes stay what they were. All others are replaced whole, and an open file stays what it was."""

PIECE = 2**18
"""Bytes of a piece of a file that may grow in place, so that what it held before is not sent again. Any other file is one piece."""

CHUNK = 2**20
"""Bytes in memory at once."""

TRIES = 3
"""A manifest may be replaced while its objects are read."""

# ---- places ---------------------------------------------------------------------------------------------------------


def is_address(text: str | Path | None) -> bool:
    return str(text or "").startswith("s3://")


def working_root(uri: str) -> Path:
    """This machine's folder for a root in a bucket. UserError: the address holds keys."""
    from orchestrator.shards import refuse_keys

    refuse_keys(uri)
    uri = join(uri)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = (cache / "amlris" / hashlib.sha256(uri.encode()).hexdigest()[:16]).absolute()
    if not (root / ADDRESS).exists():
        root.mkdir(parents=True, exist_ok=True)
        draft = root / f"{ADDRESS}.{os.getpid()}"
        draft.write_text(uri, "utf-8")
        os.replace(draft, root / ADDRESS)
    return root


def join(uri: str, *names: str) -> str:
    """A place below an address, before its ?query."""
    base, mark, query = uri.partition("?")
    return "/".join([base.rstrip("/"), *(n for n in names if n not in ("", "."))]) + mark + query


def root_of(path: Path) -> Path | None:
    """The working root that a path is in or is; None: it is in no bucket."""
    path = Path(path).absolute()
    return next((p for p in (path, *path.parents) if (p / ADDRESS).is_file()), None)


def bucket_of(path: Path) -> str | None:
    """The address of a path of a working root; None: it is in no bucket."""
    root = root_of(path)
    return join((root / ADDRESS).read_text("utf-8"), Path(path).absolute().relative_to(root).as_posix()) if root else None


def portable(path: Path) -> str:
    """A path as `here` on any node understands it: ROOT#INNER where it is mirrored, itself where every node must see it."""
    root = root_of(path)
    return f"{(root / ADDRESS).read_text('utf-8')}#{Path(path).absolute().relative_to(root).as_posix()}" if root else str(path)


def here(text: str) -> Path:
    """The path on this machine of what `portable` made."""
    uri, mark, inner = text.partition("#")
    return working_root(uri) / inner if mark and is_address(uri) else Path(text)


# ---- bundles --------------------------------------------------------------------------------------------------------


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
            self.pieces = [self._digest(k) for k in range(max(1, math.ceil(self.stamp[1] / self.step)))]
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


class Bundle:
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
        from orchestrator.shards import Store

        return Store(self.uri, impatient=True)

    # -- here

    def names(self) -> Iterator[str]:
        """The files of the bundle that are here, relative to the folder."""
        if self.kind == TRIAL:
            tops = [self.folder / name for name in OF_TRIAL]
        else:
            mine = (p for p in self.folder.glob("*") if p.name not in (*OF_TRIAL, *OF_NOBODY, "trials") and not p.name.endswith((".draft", ".new")))
            tops = [*mine, *self.folder.glob("trials/*/trial.json")]
        for path in (path for top in tops for path in ([top] if top.is_file() else sorted(top.rglob("*")))):
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
        with alone(self.own):
            synced = self._synced()
            if snapshot.at <= synced["at"]:  # a later one was quicker
                return
            raw = self.store.read(self.manifest_name) or b"{}"
            if ours_only and _sha(raw) != synced["manifest"]:
                return self._save(synced | {"at": snapshot.at})
            manifest = self._write(snapshot, self._parsed(raw))
            files = {name: {"pieces": part.pieces, "stamp": part.stamp} for name, part in snapshot.parts.items()}
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
        manifest = {name: {"pieces": part.pieces, "mtime_ns": part.stamp[2]} for name, part in snapshot.parts.items()}
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

    def take(self, donor: "Bundle", names: tuple[str, ...], unwanted: tuple[str, ...], added: dict[str, bytes]) -> None:
        """In the bucket alone: files and folders as another bundle there has them, in place of this one's; nothing of `unwanted`; new files.

        Nobody may be writing either of them. Cut off in the middle it has changed nothing, and may be done again.
        """
        with alone(self.own):
            before = self._there()
            theirs = {name: entry for name, entry in donor._there().items() if name.split("/")[0] in names}
            for sha in _pieces(theirs) - _pieces(before):
                self.store.fs.copy_file(donor.store.join(f"objects/{sha}"), self.store.join(f"objects/{sha}"))
            for data in added.values():
                self._upload(_sha(data), [data])
            kept = {name: entry for name, entry in before.items() if name.split("/")[0] not in (*names, *unwanted)}
            new = {name: {"pieces": [_sha(data)], "mtime_ns": time.time_ns()} for name, data in added.items()}
            self._put(kept | theirs | new, before)

    def drop(self, unwanted: Callable[[str], bool]) -> None:
        """Take files out of the bucket, and only there; nothing where it holds none of them."""
        with alone(self.own):
            raw = self.store.read(self.manifest_name) or b"{}"
            before, synced = self._parsed(raw), self._synced()
            manifest = {name: entry for name, entry in before.items() if not unwanted(name)}
            if manifest != before:
                self._put(manifest, before)
                if synced["manifest"] == _sha(raw):
                    self._save(synced | {"manifest": _sha(_json(manifest))})

    def pull(self, wanted: Callable[[dict], set[str]] = set, *, exact: bool = False, wait: bool = True) -> bool:
        """Bring what the bucket has and this folder lacks, or has as it was before.   -> whether the bucket holds the bundle

        wanted: the names to bring of a manifest, all by default. What was written here since it was last in step stays unless the bucket
        has gone on, too: then the bucket's counts, and with exact in any case. wait False: nothing, while a process of this machine is
        delivering it: then the newest is here.
        """
        if not exact and not self.exists():
            return False
        with alone(self.own, wait=wait) as held:
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
        moved = exact or any(files.get(n, {}).get("pieces") != manifest[n]["pieces"] for n in wanted)
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
        self._save(synced | {"files": files} | ({"manifest": _sha(_json(manifest))} if whole else {}))

    def _download(self, entry: dict, path: Path) -> bool:
        """-> whether what came is what was written; it is put in place either way: who reads it looks at digests of its own."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".tmp")
        with draft.open("wb") as file:
            damaged = [sha for sha in entry["pieces"] if self._fetch(sha, file) != sha]
        if damaged and self.kind == DRIVER:
            raise UserError(f"{self.uri}/objects/{damaged[0]} ({path.name}) is not as it was written; restore it, or start another with --fresh")
        os.utime(draft, ns=(entry["mtime_ns"], entry["mtime_ns"]))  # the order of starts is read from it
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
            if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in manifest):
                raise ValueError("it names a file outside its folder")
            return manifest
        except ValueError:
            raise UserError(f"{self.uri} holds a {self.manifest_name} that is none of ours; restore it, or start another with --fresh") from None

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
