"""Run folders: the state of a run, its finished trials, and the process that works on it.

<root>/<name>-<8 hex>/ holds

    config.yaml                 settings as they were given
    sweep.json or train.json    state of the run
    ledger.jsonl                finished trials
    lock                        held by the process that works on the run

Where the root is in a bucket, <root> is the folder in which this machine works: runs that are found
are downloaded first, and what is written is uploaded.
"""

import errno
import json
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from aml.errors import NotSaved, UserError
from aml.files import write_failure
from aml.reading import read_text
from orchestrator.config import (
    Experiment,
    TrackingConfig,
    from_stored,
    upgrade_overrides,
)
from orchestrator.storage import lease, paths, snapshot, uploads
from orchestrator.storage.records import LEDGER, read_state, read_trials
from orchestrator.utils import (
    atomic_write,
    holder_of,
    process_lock,
    redact,
    redact_all,
    without_nan,
)

logger = logging.getLogger(__name__)

KINDS = ("sweep", "train")

DEFAULT_TRACKING = TrackingConfig()


class Run:
    """The folder of a run.

    `state` is the content of its JSON file, which `update` writes. `uploader` uploads the driver's
    files while the run is locked, where the folder is in a bucket. The class is longer than others
    because the state and the ledger share one lock, one uploader and one rule for full disks.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        """Read the state of a run; an empty one where the folder does not exist.

        Args:
            folder: of the run.
            kind: one of `KINDS`.

        Raises:
            UserError: the state is damaged.
        """
        self.folder = folder
        self.kind = kind
        self.uploader: uploads.BackgroundUploader | None = None
        self._said: set[str] = set()
        self.state = self._read()

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Return whether the training is over, its report written and its MLflow records queued."""
        return self.state.get("state") == "done" and self.state.get("concluded") is not False

    def update(self, **values: Any) -> None:
        """Set entries of the state and write it.

        Raises:
            NotSaved: the disk takes no more.
        """
        self.state |= values
        text = json.dumps(redact_all(self.state), indent=1)
        atomic_write(self.folder / f"{self.kind}.json", text.encode())
        if self.uploader:
            self.uploader.submit()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, and its lease in the bucket, while a `with` block runs.

        A process that dies releases both.

        Raises:
            UserError: another live process holds the folder.
        """
        path = self.folder / "lock"
        with process_lock(path) as held:
            if not held:
                raise UserError(
                    f"{self.name} is being worked on by process {holder_of(path) or '?'}; "
                    "wait for it, stop it, or start another with --fresh"
                )
            with lease.bucket_lease(self.folder), self._uploading():
                yield

    @contextmanager
    def _uploading(self) -> Iterator[None]:
        """Download the driver's files, then upload them as they are written.

        At the end a message names what could not be uploaded.
        """
        if not paths.root_of(self.folder):
            yield
            return
        uploads.download(self.folder, snapshot.DRIVER)
        self.state = self._read()
        uploader = uploads.BackgroundUploader(self.folder, logger.info, snapshot.DRIVER)
        self.uploader = uploader
        try:
            yield
        finally:
            uploader.submit()
            uploaded = uploader.flush()
            uploader.close()
            if not uploaded:
                problem = uploader.problem or f"{self.folder} is not yet uploaded"
                logger.info(f"{problem}; the same command uploads it")
            self.uploader = None

    def delivered(self) -> bool:
        """Upload what is on disk, for at most half a minute.

        Returns:
            Whether the bucket has it; True where the folder is in no bucket.
        """
        if not self.uploader:
            return True
        self.uploader.submit()
        return self.uploader.flush()

    def append(self, record: dict) -> None:
        """Append a finished trial to the ledger, on disk before this returns.

        Raises:
            NotSaved: the disk takes no more; nothing of the line is then in the file.
        """
        history = [without_nan(epoch) for epoch in record["history"]]
        line = json.dumps(redact_all(record | {"history": history})).encode() + b"\n"
        path = self.folder / LEDGER
        try:
            with open(path, "a+b", buffering=0) as file:
                _append_line(file, line)
        except OSError as error:
            raise NotSaved(write_failure(path, error, len(line))) from error
        if self.uploader:
            self.uploader.submit()
            self.uploader.wait()

    def ledger(self) -> list[dict]:
        """Return the finished trials.

        A line that a crash cut off, or that is damaged, is left out, which a message says once. A
        trial that went on after its budget was raised counts as it ended last.
        """
        path = self.folder / LEDGER
        found, problems = read_trials(path)
        for problem in problems:
            if problem not in self._said:
                self._said.add(problem)
                logger.info(f"note: {path}, {problem}; the line is left out")
        for record in found:
            if record.get("overrides"):
                record["overrides"] = upgrade_overrides(record["overrides"])
        return found

    def experiment(self, tracking: TrackingConfig = DEFAULT_TRACKING) -> Experiment:
        """Return the settings with which the run was started.

        Args:
            tracking: replaces the tracking settings whose address held a password, because the
                password was not written.
        """
        path = self.folder / "config.yaml"
        tree = from_stored(read_text(path, "the settings of a run"), where=str(path))
        return tree.replace(tracking=tracking) if "***" in (tree.tracking.uri or "") else tree

    def write_settings(self, experiment: Experiment) -> None:
        """Write the settings that the run is made with, without passwords."""
        text = redact(experiment.to_yaml())
        atomic_write(self.folder / "config.yaml", text.encode())

    def _read(self) -> dict:
        path = self.folder / f"{self.kind}.json"
        return read_state(path) if path.exists() else {}


def _append_line(file: BinaryIO, line: bytes) -> None:
    """Append a line to a file that was opened unbuffered, all of it or nothing."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    if file.read(1) not in (b"", b"\n"):  # a line that a crash cut off must not spoil this one
        line = b"\n" + line
    try:
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except OSError:
        file.truncate(end)
        raise


