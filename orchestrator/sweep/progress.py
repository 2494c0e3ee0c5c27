"""The progress of a sweep: a table that stays on a terminal, plain lines elsewhere."""

import collections
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.search import Plan

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

logger = logging.getLogger(__name__)


MAX_ROWS = 30
"""Rows of the table: running trials, and the last that ended."""

COLUMNS = ("trial", "arm", "tau", "rho", "seed", "epoch", "loss", "mIoU", "oIoU", "state")


class ProgressTable:
    """Show running and ended trials. It only shows: nothing reads its rows."""

    def __init__(self, plan: Plan, time_left: Callable[[], str]) -> None:
        """Create a table without rows.

        Args:
            plan: Numbers of trials and epochs.
            time_left: Returns the time and money that are left, as text.
        """
        self.plan = plan
        self.time_left = time_left
        self._rows: dict[str, dict] = {}
        """Rows of unfinished trials."""
        self._ended_rows: collections.deque[dict] = collections.deque(maxlen=MAX_ROWS)
        self._live: Live | None = None

    def open(self) -> None:
        """Show the table where the output is a terminal."""
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(self._table(), refresh_per_second=2, transient=False)
            self._live.start()

    def close(self) -> None:
        """Leave the table as it is; what is logged later is printed below."""
        if self._live:
            self._refresh()
            self._live.stop()
            self._live = None

    def start_trial(self, summary_row: dict) -> None:
        """Show that a trial starts or continues."""
        trial_id = summary_row["trial"]
        epoch = self._rows.get(trial_id, {}).get("epoch", 0)
        self._rows[trial_id] = summary_row | {"state": "training", "epoch": epoch}
        self._refresh()

    def on_epoch(self, summary_row: dict, epoch: dict) -> None:
        """Show an epoch of a trial."""
        self._rows[summary_row["trial"]] = summary_row | {"state": "training"} | epoch
        if self._live is None:
            row = summary_row
            epochs = self.plan.epochs[row["arm"]]
            logger.info(
                f"{row['trial']:28} tau {row['tau']:<5g} rho {row['rho']:<5.3g} "
                f"seed {row['seed']:<5d} epoch {epoch['epoch']:>3}/{epochs}  "
                f"loss {epoch['train/loss']:.4f}  mIoU {epoch['val/mIoU']:.4f}  "
                f"oIoU {epoch['val/oIoU']:.4f}  {self.time_left()}"
            )
        self._refresh()

    def pause_trial(self, trial_id: str) -> None:
        """Show that a member of a population waits for the others."""
        self._rows[trial_id]["state"] = "waits"
        self._refresh()

    def complete_trial(self, record: dict) -> None:
        """Show how a trial ended."""
        row = self._rows.pop(record["trial"], None) or dict(record)
        self._ended_rows.append(row | {"state": record["state"]})
        if self._live is None or record["state"] == "failed":
            how = {
                "done": "done",
                "stopped": f"stopped by {record['stopped_by']}",
                "failed": f"FAILED: {record['error']}",
            }[record["state"]]
            ended = len(self.plan.results.records)
            logger.info(
                f"{record['trial']:28} {how} after {record['epochs']} epochs, "
                f"{record['seconds']:.0f} s ({ended}/{self.plan.counts.total} trials)"
            )
        self._refresh()

    def _refresh(self) -> None:
        if self._live:
            self._live.update(self._table())

    def _table(self) -> "Table":
        from rich.table import Table

        finished = len(self.plan.results.records)
        title = f"{finished} of {self.plan.counts.total} trials finished  {self.time_left()}"
        table = Table(title=title, title_justify="left")
        for name in COLUMNS:
            table.add_column(name, justify="left" if name in ("trial", "arm", "state") else "right")
        for row in [*self._ended_rows, *self._rows.values()][-MAX_ROWS:]:
            metrics = (row.get(name) for name in ("train/loss", "val/mIoU", "val/oIoU"))
            table.add_row(
                row["trial"],
                row["arm"],
                f"{row['tau']:g}",
                f"{row['rho']:.3g}",
                str(row["seed"]),
                str(row.get("epoch", "")),
                *("" if value is None else f"{value:.4f}" for value in metrics),
                row["state"],
            )
        return table
