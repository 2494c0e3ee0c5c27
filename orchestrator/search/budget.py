"""The budget of a sweep, and the trials it still allows: trials, epochs, hours, cost.

The search leaves room for each arm's confirmation; only an arm's first search trial may take from
it. The limits of trials and epochs are never exceeded. Hours and cost are known in advance only by
the throughput so far: a trial that would not end in time is not started, and a trial that runs
when they are used up stops at the end of its epoch.

Everything here is arithmetic; only BudgetTracker reads a clock.
"""

import time
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from orchestrator.config import BudgetConfig, Experiment, hourly_price
from orchestrator.search.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The resources a sweep has used, and the rate at which it uses them."""

    trials: int = 0
    """Trials suggested."""
    epochs: int = 0
    """Epochs trained."""
    pending: int = 0
    """Epochs that the suggested trials have not trained yet."""
    hours: float = 0
    """Hours of wall clock."""
    trial_hours: float = 0
    """Hours of all trials together."""
    epoch_s: float = 0
    """Seconds of an epoch so far; 0 before the first."""
    concurrent: int = 1
    """Trials that run at a time."""
    price: float = 0
    """Price of an hour of one trial."""

    @property
    def cost(self) -> float:
        return self.trial_hours * self.price


class Reserve(NamedTuple):
    """Trials and epochs that the start of a trial must leave over for later trials."""

    trials: int = 0
    epochs: int = 0


NO_RESERVE = Reserve()


def is_used_up(limits: BudgetConfig, use: Usage) -> str:
    """Return which of hours and cost is used up, so that running trials stop too; "" for none."""
    if limits.hours is not None and use.hours >= limits.hours:
        return "hours"
    return "cost" if limits.cost is not None and use.cost >= limits.cost else ""


def refuses(
    limits: BudgetConfig,
    use: Usage,
    epochs: int,
    *,
    reserve: Reserve = NO_RESERVE,
    predict: bool = True,
) -> str:
    """Return which limit forbids the start of one more trial.

    Args:
        limits: The limits of the sweep.
        use: What the sweep has used.
        epochs: Epochs of the trial.
        reserve: Trials and epochs that must remain.
        predict: Refuse also a trial that, at the throughput so far, would pass the hours or the
            cost before its end.

    Returns:
        trials, epochs, hours or cost; "" where none forbids it.
    """
    if limit := is_used_up(limits, use):
        return limit
    if limits.trials is not None and use.trials + 1 + reserve.trials > limits.trials:
        return "trials"
    needed = use.pending + epochs + reserve.epochs
    if limits.epochs is not None and use.epochs + needed > limits.epochs:
        return "epochs"
    if not predict:
        return ""
    needed_hours = needed * use.epoch_s / 3600
    if limits.hours is not None:
        trial_hours = epochs * use.epoch_s / 3600
        if use.hours + max(needed_hours / use.concurrent, trial_hours) > limits.hours:
            return "hours"
    exceeds_cost = limits.cost is not None and use.cost + needed_hours * use.price > limits.cost
    return "cost" if exceeds_cost else ""


def estimate(
    limits: BudgetConfig,
    plan: Plan,
    *,
    epoch_s: float,
    concurrent: int,
    price: float,
    beside_s: float = 0.0,
) -> tuple[float, float]:
    """Return the hours and the money that a sweep takes at most.

    Args:
        limits: The limits of the sweep.
        plan: The plan, of which the numbers of trials and epochs are used.
        epoch_s: Seconds of an epoch.
        concurrent: Trials that run at a time.
        price: Price of an hour of one trial.
        beside_s: Seconds beside the epochs of all trials that are planned.
    """
    epochs = plan.counts.total_epochs
    if limits.trials is not None and limits.trials < plan.counts.total:
        epochs = min(epochs, limits.trials * max(plan.epochs.values()))
    epochs = min(epochs, limits.epochs or epochs)
    beside_s *= epochs / plan.counts.total_epochs if plan.counts.total_epochs else 1
    hours = (epochs * epoch_s + beside_s) / 3600
    if limits.hours is not None:
        hours = min(hours, limits.hours * concurrent)
    cost = hours * price
    if limits.cost is not None:
        cost = min(cost, limits.cost)
    return hours / concurrent, cost


def money(cost: float) -> str:
    """Return a sum as text: 12.35 for 12.3456, and two significant digits below 1."""
    return f"{cost:.2f}" if cost >= 1 or not cost else f"{cost:.2g}"


def budget_message(stop: dict) -> str:
    """Return what is logged of a sweep that its budget stopped.

    Args:
        stop: As `BudgetTracker.stop_record` returns it.
    """
    missing = ", ".join(
        f"{arm} lacks {n} of {stop['confirm']} seeds" for arm, n in stop["missing"].items()
    )
    return (
        f"stopped by its budget of {stop['limit']:g} {stop['reason']} with the best so far: "
        f"{stop['handed']} of {stop['total']} trials were started; confirmation is "
        f"{'missing: ' + missing if missing else 'whole'}. "
        "A larger search.budget and the same command go on"
    )


class TrialTimes(Protocol):
    """The part of the table of running trials that BudgetTracker reads."""

    def attempt_seconds(self) -> float:
        """Return the seconds that all trials of this attempt have taken together."""
        ...

    def epochs_trained(self) -> list[tuple[str, int]]:
        """Return (arm, finished epochs) of each running trial."""
        ...


class Throughput(Protocol):
    """The part of the throughput estimator that BudgetTracker reads."""

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch so far; 0 before the first."""
        ...


