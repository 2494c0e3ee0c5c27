"""A sweep as it runs: a table that stays on a terminal, plain lines elsewhere."""

import statistics
import sys

from orchestrator import budget
from orchestrator.config import Experiment


class Board:
    """Trials under way and finished; told by the sweep."""

    def __init__(self, plan, experiment: Experiment, concurrent: int, say):
        self.plan, self.experiment, self.concurrent, self.say = plan, experiment, concurrent, say
        self.rows: dict[str, dict] = {}
        self.seconds: list[float] = []
        self.live = None

    def open(self) -> None:
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(self._table(), refresh_per_second=2, transient=False)
            self.live.start()

    def started(self, facts: dict) -> None:
        self.rows[facts["trial"]] = facts | {"state": "training", "epoch": 0}
        self._show()

    def heard(self, facts: dict, epoch: dict) -> None:
        self.rows[facts["trial"]] = facts | {"state": "training"} | epoch
        self.seconds.append(epoch["time/epoch_s"])
        if self.live is None:
            e, m = self.plan.epochs[facts["arm"]], epoch
            self.say(
                f"{facts['trial']:28} tau {facts['tau']:<5g} rho {facts['rho']:<5.3g} seed {facts['seed']:<5d} epoch {m['epoch']:>3}/{e}  "
                f"loss {m['train/loss']:.4f}  mIoU {m['val/mIoU']:.4f}  oIoU {m['val/oIoU']:.4f}  {self.left()}"
            )
        self._show()

    def over(self, record: dict) -> None:
        self.rows.setdefault(record["trial"], dict(record))["state"] = record["state"]
        if self.live is None or record["state"] == "failed":
            how = {"done": "done", "stopped": f"stopped by {record['stopped_by']}", "failed": f"FAILED: {record['error']}"}[record["state"]]
            self.say(
                f"{record['trial']:28} {how} after {record['epochs']} epochs, {record['seconds']:.0f} s ({len(self.plan.records)}/{self.plan.total} trials)"
            )
        self._show()

    def left(self) -> str:
        """Time and money left at the pace so far; an upper bound while ASHA or a budget may still stop trials."""
        if not self.seconds:
            return ""
        price = budget.hourly(self.experiment.resources)
        gone = sum(self.plan.epochs[r["arm"]] for r in self.plan.records.values())
        rest = self.plan.total_epochs - gone - sum(r.get("epoch", 0) for r in self.rows.values() if r["state"] == "training")
        seconds = max(0, rest) * statistics.median(self.seconds[-50:]) / self.concurrent
        cost = f", cost <= {budget.money(seconds * self.concurrent / 3600 * price)}" if price else ""
        return (f"<= {seconds / 60:.0f} min left" if seconds > 90 else f"<= {seconds:.0f} s left") + cost

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

        table = Table(title=f"{len(self.plan.records)} of {self.plan.total} trials finished  {self.left()}", title_justify="left")
        for name in ("trial", "arm", "tau", "rho", "seed", "epoch", "loss", "mIoU", "oIoU", "state"):
            table.add_column(name, justify="left" if name in ("trial", "arm", "state") else "right")
        shown = sorted(self.rows.values(), key=lambda r: (r["state"] == "training", r["trial"]))[-30:]
        for r in shown:
            numbers = [f"{r[k]:.4f}" if r.get(k) is not None else "" for k in ("train/loss", "val/mIoU", "val/oIoU")]
            table.add_row(r["trial"], r["arm"], f"{r['tau']:g}", f"{r['rho']:.3g}", str(r["seed"]), str(r.get("epoch", "")), *numbers, r["state"])
        return table
