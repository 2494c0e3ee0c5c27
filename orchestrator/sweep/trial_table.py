"""State that searcher, scheduler and callbacks share: the running trials, and a request to stop."""

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from aml.errors import RunError
from orchestrator import utils
from orchestrator.config import Experiment
from orchestrator.search import TrialSpec

logger = logging.getLogger(__name__)


class NotPickled:
    """A plug-in of Tune of which there is one.

    Tune copies its plug-ins and pickles them into its own snapshot, which nobody reads: the ledger
    is the state of a sweep.
    """

    def __deepcopy__(self, memo: dict) -> "NotPickled":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (type(self).__name__,)


@dataclass
class RunningTrial:
    """A trial that was handed to Tune and has neither ended nor paused."""

    spec: TrialSpec
    experiment: Experiment
    """The trial's own settings; building and checking them takes milliseconds."""
    summary_row: dict
    """The keys by which ledger and MLflow identify the trial."""
    history: dict[int, dict] = field(default_factory=dict)
    """Metrics by epoch."""
    started_at: float = 0
    """Unix time of the start; 0: not started yet."""
    last_report_time: float = math.inf
    """time.monotonic() of the last report; infinite: not started yet."""
    notes_logged: int = 0
    """Number of its process's notes that were logged."""

    @property
    def id(self) -> str:
        return self.spec.id

    def silent_s(self) -> float:
        """Return the seconds since the last report; negative infinity before the start."""
        return time.monotonic() - self.last_report_time

    def add_epoch(self, epoch: dict) -> None:
        """Add an epoch's metrics."""
        self.history[epoch["epoch"]] = epoch


class TrialTable:
    """The running trials of this attempt: only owner of their times and histories."""

    def __init__(self) -> None:
        self.running: dict[str, RunningTrial] = {}
        """By trial id."""
        self._earlier_s: dict[str, float] = {}
        """Seconds that unfinished trials took in their earlier PBT segments."""
        self._ended_s = 0.0
        """Seconds of ended segments of this attempt."""
        self._to_release: list[str] = []

    def get(self, trial_id: str) -> RunningTrial | None:
        """Return the running trial; None where it does not run."""
        return self.running.get(trial_id)

    def add(
        self, spec: TrialSpec, experiment: Experiment, history: Iterable[dict] = ()
    ) -> RunningTrial:
        """Add a trial that was handed to Tune and has not started yet.

        Args:
            spec: The trial.
            experiment: Its own settings.
            history: Metrics of the epochs that are known already.
        """
        known = {epoch["epoch"]: epoch for epoch in history}
        trial = RunningTrial(spec, experiment, spec.summary_row(experiment), known)
        self.running[spec.id] = trial
        return trial

    def start(self, trial_id: str) -> None:
        """Note that a trial starts, or starts again after its process was lost."""
        trial = self.running[trial_id]
        trial.started_at = trial.started_at or time.time()
        trial.last_report_time = time.monotonic()

    def forgive_silence(self) -> None:
        """Begin every started trial's timeout anew, after the driver could not hear reports."""
        for trial in self.running.values():
            trial.last_report_time = max(trial.last_report_time, time.monotonic())

    def pause(self, trial_id: str) -> RunningTrial:
        """Remove a trial that will continue in another segment."""
        seconds = self.seconds(trial_id)
        self._ended_s += seconds - self._earlier_s.get(trial_id, 0.0)
        self._earlier_s[trial_id] = seconds
        return self.running.pop(trial_id)

    def remove(self, trial_id: str) -> tuple[RunningTrial, float]:
        """Remove a trial that has ended; return it and the seconds it took."""
        seconds = round(self.seconds(trial_id), 2)
        self._ended_s += seconds - self._earlier_s.pop(trial_id, 0.0)
        return self.running.pop(trial_id), seconds

    def seconds(self, trial_id: str) -> float:
        """Return wall-clock seconds a running trial has used, including earlier PBT segments."""
        started_at = self.running[trial_id].started_at
        segment_s = time.time() - started_at if started_at else 0.0
        return self._earlier_s.get(trial_id, 0.0) + segment_s

    def attempt_seconds(self) -> float:
        """Return the seconds that all trials of this attempt have taken together."""
        now = time.time()
        started = [t.started_at for t in self.running.values() if t.started_at]
        return self._ended_s + sum(now - started_at for started_at in started)

    def epochs_trained(self) -> list[tuple[str, int]]:
        """Return (arm, finished epochs) of each running trial."""
        return [(t.spec.arm, max(t.history, default=0)) for t in self.running.values()]

    def started_ids(self) -> set[str]:
        """Return the ids of the trials that have started. Other threads may call this."""
        return {trial.id for trial in list(self.running.values()) if trial.started_at}

    def release_placement_group(self, trial_id: str) -> None:
        """Note a distributed trial that was ended from outside and may still hold its workers."""
        self._to_release.append(trial_id)

    def take_released(self) -> list[str]:
        """Return the trials whose placement groups the next trial removes; each is given once."""
        released = self._to_release
        self._to_release = []
        return released


class StopRequest:
    """A request to end the sweep early; the same command continues it."""

    def __init__(self) -> None:
        self.is_requested = False
        """No trial is started any more, and running ones end at their next epoch."""
        self.error: RunError | None = None
        """The error that kept a decision from being written. `fit` raises it: raised where Tune
        calls, it would come out as a traceback."""
        self._is_announced = False

    def request(self) -> None:
        """Ask the sweep to end. Safe in a signal handler: it logs nothing."""
        self.is_requested = True

    def request_without_announcement(self) -> None:
        """Ask the sweep to end where the caller logs why."""
        self._is_announced = True
        self.is_requested = True

    def fail(self, error: RunError) -> None:
        """Ask the sweep to end because something could not be written; the first error counts."""
        self.error = self.error or error
        self.request_without_announcement()

    def announce(self) -> None:
        """Log once that the sweep was interrupted."""
        if self.is_requested and not self._is_announced:
            self._is_announced = True
            logger.info(utils.INTERRUPTED)
