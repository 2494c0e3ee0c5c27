"""Run folders: what a run is, what it has finished, who is working on it.

<root>/<name>-<8 hex>/   config.yaml   sweep.json or train.json (state)   ledger.jsonl (finished trials)   lock

Where the root is in a bucket this is the folder this machine works in: found runs are brought here first, what is written goes there.
"""

import errno
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from aml.errors import NotSaved, UserError
from aml.files import write_failure
from orchestrator.config import Experiment, TrackingConfig, code_version, from_text
from orchestrator.storage import lease, paths, snapshot, uploads
from orchestrator.storage.paths import storage_root
from orchestrator.utils import atomic_write, redact, redact_all, without_nan

KINDS = ("sweep", "train")


class Run:
    """One run folder; `state` is its JSON, `update` writes it."""

    def __init__(self, folder: Path, kind: str):
        self.folder, self.kind = folder, kind
        self.outbox: uploads.BackgroundUploader | None = None
        self.state = self._read()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Trained to the end, with its report written and MLflow's part in the queue."""
        return self.state.get("state") == "done" and self.state.get("concluded", True)

    def update(self, **values) -> None:
        self.state |= values
        atomic_write(
            self.folder / f"{self.kind}.json", json.dumps(redact_all(self.state), indent=1).encode()
        )
        if self.outbox:
            self.outbox.offer()

    @contextmanager
    def locked(self, say=print):
        """Hold the folder, in its bucket too. UserError where another live process holds it; a process that dies lets go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                who = f"process {file.read() or '?'}"
                raise UserError(
                    f"{self.name} is being worked on by {who}; wait for it, stop it, or start another with --fresh"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            with lease.bucket_lease(self.folder, say), self._delivered(say):
                yield

    @contextmanager
    def _delivered(self, say):
        """The driver's files, as they are in the bucket first, then delivered as they are written; at the end what could not be is said."""
        if not paths.root_of(self.folder):
            yield
            return
        uploads.download(self.folder, snapshot.DRIVER)
        self.state = self._read()
        self.outbox = uploads.BackgroundUploader(self.folder, snapshot.DRIVER, say)
        try:
            yield
        finally:
            self.outbox.offer()
            if not self.outbox.close():
                say(
                    f"{self.outbox.problem or f'{self.folder} is not yet delivered'}; the same command delivers it"
                )
            self.outbox = None

    def delivered(self) -> bool:
        """Whether what is on disk is in the bucket, too; it is given half a minute. True where there is none."""
        if not self.outbox:
            return True
        self.outbox.offer()
        return self.outbox.arrive()

    def append(self, record: dict) -> None:
        """One line of the ledger, on disk before this returns. NotSaved where the disk takes no more: then nothing of it is there."""
        record = redact_all(
            record | {"history": [without_nan(epoch) for epoch in record["history"]]}
        )
        line, path = json.dumps(record).encode() + b"\n", self.folder / "ledger.jsonl"
        try:
            opened = open(path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise NotSaved(write_failure(path, error, len(line))) from error
        with opened as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if file.read(1) not in (
                b"",
                b"\n",
            ):  # a line that a crash cut off must not take this one along
                line = b"\n" + line
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(end)
                raise NotSaved(write_failure(path, error, len(line))) from error
        if self.outbox:
            self.outbox.offer()
            self.outbox.settle()

    def ledger(self) -> list[dict]:
        """Finished trials; a line cut off by a crash is not one, and a trial that went on after its budget was raised counts as it ended last."""
        path = self.folder / "ledger.jsonl"
        if not path.exists():
            return []
        records = {}
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
                records[record["trial"]] = record
            except ValueError:
                print(f"{path}: a cut-off line is left out", flush=True)
        return list(records.values())

    def experiment(self, tracking: TrackingConfig = TrackingConfig()) -> Experiment:  # noqa: B008 (frozen)
        """As it was started. An address of MLflow with a password was not written as it was: `tracking` stands in for it."""
        tree = from_text(
            (self.folder / "config.yaml").read_text("utf-8"), where=str(self.folder / "config.yaml")
        )
        return replace(tree, tracking=tracking) if "***" in (tree.tracking.uri or "") else tree

    def _read(self) -> dict:
        path = self.folder / f"{self.kind}.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {}


def start_run(experiment: Experiment, kind: str, manifest: dict, *, fresh: bool) -> Run:
    """The run of these settings and data: a new folder, or the unfinished (or finished) one of the same name."""
    uploads.download_run_metadata(storage_root(experiment.storage.root))
    name = base = experiment.run_name(manifest["fingerprint"])
    number = 1
    while fresh and (storage_root(experiment.storage.root) / name).exists():
        number += 1
        name = f"{base}-{number}"
    run = Run(storage_root(experiment.storage.root) / name, kind)
    if not run.state:
        run.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(run.folder / "config.yaml", redact(experiment.to_yaml()).encode())
    return run


def find_run(root: Path, name: str, kind: str | None = None) -> Run:
    """A run (of one kind) by its name; by its experiment's name, then the newest finished one (or the newest); or by the start of its name.

    UserError where there is none, or where a start fits several.
    """
    runs = [r for r in list_runs(root) if kind in (None, r.kind)]
    if exact := [r for r in runs if r.name == name]:
        return _whole(exact[0])
    if named := [r for r in runs if r.state.get("name") == name]:
        return _whole(next((r for r in named if r.finished), named[0]))
    matches = [r for r in runs if r.name.startswith(name)]
    if len(matches) != 1:
        found = ", ".join(r.name for r in (matches or runs)[:8]) or "none"
        raise UserError(
            f"{'no' if not matches else 'more than one'} {kind or 'run'} under {root} is called {name!r}; there: {found}"
        )
    return _whole(matches[0])


def _whole(run: Run) -> Run:
    """With all that its driver wrote."""
    uploads.download(run.folder, snapshot.DRIVER, wait=False)
    return run


def list_runs(root: Path) -> list[Run]:
    """All runs under the root, the newest first."""
    uploads.download_run_metadata(root)
    found = [Run(p.parent, kind) for kind in KINDS for p in Path(root).glob(f"*/{kind}.json")]
    return sorted(found, key=lambda run: -run.state.get("started", 0))


def run_line(run: Run) -> str:
    """A run in one line: state, how far, best, disk."""
    records, state = run.ledger(), run.state
    values = [
        e["val/mIoU"] for r in records for e in r["history"] if e.get("val/mIoU") is not None
    ] + [e["val/mIoU"] for e in state.get("history", [])]
    shown = "lost (the same command continues it)" if is_lost(run) else state["state"]
    best = f"best mIoU {max(values):.3f}" if values else "no result yet"
    return f"{run.name:32} {run.kind:6} {shown:12} {f'{len(records)} trials' if records else '':10} {best:18} {disk_mb(run.folder):8.1f} MB"


def is_lost(run: Run) -> bool:
    """Whether it ended without a word: nobody works on it any more."""
    return (
        run.state["state"] == "running"
        and lock_holder(run) is None
        and not lease.lease_of(run.folder)
    )


def lock_holder(run: Run) -> int | None:
    """The process of this machine that works on the run; None where there is none."""
    path = run.folder / "lock"
    if not path.exists():
        return None
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except OSError:
            return int(file.read() or 0) or None


def begin_run(run: Run, experiment: Experiment, manifest: dict, uri: str) -> None:
    """Note who runs what: at the start and at each continuation."""
    given = run.state.get("data", {}).get("fingerprint")
    if given and given != manifest["fingerprint"]:
        raise UserError(
            f"{run.name} was made with data {given}, but {uri} now holds {manifest['fingerprint']}; restore those data or start another with --fresh"
        )
    sha, dirty = git_state()
    run.update(
        run=run.name,
        name=experiment.name,
        kind=run.kind,
        state="running",
        started=run.state.get("started", time.time()),
        ended=None,
        command=" ".join(["python -m orchestrator", *sys.argv[1:]]),
        git_sha=sha,
        git_dirty=dirty,
        code_version=code_version(),
        processors=[*dict.fromkeys([*run.state.get("processors", []), processor()])],
        versions={
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "ray", "mlflow", "transformers", "timm")},
        },
        data={
            "uri": uri,
            **{key: manifest.get(key) for key in ("dataset", "split_by", "fingerprint", "splits")},
        },
        epochs=experiment.train.epochs,
    )


