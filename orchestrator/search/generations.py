"""The generations of a sweep's populations on disk: what was decided, and members going on from copies of others, where their checkpoints are.

File generations.jsonl of the run's folder: a line a generation that has ended, {"arm", "epoch", "scores", "moves"}.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from aml import files
from aml.errors import NotSaved, UserError
from orchestrator import storage, utils
from orchestrator.storage import TRIAL, SyncedFolder
from orchestrator.utils import redact

FILE = "generations.jsonl"

DONE = "generation.json"

"""In a member's folder: the last generation whose move it has made."""

COPIED = ("last", "best", "epochs.jsonl")

LOST = ("last.previous", "best.previous")

"""Nothing falls back to what the member was."""

DELIVERED_S = 60.0

"""How long a bucket is waited for that lacks what a member did in the generation."""


class Generations:
    """Decisions of the populations, made durable before their moves, which are made again after a crash between the two."""

    def __init__(self, folder: Path, delivered: Callable[[], bool] = lambda: True):
        """delivered: -> whether what the driver wrote is in the bucket, too, where the folder is in one."""
        self.folder, self.delivered = folder, delivered
        path = folder / FILE
        lines = (
            [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            if path.exists()
            else []
        )
        self.decisions: dict[str, list[dict]] = {}
        for line in lines:
            self.decisions.setdefault(line["arm"], []).append(line)
        for decisions in self.decisions.values():
            self._move(decisions[-1])

    def end(self, arm: str, decision: dict) -> list[str]:
        """Write a generation's decision down and make its moves.   -> a line for each, to be said

        NotSaved where the disk takes no more, or the bucket does not answer; the same command then makes the moves.
        """
        line = {"arm": arm, **decision}
        path = self.folder / FILE
        before = path.read_bytes() if path.exists() else b""
        utils.atomic_write(path, before + json.dumps(line).encode() + b"\n")
        self._move(line)
        return [
            f"{member:28} goes on from {move['from']} at epoch {decision['epoch']} with "
            + (
                ", ".join(
                    f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                    for k, v in move["overrides"].items()
                )
                or "the same settings"
            )
            for member, move in decision["moves"].items()
        ]

    def _move(self, decision: dict) -> None:
        """Each member that the decision moves gets its donor's checkpoints and history. Donors of a generation are moved by none."""
        mirrored = storage.bucket_of(self.folder)
        if mirrored and decision["moves"] and not self.delivered():
            raise NotSaved(
                f"{FILE} could not be delivered to {redact(mirrored)}; the same command delivers it and makes the moves"
            )
        for member, move in decision["moves"].items():
            source, target = (self.folder / "trials" / name for name in (move["from"], member))
            mark = {"epoch": decision["epoch"], "from": move["from"]}
            _move_in_bucket(source, target, mark) if mirrored else _move_here(source, target, mark)


def _made(found: bytes | None, mark: dict) -> bool:
    """Whether a member has made the move already.   found: of the file DONE"""
    return found is not None and json.loads(found)["epoch"] >= mark["epoch"]


def _move_here(source: Path, target: Path, mark: dict) -> None:
    done = target / DONE
    if _made(done.read_bytes() if done.exists() else None, mark):
        return
    for name in COPIED:
        _replace(source / name, target / name)
    for name in LOST:
        shutil.rmtree(target / name, ignore_errors=True)
    utils.atomic_write(done, json.dumps(mark).encode())


def _replace(source: Path, target: Path) -> None:
    """A copy of a file or folder in the place of another; NotSaved where the disk takes no more."""
    draft = target.with_name(target.name + ".copy")
    try:
        if draft.exists():
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
        if source.is_dir():
            shutil.copytree(source, draft)
            shutil.rmtree(target, ignore_errors=True)
        else:
            shutil.copy2(source, draft)
        draft.replace(target)
    except OSError as error:
        wanted = sum(
            f.stat().st_size for f in ([source] if source.is_file() else source.rglob("*"))
        )
        raise NotSaved(files.write_failure(target, error, wanted)) from error


def _move_in_bucket(source: Path, target: Path, mark: dict) -> None:
    """Machines that have an older copy of the member bring the new one before it trains there (orchestrator.trial.joined)."""
    deadline = time.monotonic() + DELIVERED_S
    while problem := _try_in_bucket(source, target, mark):
        if time.monotonic() >= deadline:
            raise NotSaved(
                f"{target.name} could not be given what {source.name} has in the bucket ({problem}); the same command makes the moves"
            )
        for folder in (
            source,
            target,
        ):  # their nodes have it, if the bucket was away when they finished
            storage.upload_from_every_node(folder)
        time.sleep(1.0)


def _try_in_bucket(source: Path, target: Path, mark: dict) -> str:
    """Only when both have delivered the generation's last epoch: a delivery still on its way would undo the move.   -> why not, or nothing"""
    donor, member = SyncedFolder(source, TRIAL), SyncedFolder(target, TRIAL)
    try:
        if not _made(member.read(DONE), mark):
            for bundle in (donor, member):
                history = (bundle.read("epochs.jsonl") or b"").splitlines()
                if len(history) != mark["epoch"]:
                    return (
                        f"of {bundle.folder.name} it has {len(history)} epochs, not {mark['epoch']}"
                    )
            member.take(donor, COPIED, LOST, {DONE: json.dumps(mark).encode()})
        member.pull(storage.without_checkpoints)  # the driver reads the history here
    except (OSError, UserError) as error:
        return " ".join(redact(error).split())[:200]
    return ""
