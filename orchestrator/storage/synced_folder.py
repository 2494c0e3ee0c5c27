"""Synchronisation of a folder with its copy in a bucket, for a storage root at s3://...

Each machine works in a folder of its own, and what is finished is uploaded:

    ~/.cache/amlris/<hash>/RUN/...      working copy; XDG_CACHE_HOME moves it
    BUCKET/RUN/driver.manifest.json     names of the files that the driver of the run wrote
    BUCKET/RUN/trials/TRIAL/trial.manifest.json
                                        the same for the process that trains: checkpoints, epochs,
                                        pictures, notes
    BUCKET/RUN/.../objects/<SHA-256>    pieces of files, named by their content
    BUCKET/RUN/lease                    the process that works on the run (orchestrator.storage)

A synced folder has one writer. Pieces are written first and the manifest that names them last, so
that a reader sees the folder as it was at one moment or as it was at another. What is downloaded is
checked against its digests; the loader of checkpoints finds a damaged one and takes the one before.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aml.errors import UserError
from aml.files import DRAFT
from orchestrator.storage.paths import bucket_of
from orchestrator.storage.remote_folder import TRIES, RemoteFolder
from orchestrator.storage.snapshot import (
    DRIVER,
    LOCAL_FILES,
    SYNC_FOLDER,
    TRIAL,
    TRIAL_FILES,
    FileVersion,
    Manifest,
    Snapshot,
    manifest_bytes,
    piece_size,
    pieces_of,
    sha256,
    stamp_of,
)
from orchestrator.utils import exclusive_lock

Select = Callable[[Manifest], set[str]]
"""Returns the names of the files of a manifest to download."""


class SyncedFolder:
    """The files that one writer keeps in a folder below a working root, and their upload.

    `remote` is the copy in the bucket. Methods that ask the bucket raise an OSError or a UserError,
    which says why, where it cannot be reached. The class is longer than others because upload and
    download share one state on disk (`synced.json`), which only methods under its lock may touch.
    """

    def __init__(self, folder: Path, kind: str = TRIAL) -> None:
        """Name the folder; nothing is read yet.

        Args:
            folder: a folder of a run or trial below a working root.
            kind: its writer, `snapshot.DRIVER` or `snapshot.TRIAL`.
        """
        self.folder = Path(folder).absolute()
        self.kind = kind
        self.remote = RemoteFolder(bucket_of(self.folder) or "", kind)
        self.state_folder = self.folder / SYNC_FOLDER / kind

    def names(self) -> Iterator[str]:
        """Yield the writer's files that are on this machine, relative to the folder."""
        if self.kind == TRIAL:
            tops = [self.folder / name for name in TRIAL_FILES]
        else:
            tops = [
                path
                for path in self.folder.glob("*")
                if path.name not in (*TRIAL_FILES, *LOCAL_FILES, "trials")
                and not path.name.endswith((DRAFT, ".new"))
            ]
            tops += self.folder.glob("trials/*/trial.json")
        for top in tops:
            for path in [top] if top.is_file() else sorted(top.rglob("*")):
                if path.is_file() and not path.name.endswith(DRAFT):
                    yield path.relative_to(self.folder).as_posix()

    def snapshot(self) -> Snapshot:
        """Record the current version of every file.

        To be called by the process that writes the files, between two writes: later changes do not
        affect the snapshot.
        """
        at = time.time_ns()
        known = self._synced()["files"]
        versions = {}
        for name in self.names():
            path = self.folder / name
            noted = known.get(name, {})
            try:
                stamp = stamp_of(path)
                if noted.get("stamp") == stamp:
                    versions[name] = FileVersion(stamp, piece_size(name, stamp), noted["pieces"])
                else:
                    file = path.open("rb")
                    stamp = stamp_of(file.fileno())
                    versions[name] = FileVersion(stamp, piece_size(name, stamp), [], file)
            except FileNotFoundError:  # the thread of the tracking queue has deleted it
                continue
        self.state_folder.mkdir(parents=True, exist_ok=True)
        self._offered.write_text(str(at))
        return Snapshot(at, versions)

    def has_pending_upload(self) -> bool:
        """Return whether a snapshot of this folder was made and has not been uploaded."""
        if not self._offered.exists():
            return False
        return int(self._offered.read_text() or 0) > self._synced()["at"]

    def upload(self, snapshot: Snapshot, *, only_if_unchanged: bool = False) -> None:
        """Write the pieces, then the manifest, and delete what no manifest names any more.

        Args:
            snapshot: of this folder. Nothing is done where a later one has been uploaded.
            only_if_unchanged: leave the bucket as it is where another process has written to it
                since this folder was last equal to it.
        """
        with exclusive_lock(self.state_folder):
            synced = self._synced()
            if snapshot.at <= synced["at"]:
                return
            raw = self.remote.raw_manifest() or b"{}"
            if only_if_unchanged and sha256(raw) != synced["manifest"]:
                self._save(synced | {"at": snapshot.at})
                return
            manifest = self._upload(snapshot, self.remote.parse(raw))
            files = {
                name: {"pieces": version.pieces, "stamp": version.stamp}
                for name, version in snapshot.files.items()
            }
            digest = sha256(manifest_bytes(manifest))
            self._save({"at": snapshot.at, "manifest": digest, "files": files})

    def _upload(self, snapshot: Snapshot, before: Manifest) -> Manifest:
        present = pieces_of(before)
        for name, version in snapshot.files.items():
            if version.file is None and not present.issuperset(version.pieces):
                version.reopen(self.folder / name)
            for k, sha in enumerate(version.digests()):
                if sha not in present:
                    self.remote.upload_piece(sha, version.chunks(k))
                    present.add(sha)
        manifest = {
            name: {"pieces": version.pieces, "mtime_ns": version.stamp[2]}
            for name, version in snapshot.files.items()
        }
        self.remote.replace_manifest(manifest, before)
        return manifest

    def clone_from(
        self,
        source: "SyncedFolder",
        names: tuple[str, ...],
        unwanted: tuple[str, ...],
        added: dict[str, bytes],
    ) -> None:
        """Replace files in the bucket alone by those of another: see `RemoteFolder.clone_from`."""
        with exclusive_lock(self.state_folder):
            self.remote.clone_from(source.remote, names, unwanted, added)

    def delete_remote(self, unwanted: Callable[[str], bool]) -> None:
        """Delete files in the bucket alone; nothing is done where it holds none of them."""
        with exclusive_lock(self.state_folder):
            changed = self.remote.delete(unwanted)
            if changed is None:
                return
            raw, manifest = changed
            synced = self._synced()
            if synced["manifest"] == sha256(raw):
                self._save(synced | {"manifest": sha256(manifest_bytes(manifest))})

    def download(self, select: Select = set, *, exact: bool = False, wait: bool = True) -> bool:
        """Download what the bucket has and this folder lacks, or has in an older version.

        What was written here since the folder was last equal to the bucket stays, unless the bucket
        has changed since, too: then the bucket's version counts.

        Args:
            select: returns the names to download of a manifest; all by default.
            exact: take the bucket's version in any case.
            wait: False: do nothing while a process of this machine is uploading the folder, because
                the newest version is then here.

        Returns:
            Whether the bucket holds the folder.
        """
        if not exact and not self.remote.exists():
            return False
        with exclusive_lock(self.state_folder, wait=wait) as held:
            if not held:
                return True
            for attempt in range(TRIES):
                raw = self.remote.raw_manifest()
                manifest = self.remote.parse(raw or b"{}")
                try:
                    self._download(manifest, select(manifest), exact)
                    return raw is not None
                except FileNotFoundError:
                    if attempt == TRIES - 1:
                        raise
        raise AssertionError("unreachable")

    def _download(self, manifest: Manifest, wanted: set[str], exact: bool) -> None:
        synced = self._synced()
        files = synced["files"]
        changed = exact or any(
            files.get(name, {}).get("pieces") != manifest[name]["pieces"] for name in wanted
        )
        if not changed and self._offered.exists():  # written here, perhaps at this moment
            return
        for name in sorted(wanted):
            path = self.folder / name
            noted = files.get(name, {})
            known = noted.get("pieces") == manifest[name]["pieces"] and path.exists()
            if known and (not changed or noted["stamp"] == stamp_of(path)):
                continue
            if self._download_file(manifest[name], path):
                files[name] = {"pieces": manifest[name]["pieces"], "stamp": stamp_of(path)}
        complete = wanted == set(manifest)
        if changed and complete:  # otherwise nothing says that a file is gone
            for name in (set(self.names()) if exact else set(files)) - set(manifest):
                (self.folder / name).unlink(missing_ok=True)
                files.pop(name, None)
        synced["files"] = files
        if complete:
            synced["manifest"] = sha256(manifest_bytes(manifest))
        self._save(synced)

    def _download_file(self, entry: dict[str, Any], path: Path) -> bool:
        """Download one file.

        Returns:
            False on a wrong digest. The file is installed anyway, because the loader of checkpoints
            verifies digests of its own.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + DRAFT)
        with draft.open("wb") as file:
            damaged = [
                sha for sha in entry["pieces"] if self.remote.download_piece(sha, file) != sha
            ]
        if damaged and self.kind == DRIVER:
            raise UserError(
                f"{self.remote.uri}/objects/{damaged[0]} ({path.name}) is not as it was written; "
                "restore it, or start another with --fresh"
            )
        # The order in which runs were started is read from the times of their files.
        os.utime(draft, ns=(entry["mtime_ns"], entry["mtime_ns"]))
        os.replace(draft, path)
        return not damaged

    # The state: what was last equal here and in the bucket, and the moment of the last snapshot.

    @property
    def _offered(self) -> Path:
        """The file with the moment of the last snapshot."""
        return self.state_folder / "offered"

    def _synced(self) -> dict[str, Any]:
        path = self.state_folder / "synced.json"
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return {"at": 0, "manifest": sha256(b"{}"), "files": {}}

    def _save(self, synced: dict[str, Any]) -> None:
        self.state_folder.mkdir(parents=True, exist_ok=True)
        draft = self.state_folder / f"synced.json{DRAFT}"
        draft.write_text(json.dumps(synced))
        os.replace(draft, self.state_folder / "synced.json")
