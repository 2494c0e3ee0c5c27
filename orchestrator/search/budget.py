"""What a sweep may use, has used, and may therefore still start: trials, epochs, hours, money. Arithmetic; only the Meter
looks at a clock.

The search leaves room for each arm's confirmation; only an arm's first search trial may take from it. Trials and epochs are never exceeded.
Hours and cost are known in advance only by the pace of the epochs so far: what would not end in time is not started, and what runs on when
they are used up stops at the end of its epoch.
"""

import time
from dataclasses import dataclass

from aml.errors import UserError
from orchestrator.config import BudgetConfig


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a sweep has used, and how fast."""

    trials: int = 0
    """Handed out."""
    epochs: int = 0
    """Trained."""
    pending: int = 0
    """Epochs that the trials handed out still have before them."""
    hours: float = 0
    """Of wall clock."""
    trial_hours: float = 0
    """Of all trials together."""
    epoch_s: float = 0
    """Seconds of an epoch so far; 0 before the first."""
    concurrent: int = 1
    price: float = 0
    """Of an hour of one trial."""

    @property
    def cost(self) -> float:
        return self.trial_hours * self.price


def hourly_price(resources) -> float:
    """Price of an hour of one trial: workers x (GPUs x price + CPUs x price)."""
    worker = (
        resources.gpus_per_worker * resources.price_per_gpu_hour
        + resources.cpus_per_worker * resources.price_per_cpu_hour
    )
    return resources.workers * worker


def is_used_up(limits: BudgetConfig, use: Usage) -> str:
    """Which of hours and cost is gone, so that running trials stop too; nothing where none is."""
    if limits.hours is not None and use.hours >= limits.hours:
        return "hours"
    return "cost" if limits.cost is not None and use.cost >= limits.cost else ""


def refuses(
    limits: BudgetConfig,
    use: Usage,
    epochs: int,
    *,
    keep: tuple[int, int] = (0, 0),
    foresee: bool = True,
) -> str:
    """Which limit forbids starting one more trial of so many epochs; nothing where none does.

    keep: trials and epochs that are to remain. foresee: refuse also what, at the pace so far, would pass hours or cost before its end.
    """
    if gone := is_used_up(limits, use):
        return gone
    if limits.trials is not None and use.trials + 1 + keep[0] > limits.trials:
        return "trials"
    if limits.epochs is not None and use.epochs + use.pending + epochs + keep[1] > limits.epochs:
        return "epochs"
    if not foresee:
        return ""
    ahead = (use.pending + epochs + keep[1]) * use.epoch_s / 3600
    if (
        limits.hours is not None
        and use.hours + max(ahead / use.concurrent, epochs * use.epoch_s / 3600) > limits.hours
    ):
        return "hours"
    return "cost" if limits.cost is not None and use.cost + ahead * use.price > limits.cost else ""


def check(limits: BudgetConfig, arms: int, epochs: int, price: float) -> None:
    """UserError for a budget under which no arm could be compared, or whose money has no price."""
    if limits.trials is not None and limits.trials < arms:
        raise UserError(
            f"search.budget.trials is {limits.trials}, but {arms} arms need a trial each; raise it or name fewer search.arms"
        )
    if limits.epochs is not None and limits.epochs < arms * epochs:
        raise UserError(
            f"search.budget.epochs is {limits.epochs}, but a trial of each of {arms} arms takes {arms} x {epochs} = {arms * epochs}; "
            "raise it, or lower train.epochs or the number of search.arms"
        )
    if limits.cost is not None and not price:
        raise UserError(
            "search.budget.cost needs prices: set resources.price_per_gpu_hour, resources.price_per_cpu_hour or both"
        )


def estimate(
    limits: BudgetConfig,
    trials: int,
    epochs: int,
    longest: int,
    epoch_s: float,
    concurrent: int,
    price: float,
) -> tuple[float, float]:
    """Hours and money a sweep takes at most.

    trials, epochs: of the whole plan; longest: epochs of its longest trial; epoch_s: seconds of an epoch; price: of an hour of one trial.
    """
    if limits.trials is not None and limits.trials < trials:
        epochs = min(epochs, limits.trials * longest)
    epochs = min(epochs, limits.epochs or epochs)
    hours = epochs * epoch_s / 3600
    if limits.hours is not None:
        hours = min(hours, limits.hours * concurrent)
    cost = min(hours * price, limits.cost) if limits.cost is not None else hours * price
    return hours / concurrent, cost


def money(cost: float) -> str:
    """0.0042 -> 0.0042, 12.3456 -> 12.35: small sums keep two digits that mean something."""
    return f"{cost:.2f}" if cost >= 1 or not cost else f"{cost:.2g}"


def budget_message(stop: dict) -> str:
    """What is said of a sweep that its budget stopped: as Meter.stop gives it."""
    text = f"stopped by its budget of {stop['limit']:g} {stop['reason']} with the best so far: {stop['handed']} of {stop['total']} trials were started"
    missing = ", ".join(
        f"{arm} lacks {n} of {stop['confirm']} seeds" for arm, n in stop["missing"].items()
    )
    return f"{text}; confirmation is {'missing: ' + missing if missing else 'whole'}. A larger search.budget and the same command go on"


class BudgetTracker:
    """The use of one sweep that is running, and the gate of its plan."""

    def __init__(self, sweep, before: dict | None):
        """before: what earlier attempts spent, as `spent` gave it."""
        self.sweep, self.begun, self.ended_s = sweep, time.time(), 0.0
        self.before = before or {"seconds": 0, "trial_seconds": 0}
        self.limits: BudgetConfig = sweep.experiment.search.budget

    def gate(self, stage: str, arm: str) -> str:
        """The budget's answer to the plan: search trials leave room for every confirmation, but for an arm's first."""
        if not self.limits.limits:
            return ""
        if stage == "running":
            return is_used_up(self.limits, self.use())
        plan = self.sweep.plan
        first = stage == "search" and not plan.handed[arm]["search"]
        keep = (0, 0) if first or stage == "confirm" else plan.to_confirm()
        return refuses(self.limits, self.use(), plan.epochs[arm], keep=keep, foresee=not first)

    def spent(self) -> dict:
        """Seconds of wall clock and of all trials together, of earlier attempts too."""
        now = time.time()
        live = sum(now - t.since for t in self.sweep.live.values() if t.since)
        attempt = {"seconds": now - self.begun, "trial_seconds": self.ended_s + live}
        return {k: round(self.before[k] + v, 2) for k, v in attempt.items()}

    def use(self) -> Usage:
        plan, spent = self.sweep.plan, self.spent()
        under_way = [
            (t.spec.arm, max(t.history, default=0)) for t in self.sweep.live.values()
        ] + plan.resting()
        return Usage(
            trials=plan.started,
            epochs=plan.epochs_trained + sum(done for _, done in under_way),
            pending=sum(max(0, plan.epochs[arm] - done) for arm, done in under_way),
            hours=spent["seconds"] / 3600,
            trial_hours=spent["trial_seconds"] / 3600,
            epoch_s=self.sweep.pace.epoch_s,
            concurrent=self.sweep.placement.concurrent,
            price=hourly_price(self.sweep.experiment.resources),
        )

    def stop(self) -> dict:
        """What is kept of the budget that ended the sweep; `sentence` says it."""
        plan = self.sweep.plan
        counts = {
            "handed": plan.started,
            "total": plan.total,
            "confirm": self.sweep.experiment.search.seeds.confirm,
        }
        return {
            "limits": self.limits.limits,
            "reason": plan.cut,
            "limit": self.limits.limits[plan.cut],
            "missing": plan.unconfirmed(),
        } | counts
