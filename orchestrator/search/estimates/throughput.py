"""How fast a running sweep is, and the time and money that its remaining trials take."""

import collections
import math
import statistics
from collections.abc import Mapping

from orchestrator import config
from orchestrator.config import Experiment
from orchestrator.search import budget
from orchestrator.search.estimates import cost
from orchestrator.search.estimates.estimate import Estimate, estimate_text
from orchestrator.search.plan import Plan
from orchestrator.utils import range_text

WINDOW = 50
"""Number of latest epochs of an arm whose median is its seconds for an epoch."""

CORRECTION_FACTOR = 1.2
"""A corrected estimate is logged when it has changed by this factor since the last one."""


class ThroughputEstimator:
    """Seconds of an epoch, arm by arm, and the time the remaining trials take at that rate."""

    def __init__(
        self,
        plan: Plan,
        experiment: Experiment,
        concurrent: int,
        planned: Estimate | None = None,
    ) -> None:
        """Create an estimator that has seen no epoch.

        Args:
            plan: The epochs that are left, by arm.
            experiment: The settings of the sweep: prices and budget.
            concurrent: Trials that run at a time.
            planned: The estimate before the start; None where nothing was measured then.
        """
        self.plan = plan
        self.concurrent = concurrent
        self.planned = planned
        self.price = config.hourly_price(experiment.resources)
        self.limits = experiment.search.budget
        self.seconds_by_arm: dict[str, collections.deque[float]] = {
            arm: collections.deque(maxlen=WINDOW) for arm in plan.epochs
        }
        self.epochs_s = 0.0
        """Seconds that the epochs of ended trials took."""
        self.trials_s = 0.0
        """Seconds that ended trials took, with start-up, checkpoints and reports."""
        self.logged_hours = planned["hours"] if planned else 0.0

    def add_epoch(self, arm: str, seconds: float) -> None:
        """Take in that a trial of this arm has trained an epoch in so many seconds."""
        self.seconds_by_arm[arm].append(seconds)

    def add_trial(self, record: dict) -> None:
        """Take in the ledger record of a trial: the time beside its epochs counts, too."""
        self.epochs_s += sum(epoch["time/epoch_s"] for epoch in record["history"])
        self.trials_s += record["seconds"]

    def replay(self, record: dict) -> None:
        """Take in a trial of an earlier attempt, from its first epoch to its end."""
        for epoch in record["history"]:
            self.add_epoch(record["arm"], epoch["time/epoch_s"])
        self.add_trial(record)

    @property
    def epoch_s(self) -> float:
        """Median seconds of the latest epochs of all arms; 0 before the first."""
        seconds = [s for window in self.seconds_by_arm.values() for s in window]
        return statistics.median(seconds) if seconds else 0.0

    @property
    def overhead(self) -> float:
        """Seconds of trials divided by the seconds of their epochs; at least 1."""
        return max(1.0, self.trials_s / self.epochs_s) if self.epochs_s else 1.0

    def seconds_left(self, in_progress: Mapping[str, int]) -> float:
        """Return the seconds until every trial has trained to its end, one after another.

        Args:
            in_progress: By arm, the epochs that its unfinished trials have trained.
        """
        mean_s = self.epoch_s
        total = 0.0
        for arm, epochs in self.plan.results.epochs_left.items():
            window = self.seconds_by_arm[arm]
            epochs_left = max(0, epochs - in_progress.get(arm, 0))
            total += epochs_left * (statistics.median(window) if window else mean_s)
        return self.overhead * total

    def left_text(self, in_progress: Mapping[str, int]) -> str:
        """Return time and money left as a range; "" before the first epoch.

        The range narrows with each epoch, and its lower end is what ASHA leaves of the search.
        """
        if not self.epoch_s:
            return ""
        low, high = self.range_left(in_progress)
        price = f", cost <= {budget.money(high / 3600 * self.price)}" if self.price else ""
        return f"{range_text(low / self.concurrent, high / self.concurrent)} left{price}"

    def range_left(self, in_progress: Mapping[str, int]) -> tuple[float, float]:
        """Return the fewest and most seconds left, as `seconds_left` counts them.

        The margin on both sides is 1 / sqrt(1 + epochs seen), as the error of a mean falls.
        """
        seconds = self.seconds_left(in_progress)
        seen = sum(map(len, self.seconds_by_arm.values()))
        margin = 1 / math.sqrt(1 + seen)
        return seconds * cost.least_share(self.plan) * (1 - margin), seconds * (1 + margin)

    def correction(self, in_progress: Mapping[str, int], spent: dict) -> str:
        """Return the estimate of the whole sweep if it has changed since it was logged; else "".

        Args:
            in_progress: By arm, the epochs that its unfinished trials have trained.
            spent: {"seconds" of wall clock, "trial_seconds" of all trials together} so far.
        """
        if not self.epoch_s:
            return ""
        left_s = self.seconds_left(in_progress)
        low_s, high_s = self.range_left(in_progress)
        limit = math.inf if self.limits.hours is None else self.limits.hours
        least, hours, most = (
            min((spent["seconds"] + seconds / self.concurrent) / 3600, limit)
            for seconds in (low_s, left_s, high_s)
        )
        price = (spent["trial_seconds"] + left_s) / 3600 * self.price
        if self.limits.cost is not None:
            price = min(price, self.limits.cost)
        last = self.logged_hours
        if last and 1 / CORRECTION_FACTOR < hours / last < CORRECTION_FACTOR:
            return ""
        self.logged_hours = hours
        before = f"; planned were {estimate_text(self.planned)}" if self.planned else ""
        now: Estimate = {
            "epoch_s": self.epoch_s,
            "hours": hours,
            "cost": price,
            "hours_range": [least, most],
        }
        return f"estimate: in all {estimate_text(now)}, corrected by the epochs so far{before}"