def git_state() -> tuple[str, bool]:
    """Commit and whether the tree differs from it; what `submit` hands over where there is no repository."""
    if "AMLRIS_GIT_SHA" in os.environ:
        return os.environ["AMLRIS_GIT_SHA"], os.environ.get("AMLRIS_GIT_DIRTY") == "1"
    here = Path(__file__).parent
    try:
        sha = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        return sha, bool(
            subprocess.run(
                ["git", "status", "--porcelain"],
                cwd=here,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False


def processor() -> str:
    """The model of this machine's processor, and the instructions that torch uses of it: they decide how sums are rounded."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, "") or platform.processor() or platform.machine()
    return f"{model} with {torch.backends.cpu.get_cpu_capability()}"


def disk_mb(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20


def prune_runs(root: Path) -> list[str]:
    """Remove what only an unfinished run needs (training states, drafts, logs of finished ones).   -> lines saying what was freed"""
    freed = []
    for run in list_runs(root):
        if not run.finished:
            continue
        for folder in (
            run.folder,
            *(p.parent for p in _whole(run).folder.glob("trials/*/trial.json")),
        ):
            uploads.delete_remote(
                folder,
                lambda name: name.endswith("state.pt") or name.split("/")[0].endswith(".previous"),
            )
        keep = run.state.get("champion", {}).get("checkpoint", "")
        doomed = [
            p
            for p in run.folder.rglob("*")
            if p.name in ("state.pt",) or p.name.endswith((".previous", ".draft"))
        ]
        doomed += [p for p in (run.folder / "tune", run.folder / "ray") if p.exists()]
        doomed = [p for p in doomed if not (keep and p == run.folder / keep)]
        size = sum(
            disk_mb(p) if p.is_dir() else p.stat().st_size / 2**20 for p in doomed if p.exists()
        )
        for path in doomed:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                missing_ok=True
            )
        freed.append(f"{run.name}: {size:.1f} MB")
    return freed
