"""How far long work is: a bar with the time left on a terminal, a line now and then elsewhere.

Everything that only tells how work goes is logged here, so that --quiet can leave it out: results,
warnings and errors are logged elsewhere.
"""

import logging
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bars, TaskID

progress_logger = logging.getLogger("orchestrator.progress")
"""Logger of lines that only tell how work goes."""

FIRST_S = 10.0
"""Seconds after which the first line is logged; shorter work logs none."""

AGAIN_S = 30.0
"""Seconds between two lines."""


has_spoken = threading.Event()
"""Set by the first message or bar of this process."""


def quieten() -> None:
    """Log and show no progress in this process: --quiet."""
    progress_logger.setLevel(logging.WARNING)


def shows_live() -> bool:
    """Return whether a bar or table may be shown that changes in place."""
    return sys.stdout.isatty() and progress_logger.isEnabledFor(logging.INFO)


def duration(seconds: float) -> str:
    """Return seconds as text: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def range_text(low: float, high: float) -> str:
    """Return a range of seconds as text: 6 to 12 min, 40 s to 3 min, about 6 min."""
    first, last = duration(low), duration(high)
    if first == last:
        return f"about {last}"
    number, unit = first.rsplit(" ", 1)
    return f"{number if last.endswith(unit) else first} to {last}"


class Progress:
    """Progress of one piece of work, shown while a `with` block lasts.

    One bar is shown at a time, since rich has one live display a process; others give lines.
    """

    _one_bar = threading.Semaphore()

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """Prepare the progress; nothing is shown before the block is entered.

        Args:
            what: What is done, as "scoring" in "scoring: 30 of 80 pictures".
            total: How much there is to do.
            unit: What is counted, in the plural.
            done: How much was done before; it does not count for the speed.
        """
        self.what = what
        self.total = total
        self.unit = unit
        self.before = done
        self.done = done
        self.began = time.monotonic()
        self._next_line = self.began + FIRST_S
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Progress":
        self.began = time.monotonic()
        self._next_line = self.began + FIRST_S
        if self.total > self.done and shows_live() and Progress._one_bar.acquire(blocking=False):
            from rich import progress as rich_progress

            has_spoken.set()
            self._bars = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(bar_width=None),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("{task.fields[note]}"),
                rich_progress.TimeRemainingColumn(compact=True),
                transient=True,
            )
            label = f"{self.what} ({self.unit})"
            self._task = self._bars.add_task(label, total=self.total, completed=self.done, note="")
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()
            self._bars = None
            Progress._one_bar.release()

    def add(self, count: int = 1, note: str = "") -> None:
        """Count what was just done.

        Args:
            count: How much.
            note: A word on it, as the loss of a step.
        """
        self.set(self.done + count, note)

    def set(self, done: int, note: str = "") -> None:
        """Show that so much is done in all; see `add`."""
        self.done = done
        if self._bars and self._task is not None:
            self._bars.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if now < self._next_line or done in (self.before, self.total):
            return
        self._next_line = now + AGAIN_S
        rate = (done - self.before) / max(now - self.began, 1e-9)
        left = duration((self.total - done) / rate)
        progress_logger.info(
            f"{self.what}: {done:,} of {self.total:,} {self.unit}, {rate:.3g} a second, "
            f"{left} left{f', {note}' if note else ''}"
        )
