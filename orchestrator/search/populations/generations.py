"""The generations of a sweep's populations on disk.

Decisions are written to generations.jsonl. Then members that exploit others get copies of their
checkpoints, on the disk or in the bucket that holds them.

File generations.jsonl of the run's folder: a line for each generation that has ended,
{"arm", "epoch", "scores", "moves": {member: {"from": source, "overrides": settings}}}.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from aml import files
from aml.errors import NotSaved, UserError
from orchestrator import storage, utils
from orchestrator.storage import SyncedFolder
from orchestrator.utils import redact

FILE = "generations.jsonl"

DONE = "generation.json"
"""Name of a file in a member's folder: the last generation whose exploit the member has made."""

CLONED = ("last", "best", "epochs.jsonl")
"""Files and folders that a member takes over from its source."""

DISCARDED = ("last.previous", "best.previous")
"""Folders that a member loses, so that no fallback returns to its former weights."""

DELIVERY_S = 60.0
"""Seconds to wait for a bucket that lacks what a member did in the generation."""


class Generations:
    """Decisions of the populations, made durable before their exploits.

    After a crash between the two, `resume` makes the exploits again.
    """

    def __init__(self, folder: Path, is_delivered: Callable[[], bool] = lambda: True) -> None:
        """Read the decisions of earlier attempts.

        Args:
            folder: The run's folder.
            is_delivered: Returns whether what the driver wrote is in the bucket too, where the
                folder is in one.
        """
        self.folder = folder
        self.is_delivered = is_delivered
        self.decisions: dict[str, list[dict]] = {}
        """Decisions by arm, each with its arm."""
        path = folder / FILE
        for text in path.read_text("utf-8").splitlines() if path.exists() else ():
            decision = json.loads(text)
            self.decisions.setdefault(decision["arm"], []).append(decision)

    def resume(self) -> None:
        """Make the exploits of each arm's last decision where a crash came before them.

        Raises:
            NotSaved: The disk is full, or the bucket does not answer.
        """
        for decisions in self.decisions.values():
            self._make_exploits(decisions[-1])

    def finish(self, arm: str, decision: dict) -> list[str]:
        """Write a generation's decision down, then make its exploits.

        Args:
            arm: The arm of the population.
            decision: As Population.decide returned it.

        Returns:
            A line for each exploit, to be logged.

        Raises:
            NotSaved: The disk is full, or the bucket does not answer. The same command then makes
                the exploits.
        """
        line = {"arm": arm, **decision}
        path = self.folder / FILE
        before = path.read_bytes() if path.exists() else b""
        utils.atomic_write(path, before + json.dumps(line).encode() + b"\n")
        self._make_exploits(line)
        return [
            f"{member:28} goes on from {exploit['from']} at epoch {decision['epoch']} with "
            + (_config_text(exploit["overrides"]) or "the same settings")
            for member, exploit in decision["moves"].items()
        ]

    def _make_exploits(self, decision: dict) -> None:
        """Give each exploiting member its source's checkpoints and history.

        No source of a generation exploits another member in it.
        """
        bucket = storage.bucket_of(self.folder)
        exploits = decision["moves"]
        if bucket and exploits and not self.is_delivered():
            raise NotSaved(
                f"{FILE} could not be delivered to {redact(bucket)}; the same command delivers it "
                "and makes the moves"
            )
        for member, exploit in exploits.items():
            source = self.folder / "trials" / exploit["from"]
            target = self.folder / "trials" / member
            marker = {"epoch": decision["epoch"], "from": exploit["from"]}
            if bucket:
                _clone_in_bucket(source, target, marker)
            else:
                _clone_on_disk(source, target, marker)


def _config_text(overrides: dict) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in overrides.items()
    )


def _is_made(content: bytes | None, marker: dict) -> bool:
    """Return whether a member whose file DONE has this content has made the exploit already."""
    return content is not None and json.loads(content)["epoch"] >= marker["epoch"]


def _clone_on_disk(source: Path, target: Path, marker: dict) -> None:
    done = target / DONE
    if _is_made(done.read_bytes() if done.exists() else None, marker):
        return
    for name in CLONED:
        _replace(source / name, target / name)
    for name in DISCARDED:
        shutil.rmtree(target / name, ignore_errors=True)
    utils.atomic_write(done, json.dumps(marker).encode())


def _replace(source: Path, target: Path) -> None:
    """Put a copy of the file or folder `source` in the place of `target`.

    Raises:
        NotSaved: The disk is full.
    """
    draft = target.with_name(target.name + ".copy")
    try:
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)
        if source.is_dir():
            shutil.copytree(source, draft)
            shutil.rmtree(target, ignore_errors=True)
        else:
            shutil.copy2(source, draft)
        draft.replace(target)
    except OSError as error:
        copied = [source] if source.is_file() else source.rglob("*")
        size = sum(path.stat().st_size for path in copied)
        raise NotSaved(files.write_failure(target, error, size)) from error


def _clone_in_bucket(source: Path, target: Path, marker: dict) -> None:
    """Clone in the bucket.

    A machine with an older copy of the member downloads the new one before it trains there
    (orchestrator.training.restore_from_bucket).
    """
    deadline = time.monotonic() + DELIVERY_S
    while problem := _try_clone_in_bucket(source, target, marker):
        if time.monotonic() >= deadline:
            raise NotSaved(
                f"{target.name} could not be given what {source.name} has in the bucket "
                f"({problem}); the same command makes the moves"
            )
        # Their nodes have the files, if the bucket was away when the members finished.
        for folder in (source, target):
            storage.upload_from_every_node(folder)
        time.sleep(1.0)


def _try_clone_in_bucket(source: Path, target: Path, marker: dict) -> str:
    """Clone in the bucket once both members have delivered the generation's last epoch.

    A delivery still on its way would undo the clone.

    Returns:
        Why it could not be done; "" where it was.
    """
    source_files = SyncedFolder(source)
    target_files = SyncedFolder(target)
    try:
        if not _is_made(target_files.remote.read(DONE), marker):
            for member in (source_files, target_files):
                epochs = len((member.remote.read("epochs.jsonl") or b"").splitlines())
                if epochs != marker["epoch"]:
                    return f"of {member.folder.name} it has {epochs} epochs, not {marker['epoch']}"
            done = {DONE: json.dumps(marker).encode()}
            target_files.clone_from(source_files, CLONED, DISCARDED, done)
        target_files.download(storage.without_checkpoints)  # the driver reads the history here
    except (OSError, UserError) as error:
        return " ".join(redact(error).split())[:200]
    return ""