def find_run(root: Path, name: str, kind: str | None = None) -> Run:
    """Return the run that a text names.

    The text is the run's name; or its experiment's name, which means the newest finished run, else
    the newest one; or the start of its name.

    Args:
        root: the storage root.
        name: the text.
        kind: one of `KINDS`, to consider runs of this kind only.

    Raises:
        UserError: no run has this name, or several names start with the text.
    """
    uploads.download_run_metadata(root)
    local, damaged = local_runs(root)
    if name in damaged:
        raise UserError(damaged[name])
    runs = [r for r in local if kind in (None, r.kind)]
    if exact := [r for r in runs if r.name == name]:
        return downloaded(exact[0])
    if named := [r for r in runs if r.state.get("name") == name]:
        return downloaded(next((r for r in named if r.finished), named[0]))
    matches = [r for r in runs if name and r.name.startswith(name)]
    if len(matches) != 1:
        found = ", ".join([r.name for r in (matches or runs)[:8]]) or "none"
        if damaged and not matches:
            found += f"; and {len(damaged)} whose files are damaged, first {next(iter(damaged))}"
        raise UserError(
            f"{'more than one' if matches else 'no'} {kind or 'run'} under {root} is called "
            f"{name!r}; there: {found}"
        )
    return downloaded(matches[0])


def downloaded(run: Run) -> Run:
    """Return a run after its driver's files have been downloaded."""
    uploads.download(run.folder, snapshot.DRIVER, wait=False)
    return run


def list_runs(root: Path) -> list[Run]:
    """Return all runs under a storage root, the newest first.

    A run whose files are damaged or may not be read is named in a message and left out.
    """
    uploads.download_run_metadata(root)
    found, damaged = local_runs(root)
    for problem in damaged.values():
        logger.info(f"note: {problem}")
    return found


def local_runs(root: Path) -> tuple[list[Run], dict[str, str]]:
    """Return the runs whose folders are on this machine, the newest first.

    Returns:
        The runs, and by its folder's name what is wrong with each that cannot be read.
    """
    found: list[Run] = []
    damaged: dict[str, str] = {}
    try:
        folders = sorted(os.scandir(root), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        folders = []
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error.strerror}); make it readable") from None
    for entry in folders:
        for kind in KINDS:
            try:
                if stat.S_ISREG(os.stat(Path(entry.path, f"{kind}.json")).st_mode):
                    found.append(Run(Path(entry.path), kind))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except UserError as error:
                damaged[entry.name] = str(error)
            except OSError as error:
                damaged[entry.name] = f"{entry.path} cannot be read ({error.strerror})"
    return sorted(found, key=lambda run: -(run.state.get("started") or 0)), damaged
