"""The generations of a sweep's populations on disk: what was decided, and members going on from copies of others.

File generations.jsonl of the run's folder: a line a generation that has ended, {"arm", "epoch", "scores", "moves"}.
"""

import json
import shutil
from pathlib import Path

from aml import checkpoint
from aml.errors import NotSaved
from orchestrator import trial

FILE = "generations.jsonl"
DONE = "generation.json"
"""In a member's folder: the last generation whose move it has made."""
COPIED = ("last", "best", "epochs.jsonl")


class Generations:
    """Decisions of the populations, made durable before their moves, which are made again after a crash between the two."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / FILE
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        self.decisions: dict[str, list[dict]] = {}
        for line in lines:
            self.decisions.setdefault(line["arm"], []).append(line)
        for decisions in self.decisions.values():
            self._move(decisions[-1])

    def end(self, arm: str, decision: dict) -> list[str]:
        """Write a generation's decision down and make its moves.   -> a line for each, to be said

        NotSaved where the disk takes no more; the same command then makes the moves.
        """
        line = {"arm": arm, **decision}
        path = self.folder / FILE
        before = path.read_bytes() if path.exists() else b""
        trial.write_atomic(path, before + json.dumps(line).encode() + b"\n")
        self._move(line)
        return [
            f"{member:28} goes on from {move['from']} at epoch {decision['epoch']} with "
            + (", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in move["overrides"].items()) or "the same settings")
            for member, move in decision["moves"].items()
        ]

    def _move(self, decision: dict) -> None:
        """Each member that the decision moves gets its donor's checkpoints and history. Donors of a generation are moved by none."""
        for member, move in decision["moves"].items():
            target, source = (self.folder / "trials" / t for t in (member, move["from"]))
            mark = target / DONE
            if mark.exists() and json.loads(mark.read_text("utf-8"))["epoch"] >= decision["epoch"]:
                continue
            for name in COPIED:
                _replace(source / name, target / name)
                shutil.rmtree(checkpoint.before(target / name), ignore_errors=True)  # nothing falls back to what the member was
            trial.write_atomic(mark, json.dumps({"epoch": decision["epoch"], "from": move["from"]}).encode())


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
        wanted = sum(f.stat().st_size for f in ([source] if source.is_file() else source.rglob("*")))
        raise NotSaved(checkpoint.unwritten(target, error, wanted)) from error
