"""The progress of a sweep: a table by arm that stays on a terminal, plain lines elsewhere."""

import collections
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.search import Plan
from orchestrator.utils import progress_logger, shows_live

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table

logger = logging.getLogger(__name__)


MAX_ROWS = 12
"""Rows of the table of trials: those that run, and the last that ended."""

COLUMNS = ("trial", "tau", "rho", "seed", "epoch", "loss", "mIoU %", "oIoU %", "state")


class Rung(NamedTuple):
    """The place of a trial among the search trials of its arm at one epoch."""

    rank: int
    trials: int


class ProgressTable:
    """Show the arms, their running and ended trials. It only shows: nothing reads its rows."""

    def __init__(self, plan: Plan, time_left: Callable[[], str], scored: str = "") -> None:
        """Create a table without rows.

        Args:
            plan: Numbers of trials and epochs.
            time_left: Returns the time and money that are left, and the budget, as text.
            scored: Which sentences the scores are on, in words.
        """
        self.plan = plan
        self.time_left = time_left
        self.scored = scored
        self._rows: dict[str, dict] = {}
        """Rows of unfinished trials."""
        self._ended_rows: collections.deque[dict] = collections.deque(maxlen=MAX_ROWS)
        self._scores: dict[tuple[str, int], dict[str, float]] = collections.defaultdict(dict)
        """By arm and epoch, the metric of each search trial."""
        self._live: Live | None = None
        for record in plan.results.records.values():  # of earlier attempts
            self._note_scores(record)

    def open(self) -> None:
        """Show the table where the output is a terminal; else say what the scores are on."""
        if shows_live():
            from rich.live import Live

            self._live = Live(self._display(), refresh_per_second=2, transient=False)
            self._live.start()
        elif self.scored:
            progress_logger.info(f"scores: mIoU and oIoU in % on {self.scored}")

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
        row = summary_row
        self._rows[row["trial"]] = row | {"state": "training"} | epoch
        value = epoch.get(self.plan.experiment.search.objective.metric)
        if row["stage"] == "search" and value is not None:
            self._scores[row["arm"], epoch["epoch"]][row["trial"]] = value
        if self._live is None:
            epochs = self.plan.epochs[row["arm"]]
            progress_logger.info(
                f"{row['trial']:28} tau {row['tau']:<5g} rho {row['rho']:<5.3g} "
                f"seed {row['seed']:<5d} epoch {epoch['epoch']:>3}/{epochs}  "
                f"loss {epoch['train/loss']:.4f}  mIoU {_pct(epoch['val/mIoU'])}  "
                f"oIoU {_pct(epoch['val/oIoU'])}  {self.time_left()}"
            )
        self._refresh()

    def pause_trial(self, trial_id: str) -> None:
        """Show that a trial waits for the others of its arm."""
        self._rows[trial_id]["state"] = "waits"
        self._refresh()

    def complete_trial(self, record: dict) -> None:
        """Show how a trial ended."""
        row = self._rows.pop(record["trial"], None) or dict(record)
        self._note_scores(record)
        how = self._how(record)
        self._ended_rows.append(row | {"state": how})
        if self._live is None or record["state"] == "failed":
            ended = len(self.plan.results.records)
            say = logger if record["state"] == "failed" else progress_logger
            say.info(
                f"{record['trial']:28} {how} after {record['epochs']} epochs, "
                f"{record['seconds']:.0f} s ({ended}/{self.plan.counts.total} trials)"
            )
        self._refresh()

    def _note_scores(self, record: dict) -> None:
        """Take in the scores of a search trial that has ended."""
        metric = self.plan.experiment.search.objective.metric
        if record["stage"] == "search":
            for epoch in record["history"]:
                if epoch.get(metric) is not None:
                    self._scores[record["arm"], epoch["epoch"]][record["trial"]] = epoch[metric]

    def rung(self, record: dict) -> Rung | None:
        """Return a search trial's rank by its last epoch among those of its arm known there.

        None where it has no value, or no other trial has one.
        """
        search = self.plan.experiment.search
        arm, epoch = record["arm"], record["epochs"]
        scores = self._scores[arm, epoch]
        if record["trial"] not in scores or len(scores) < 2:
            return None
        gain = search.objective.gain
        own = gain(scores[record["trial"]])
        return Rung(1 + sum(gain(value) > own for value in scores.values()), len(scores))

    def _how(self, record: dict) -> str:
        """Return how a trial ended, in words."""
        if record["state"] == "failed":
            return f"FAILED: {record['error']}"
        if record["state"] == "done":
            return "done"
        by = record["stopped_by"]
        scheduler = self.plan.experiment.search.scheduler
        if by != scheduler.name:
            return f"stopped by {by}"
        text = f"stopped by {by.upper() if by == 'asha' else by}"
        if rung := self.rung(record):
            place = "epoch" if by == "median_stopping_rule" else "the rung of epoch"
            text += f" at {place} {record['epochs']}, rank {rung.rank} of {rung.trials}"
        return text

    def _refresh(self) -> None:
        if self._live:
            self._live.update(self._display())

    def _display(self) -> "Group":
        """Return the table of arms above that of trials."""
        from rich.console import Group

        has_rows = self._ended_rows or self._rows
        return Group(self._arms(), *([self._trials()] if has_rows else []))

    def _arms(self) -> "Table":
        from rich.table import Table

        plan = self.plan
        title = f"{len(plan.results.records)} of {plan.counts.total} trials  {self.time_left()}"
        caption = f"scores on {self.scored}" if self.scored else None
        table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
        table.add_column("arm")
        for name in ("running", "waiting", "finished", "stopped", "failed", "best mIoU %"):
            table.add_column(name, justify="right")
        for arm in plan.arms:
            records = [r for r in plan.results.records.values() if r["arm"] == arm]
            running = [row for row in self._rows.values() if row["arm"] == arm]
            total = plan.search.per_arm + plan.experiment.search.seeds.confirm
            states = collections.Counter(record["state"] for record in records)
            epochs = [e for record in records for e in record["history"]] + running
            values = [e["val/mIoU"] for e in epochs if e.get("val/mIoU") is not None]
            counts = [
                sum(row["state"] == "training" for row in running),
                total - len(records) - sum(row["state"] == "training" for row in running),
                states["done"],
                states["stopped"],
                states["failed"],
            ]
            best = _pct(max(values)) if values else ""
            table.add_row(arm, *(str(n) if n else "" for n in counts), best)
        return table

    def _trials(self) -> "Table":
        from rich.table import Table

        table = Table()
        for name in COLUMNS:
            table.add_column(name, justify="left" if name in ("trial", "state") else "right")
        for row in [*self._ended_rows, *self._rows.values()][-MAX_ROWS:]:
            loss = row.get("train/loss")
            table.add_row(
                row["trial"],
                f"{row['tau']:g}",
                f"{row['rho']:.3g}",
                str(row["seed"]),
                f"{row.get('epoch', '')}/{self.plan.epochs[row['arm']]}",
                "" if loss is None else f"{loss:.4f}",
                _pct(row.get("val/mIoU")),
                _pct(row.get("val/oIoU")),
                row["state"],
            )
        return table


def _pct(share: float | None) -> str:
    """Return a share in per cent, without the sign; "" for None."""
    return "" if share is None else f"{100 * share:.1f}"
