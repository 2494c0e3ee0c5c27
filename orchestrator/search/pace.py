"""How long a sweep takes: planned from a few steps before it starts, corrected by every epoch it has trained."""

import collections
import statistics

from orchestrator.config import Experiment
from orchestrator.search import budget

WINDOW = 50

"""Epochs of an arm whose median is its pace."""

MOVED = 1.2

"""A corrected estimate is said when it has changed by this factor since it was said last."""


class ThroughputEstimator:
    """Seconds of an epoch, arm by arm, and what they make of the trials that are left."""

    def __init__(self, plan, experiment: Experiment, concurrent: int, planned: dict | None = None):
        """planned: {"epoch_s", "hours", "cost"} as `planned` gave it before the start; None: nothing was measured then."""
        self.plan, self.concurrent, self.planned = plan, concurrent, planned
        self.price = budget.hourly_price(experiment.resources)
        self.limits = experiment.search.budget
        self.by_arm = {arm: collections.deque(maxlen=WINDOW) for arm in plan.epochs}
        self.trained_s = self.held_s = 0.0
        self.said = planned["hours"] if planned else 0.0

    def epoch(self, arm: str, seconds: float) -> None:
        """A trial of this arm has trained an epoch in so many seconds."""
        self.by_arm[arm].append(seconds)

    def ended(self, record: dict) -> None:
        """A trial has ended: what it took beside its epochs (start-up, checkpoints, reports) counts for those to come."""
        self.trained_s += sum(epoch["time/epoch_s"] for epoch in record["history"])
        self.held_s += record["seconds"]

    def replay(self, record: dict) -> None:
        """A trial that an earlier attempt heard of, from its first epoch to its end."""
        for epoch in record["history"]:
            self.epoch(record["arm"], epoch["time/epoch_s"])
        self.ended(record)

    @property
    def epoch_s(self) -> float:
        """Median of the last epochs of all arms; 0 before the first."""
        seconds = [s for window in self.by_arm.values() for s in window]
        return statistics.median(seconds) if seconds else 0.0

    @property
    def overhead(self) -> float:
        """Time of trials over the time of their epochs, at least 1."""
        return max(1.0, self.held_s / self.trained_s) if self.trained_s else 1.0

    def left_s(self, under_way: dict[str, int]) -> float:
        """Seconds of one trial after another until every trial has trained to its end.   under_way: {arm: epochs its live trials have trained}"""
        mean = self.epoch_s
        epochs = {
            arm: max(0, n - under_way.get(arm, 0)) for arm, n in self.plan.epochs_left.items()
        }
        return self.overhead * sum(
            n * (statistics.median(w) if (w := self.by_arm[arm]) else mean)
            for arm, n in epochs.items()
        )

    def left(self, under_way: dict[str, int]) -> str:
        """Time and money left at the pace so far; an upper bound while ASHA or a budget may still stop trials."""
        if not self.epoch_s:
            return ""
        seconds = self.left_s(under_way)
        cost = f", cost <= {budget.money(seconds / 3600 * self.price)}" if self.price else ""
        return f"<= {duration(seconds / self.concurrent)} left{cost}"

    def correction(self, under_way: dict[str, int], spent: dict) -> str:
        """The whole sweep's time and money as they look now, where they have moved since they were said; else nothing.

        spent: {"seconds" of wall clock, "trial_seconds" of all trials together} so far.
        """
        if not self.epoch_s:
            return ""
        left = self.left_s(under_way)
        hours, trial_hours = (
            (spent["seconds"] + left / self.concurrent) / 3600,
            (spent["trial_seconds"] + left) / 3600,
        )
        if self.limits.hours is not None:
            hours = min(hours, self.limits.hours)
        cost = (
            trial_hours * self.price
            if self.limits.cost is None
            else min(trial_hours * self.price, self.limits.cost)
        )
        if self.said and 1 / MOVED < hours / self.said < MOVED:
            return ""
        self.said = hours
        before = (
            f"; planned were {described(self.planned['hours'], self.planned['cost'], self.planned['epoch_s'])}"
            if self.planned
            else ""
        )
        return f"estimate: in all at most {described(hours, cost, self.epoch_s)}, corrected by the epochs so far{before}"


def planned(plan, experiment: Experiment, epoch_s: float, concurrent: int) -> dict:
    """Hours and money of a plan whose epochs take `epoch_s` seconds.   -> {"epoch_s", "hours", "cost"}"""
    longest = max(plan.epochs.values())
    hours, cost = budget.estimate(
        experiment.search.budget,
        plan.total,
        plan.total_epochs,
        longest,
        epoch_s,
        concurrent,
        budget.hourly_price(experiment.resources),
    )
    return {"epoch_s": epoch_s, "hours": hours, "cost": cost}


def described(hours: float, cost: float, epoch_s: float) -> str:
    """12 min (0.20 h), cost 0.40, at 2.5 s an epoch"""
    money = f", cost {budget.money(cost)}" if cost else ""
    return f"{duration(hours * 3600)} ({hours:.2f} h){money} at {epoch_s:.1f} s an epoch"


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