class BudgetTracker:
    """The usage of a running sweep, and the trials its budget forbids."""

    def __init__(
        self,
        experiment: Experiment,
        plan: Plan,
        trials: TrialTimes,
        throughput: Throughput,
        *,
        concurrent: int,
        spent_before: dict | None = None,
    ) -> None:
        """Start the clock of this attempt.

        Args:
            experiment: The settings of the sweep.
            plan: Counts of trials and epochs.
            trials: Seconds and epochs of the running trials.
            throughput: Seconds of an epoch so far.
            concurrent: Trials that run at a time.
            spent_before: What earlier attempts spent, as `spent` returned it.
        """
        self.limits = experiment.search.budget
        self.price = hourly_price(experiment.resources)
        self.num_confirm = experiment.search.seeds.confirm
        self.plan = plan
        self.trials = trials
        self.throughput = throughput
        self.concurrent = concurrent
        self.spent_before = spent_before or {"seconds": 0, "trial_seconds": 0}
        self.started_at = time.time()

    def check(self, stage: str, arm: str) -> str:
        """Return which limit forbids a trial; "" for none: the plan's `budget_check`.

        A search trial must leave room for every confirmation, unless it is its arm's first.

        Args:
            stage: search or confirm for the start of a trial, running for its next epoch.
            arm: The arm of the trial to start; "" for running.
        """
        if not self.limits.limits:
            return ""
        if stage == "running":
            return is_used_up(self.limits, self.use())
        is_first = stage == "search" and not self.plan.counts.num_suggested[arm]["search"]
        reserve = NO_RESERVE
        if stage == "search" and not is_first:
            reserve = Reserve(*self.plan.counts.remaining_confirmations())
        epochs = self.plan.epochs[arm]
        return refuses(self.limits, self.use(), epochs, reserve=reserve, predict=not is_first)

    def spent(self) -> dict:
        """Return seconds of wall clock and of all trials together, with earlier attempts'."""
        attempt = {
            "seconds": time.time() - self.started_at,
            "trial_seconds": self.trials.attempt_seconds(),
        }
        return {key: round(self.spent_before[key] + s, 2) for key, s in attempt.items()}

    def use(self) -> Usage:
        """Return what the sweep has used."""
        spent = self.spent()
        unfinished = self._unfinished()
        return Usage(
            trials=self.plan.counts.num_started,
            epochs=self.plan.results.epochs_trained + sum(done for _, done in unfinished),
            pending=sum(max(0, self.plan.epochs[arm] - done) for arm, done in unfinished),
            hours=spent["seconds"] / 3600,
            trial_hours=spent["trial_seconds"] / 3600,
            epoch_s=self.throughput.epoch_s,
            concurrent=self.concurrent,
            price=self.price,
        )

    def used_text(self) -> str:
        """Return what is used of each limit: "budget: 0.4 of 2 hours"; "" without a budget."""
        use = self.use()
        used = {"trials": use.trials, "epochs": use.epochs, "hours": use.hours, "cost": use.cost}
        parts = [
            f"{used[name]:.2g} of {limit:g} {name}"
            if isinstance(used[name], float)
            else f"{used[name]} of {limit:g} {name}"
            for name, limit in self.limits.limits.items()
            if name in used
        ]
        return f"budget: {', '.join(parts)}" if parts else ""

    def epochs_in_progress(self) -> Counter[str]:
        """Return the epochs that the unfinished trials of each arm have trained."""
        trained: Counter[str] = Counter()
        for arm, epochs in self._unfinished():
            trained[arm] += epochs
        return trained

    def stop_record(self) -> dict:
        """Return what sweep.json holds of the budget that ended the sweep."""
        reason = self.plan.incomplete_reason
        return {
            "limits": self.limits.limits,
            "reason": reason,
            "limit": self.limits.limits[reason],
            "missing": self.plan.results.missing_confirmations(),
            "handed": self.plan.counts.num_started,
            "total": self.plan.counts.total,
            "confirm": self.num_confirm,
        }

    def _unfinished(self) -> list[tuple[str, int]]:
        """Return (arm, finished epochs) of each trial that has started and not ended."""
        return self.trials.epochs_trained() + self.plan.paused_epochs()
