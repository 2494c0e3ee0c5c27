"""Keep tracking operations on disk until MLflow has them.

`tracking.queue.jsonl` in a run folder holds one operation a line, `tracking.queue.offset` the
number of its bytes that are delivered. An operation that a process did not deliver is delivered by
the next one on the same folder. `tracking.rejected.jsonl` holds the operations that MLflow refused.
"""

import collections
import contextlib
import itertools
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

QUEUE = "tracking.queue.jsonl"
"""Name of the file in a run folder with the operations that MLflow has not been given yet."""

OFFSET = "tracking.queue.offset"

REJECTED = "tracking.rejected.jsonl"


@dataclass(frozen=True)
class Operation:
    """One call of a tracker, as it is queued."""

    fields: dict[str, Any]
    """The queued line: op (the kind), key (the run key), t (Unix time in ms), arguments."""
    end: int
    """Size of the queue file in bytes up to and including this operation."""
    restored: bool
    """True if an earlier process wrote the operation."""

    @property
    def kind(self) -> str:
        """Kind of the operation: run, metrics, data, artifact, model or end."""
        return self.fields["op"]

    @property
    def run_key(self) -> str:
        """Key of the run inside the run folder."""
        return self.fields["key"]

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


class QueueFile:
    """Durable first-in, first-out queue of a run folder.

    One process at a time may use a folder's queue. The methods take no lock: the delivery thread
    and the threads that append hold one around every call.
    """

    def __init__(self, folder: Path):
        """Read the operations that an earlier process did not deliver."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / QUEUE
        self.rejected = 0
        """Number of operations that MLflow refused since this process began."""
        self._offset_path = folder / OFFSET
        self._rejected_path = folder / REJECTED
        self._waiting: collections.deque[Operation] = collections.deque()
        self._size = self._restore()

    def __len__(self) -> int:
        return len(self._waiting)

    def head(self, count: int) -> list[Operation]:
        """Return at most `count` of the oldest operations, which stay in the queue."""
        return list(itertools.islice(self._waiting, count))

    def append(self, fields: dict[str, Any]) -> None:
        """Append an operation; where the disk refuses it, it is kept in memory alone."""
        line = json.dumps(fields).encode() + b"\n"
        try:
            with self.path.open("ab") as file:
                file.write(line)
            self._size += len(line)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._size)  # half a line would spoil the next one
            logger.error(
                "the tracking queue cannot be written (%s); this operation is kept in memory "
                "alone and is lost if this process ends before MLflow has it",
                error,
            )
        self._waiting.append(Operation(fields, self._size, restored=False))

    def remove(self, count: int) -> None:
        """Remove the oldest operations, which are delivered or refused, and note how far it is."""
        removed = [self._waiting.popleft() for _ in range(count)]
        draft = self._offset_path.with_suffix(".new")
        try:
            draft.write_text(str(removed[-1].end))
            os.replace(draft, self._offset_path)
        except OSError as error:
            # Harmless: what is delivered a second time after a restart changes nothing in MLflow.
            logger.error("the offset of the tracking queue cannot be written (%s)", error)

    def note_rejected(self, operation: Operation, reason: str) -> None:
        """Write an operation that MLflow refuses to the file of rejected operations."""
        self.rejected += 1
        line = json.dumps({**operation.fields, "error": reason}) + "\n"
        # On a full disk the caller's log message is the only note.
        with contextlib.suppress(OSError), self._rejected_path.open("a") as file:
            file.write(line)

    def delete_files(self) -> None:
        """Delete the files of an empty queue."""
        # The queue first: an offset without a queue counts as 0.
        self.path.unlink(missing_ok=True)
        self._offset_path.unlink(missing_ok=True)

    def _restore(self) -> int:
        """Load undelivered operations, cut off an incomplete last line; return the file's size."""
        if not self.path.exists():
            return 0
        raw = self.path.read_bytes()
        complete = raw[: raw.rfind(b"\n") + 1]
        if len(complete) < len(raw):
            os.truncate(self.path, len(complete))
        end = int(self._offset_path.read_text()) if self._offset_path.exists() else 0
        if end > len(complete):
            end = 0
        for line in complete[end:].splitlines(keepends=True):
            end += len(line)
            self._waiting.append(Operation(json.loads(line), end, restored=True))
        return len(complete)
