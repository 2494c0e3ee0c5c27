"""Files that a run's workers write for the driver: finished epochs and notes."""

import json
from pathlib import Path

from aml import files
from aml.errors import NotSaved
from aml.training import drop_checkpoint_drafts
from orchestrator.utils import redact

NOTES = "notes.txt"


def read_history(folder: Path) -> list[dict]:
    """Return the metrics of every finished epoch of the run or trial in a folder."""
    path = folder / "epochs.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def add_note(folder: Path, text: str) -> None:
    """Append a line that the driver logs, because the user sees nothing that a worker prints.

    Raises:
        NotSaved: the disk takes no more.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / NOTES, "a", encoding="utf-8") as file:
            file.write(redact(text) + "\n")
    except OSError as error:
        raise NotSaved(files.write_failure(folder / NOTES, error, len(text))) from error


def read_notes(folder: Path) -> list[str]:
    """Return the notes of a run or trial in the order in which its workers wrote them."""
    path = folder / NOTES
    return path.read_text("utf-8").splitlines() if path.exists() else []


def drop_drafts(folder: Path) -> None:
    """Delete the temporary files that a lost process left in the folder of a run or trial.

    No process may be writing in the folder.
    """
    drop_checkpoint_drafts(folder)
    for draft in (*folder.glob("*.tmp"), *folder.glob("pictures/*.tmp")):
        draft.unlink(missing_ok=True)
