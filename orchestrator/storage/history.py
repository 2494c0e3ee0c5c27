"""Files that a run's workers write for the driver: epochs and notes."""

import json
from pathlib import Path

from aml import files
from aml.errors import NotSaved
from aml.training import drop_checkpoint_drafts
from orchestrator.utils import redact

NOTES = "notes.txt"


def read_history(folder: Path) -> list[dict]:
    """Every finished epoch of the run in `folder`."""
    path = folder / "epochs.jsonl"
    return (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )


def add_note(folder: Path, text: str) -> None:
    """A line for the driver to say: what a worker prints reaches nobody. NotSaved where the disk takes no more."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / NOTES, "a", encoding="utf-8") as file:
            file.write(redact(text) + "\n")
    except OSError as error:
        raise NotSaved(files.write_failure(folder / NOTES, error, len(text))) from error


def read_notes(folder: Path) -> list[str]:
    path = folder / NOTES
    return path.read_text("utf-8").splitlines() if path.exists() else []


def drop_drafts(folder: Path) -> None:
    """Take away what a process that was lost was writing in a run's or trial's folder; nobody may be writing there."""
    drop_checkpoint_drafts(folder)
    for draft in (*folder.glob("*.tmp"), *folder.glob("pictures/*.tmp")):
        draft.unlink(missing_ok=True)
