"""A sweep as it runs: a table that stays on a terminal, plain lines elsewhere."""

import collections
import sys

SHOWN = 30

"""Rows of the table: trials under way, and the last that ended."""


class ProgressTable:
    """Trials under way and finished; told by the sweep."""

    def __init__(self, plan, pace, say):
        self.plan, self.pace, self.say = plan, pace, say
        self.rows: dict[str, dict] = {}
        """Of trials under way."""
        self.over_rows: collections.deque[dict] = collections.deque(maxlen=SHOWN)
        self.live = None

    def open(self) -> None:
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(self._table(), refresh_per_second=2, transient=False)
            self.live.start()

    def started(self, facts: dict) -> None:
        epoch = self.rows.get(facts["trial"], {}).get("epoch", 0)
        self.rows[facts["trial"]] = facts | {"state": "training", "epoch": epoch}
        self._show()

    def heard(self, facts: dict, epoch: dict) -> None:
        self.rows[facts["trial"]] = facts | {"state": "training"} | epoch
        if self.live is None:
            e, m = self.plan.epochs[facts["arm"]], epoch
            self.say(
                f"{facts['trial']:28} tau {facts['tau']:<5g} rho {facts['rho']:<5.3g} seed {facts['seed']:<5d} epoch {m['epoch']:>3}/{e}  "
                f"loss {m['train/loss']:.4f}  mIoU {m['val/mIoU']:.4f}  oIoU {m['val/oIoU']:.4f}  {self.left()}"
            )
        self._show()

    def rests(self, trial_id: str) -> None:
        self.rows[trial_id]["state"] = "waits"
        self._show()

    def over(self, record: dict) -> None:
        row = self.rows.pop(record["trial"], None) or dict(record)
        self.over_rows.append(row | {"state": record["state"]})
        if self.live is None or record["state"] == "failed":
            how = {
                "done": "done",
                "stopped": f"stopped by {record['stopped_by']}",
                "failed": f"FAILED: {record['error']}",
            }[record["state"]]
            self.say(
                f"{record['trial']:28} {how} after {record['epochs']} epochs, {record['seconds']:.0f} s ({len(self.plan.records)}/{self.plan.total} trials)"
            )
        self._show()

    def under_way(self) -> dict[str, int]:
        """Epochs that the live trials of each arm have trained."""
        trained = collections.Counter()
        for row in self.rows.values():
            trained[row["arm"]] += row["epoch"]
        return trained

    def left(self) -> str:
        return self.pace.left(self.under_way())

    def close(self) -> None:
        if self.live:
            self.live.update(self._table())
            self.live.stop()
            self.live = None

    def _show(self) -> None:
        if self.live:
            self.live.update(self._table())

    def _table(self):
        from rich.table import Table

        table = Table(
            title=f"{len(self.plan.records)} of {self.plan.total} trials finished  {self.left()}",
            title_justify="left",
        )
        for name in (
            "trial",
            "arm",
            "tau",
            "rho",
            "seed",
            "epoch",
            "loss",
            "mIoU",
            "oIoU",
            "state",
        ):
            table.add_column(name, justify="left" if name in ("trial", "arm", "state") else "right")
        for r in [*self.over_rows, *self.rows.values()][-SHOWN:]:
            numbers = [
                f"{r[k]:.4f}" if r.get(k) is not None else ""
                for k in ("train/loss", "val/mIoU", "val/oIoU")
            ]
            table.add_row(
                r["trial"],
                r["arm"],
                f"{r['tau']:g}",
                f"{r['rho']:.3g}",
                str(r["seed"]),
                str(r.get("epoch", "")),
                *numbers,
                r["state"],
            )
        return table
