"""Runs for a person: one line for each, and deletion of what finished ones no longer need."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from aml.files import DRAFT
from orchestrator.storage import lease, uploads
from orchestrator.storage.run import Run, downloaded, list_runs
from orchestrator.utils import holder_of

UNNEEDED = (
    *("last/state.pt", "last.previous", "last.draft"),
    *("best/state.pt", "best.previous", "best.draft"),
    *(f"*{DRAFT}", f"pictures/*{DRAFT}"),
)
"""What a finished run no longer needs in its folder, and in those of its trials.

Checkpoints that were being written ended in .draft in runs of earlier versions.
"""


def run_line(run: Run) -> str:
    """Return a run in one line: its state, number of trials, best result and size on disk."""
    facts = run_facts(run)
    lost = "lost (the same command continues it)"
    shown = lost if facts["state"] == "lost" else facts["state"]
    trials = f"{facts['trials']} trials" if facts["trials"] else ""
    best = facts["best_mIoU"]
    of = f" of {facts['sentences']} sentences" if facts["sentences"] else ""
    result = "no result yet" if best is None else f"best mIoU {best:.1%}{of}"
    size = f"{facts['disk_mb']:8.1f} MB"
    return f"{run.name:32} {run.kind:6} {shown:12} {trials:10} {result:34} {size}"


def run_facts(run: Run) -> dict[str, Any]:
    """Return name, kind, state, finished trials, best mIoU, scored sentences and size of a run."""
    records = run.ledger()
    epochs = [epoch for record in records for epoch in record["history"]]
    epochs += run.state.get("history") or []
    scored = [epoch for epoch in epochs if epoch.get("val/mIoU") is not None]
    top: dict = max(scored, key=lambda epoch: epoch["val/mIoU"], default={})
    return {
        "run": run.name,
        "kind": run.kind,
        "state": "lost" if is_lost(run) else str(run.state.get("state")),
        "trials": len(records),
        "best_mIoU": top.get("val/mIoU"),
        "sentences": top.get("val/n"),
        "disk_mb": disk_mb(run.folder),
    }


def is_lost(run: Run) -> bool:
    """Return whether a run is marked as running although no process works on it."""
    return (
        run.state.get("state") == "running"
        and lock_holder(run) is None
        and not lease.lease_of(run.folder)
    )


def lock_holder(run: Run) -> int | None:
    """Return the id of this machine's process that works on a run; None where there is none."""
    return holder_of(run.folder / "lock")


def disk_mb(folder: Path) -> float:
    """Return the MiB of all files below a folder."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile, or not to be read
            size += path.stat().st_size if path.is_file() else 0
    return size / 2**20


def prune_runs(root: Path) -> list[str]:
    """Delete what only an unfinished run needs from finished ones: states, drafts, logs.

    Returns:
        A line for each finished run that says how much was freed.
    """
    lines = []
    for run in list_runs(root):
        if not run.finished or not is_own(run):
            continue
        trials = [path.parent for path in downloaded(run).folder.glob("trials/*/trial.json")]
        for folder in (run.folder, *trials):
            uploads.delete_remote(folder, _is_training_state)
        lines.append(f"{run.name}: {_prune_folder(run):.1f} MB")
    return lines


def is_own(run: Run) -> bool:
    """Return whether a folder was made for a run, and is none that holds a file of that name."""
    return "run" in run.state and run.state.get("kind") == run.kind


def _is_training_state(name: str) -> bool:
    """Return whether an uploaded file of this name serves only to go on training."""
    return name.endswith("state.pt") or name.split("/")[0].endswith(".previous")


def _prune_folder(run: Run) -> float:
    """Delete what a finished run no longer needs on this machine; return the MiB freed."""
    doomed = [
        path
        for folder in (run.folder, *run.folder.glob("trials/*"))
        for pattern in UNNEEDED
        for path in folder.glob(pattern)
        if path.resolve().is_relative_to(run.folder.resolve())  # links lead to what is not ours
    ]
    doomed += [path for path in (run.folder / "tune", run.folder / "ray") if path.is_dir()]
    champion = (run.state.get("champion") or {}).get("checkpoint")
    if champion:
        doomed = [path for path in doomed if path != run.folder / champion]
    size = 0.0
    for path in doomed:
        if path.is_dir():
            size += disk_mb(path)
        elif path.exists():
            size += path.stat().st_size / 2**20
    for path in doomed:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return size
