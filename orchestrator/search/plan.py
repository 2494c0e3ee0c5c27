"""The plan of a sweep: its trials and their order. Bookkeeping without Ray.

Every arm gets the same number of search trials, taken in turn. When an arm's search is over, its
best setting is trained again on fresh seeds, to the end and without a scheduler. A Plan that is
told what a killed sweep had finished continues where that sweep stopped. The budget may forbid a
trial; then the search ends early and its best settings so far are confirmed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

from orchestrator.config import Experiment
from orchestrator.search.results import TrialResults
from orchestrator.search.stages import SearchStage, TrialCounts, confirmation_spec
from orchestrator.search.trial_spec import TrialSpec

NextKind = Literal["resume", "search", "confirm", ""]
"""The kind of trial that could start now, as `Plan.peek` returns it; "" for none."""


class _Choice(NamedTuple):
    """The next trial, before anything is changed for it."""

    kind: NextKind
    arm: str
    search_end_reason: str
    confirm_skip_reason: str


class Plan:
    """Suggest trials and take in how they ended.

    It is longer than other classes: the order of resumed, search and confirmation trials is one
    state machine. Proposals, counts and results are classes of their own.

    `peek`, `done` and all other properties change nothing; `suggest`, `pause_trial`,
    `finish_generation`, `on_trial_complete` and `close` do.
    """

    def __init__(
        self,
        experiment: Experiment,
        records: Iterable[dict] = (),
        unfinished: Iterable[TrialSpec] = (),
        epochs: Mapping[str, int] | None = None,
        decisions: Mapping[str, list[dict]] | None = None,
        last_epochs: Mapping[str, dict] | None = None,
    ) -> None:
        """Create the plan of a new sweep or of one that is continued.

        Args:
            experiment: The settings of the sweep.
            records: Ledger records of the trials that have ended.
            unfinished: Trials that an earlier attempt started, in the order of their start.
            epochs: Epochs of the arms that train for others than train.epochs.
            decisions: PBT: the decisions of the generations that have ended, by arm.
            last_epochs: PBT: the metrics of the last epoch of trials that have not ended.
        """
        records = list(records)
        unfinished = list(unfinished)
        self.search = SearchStage(experiment, epochs, decisions)
        self.results = TrialResults(
            experiment, self.search.epochs, self.search.per_arm, self.search.given_configs()
        )
        self.running: set[str] = set()
        """Trials that were suggested and have neither ended nor paused."""
        self.waiting: list[TrialSpec] = []
        """Trials to continue before any new one."""
        self.paused: dict[str, TrialSpec] = {}
        """Members of a population that wait for the others of their generation."""
        self.held: dict[str, tuple[TrialSpec, int]] = {}
        """Trials that their arm's scheduler has paused, and their finished epochs."""
        self.epochs_done: dict[str, int] = {}
        """Finished epochs of trials that were held and wait to go on."""
        self.counts = TrialCounts(self.search)
        self.budget_check: Callable[[str, str], str] = lambda stage, arm: ""
        """Called with search, confirm or running, and the arm (running: ""). Returns why no such
        trial may start, or run on, now; "" where it may."""
        self.search_end_reason = ""
        """The limit that ended the search before its last trial."""
        self.confirm_skip_reason = ""
        """The limit that kept the last confirmation trial that was due from starting."""
        ended = {record["trial"] for record in records}
        for spec in unfinished:
            self.search.join(spec)
            last_epoch = (last_epochs or {}).get(spec.id)
            if spec.id not in ended and not self._pause_member(spec, last_epoch):
                self.waiting.append(spec)
        for record in records:
            self.on_trial_complete(record)
        for trial_id in [*(r["trial"] for r in records), *(spec.id for spec in unfinished)]:
            self.counts.add(trial_id)

    @property
    def experiment(self) -> Experiment:
        return self.search.experiment

    @property
    def arms(self) -> list[str]:
        return self.experiment.search.arms

    @property
    def epochs(self) -> dict[str, int]:
        """Epochs of a trial, by arm."""
        return self.search.epochs

    @property
    def done(self) -> bool:
        """True when no trial runs and none is left to start."""
        return not self.running and not self.peek()

    @property
    def incomplete_reason(self) -> str:
        """The limit that made a finished sweep incomplete, or "". Call `close` before."""
        records = self.results.records.values()
        is_incomplete = (
            self.counts.num_started < self.counts.total
            or self.waiting
            or self.paused
            or self.held
            or any(record["stopped_by"] == "budget" for record in records)
        )
        return (self.search_end_reason or self.confirm_skip_reason) if is_incomplete else ""

    def paused_epochs(self) -> list[tuple[str, int]]:
        """Return (arm, finished epochs) of each unfinished trial that does not run."""
        found = []
        for spec in self.waiting:
            population = self.search.population_of(spec)
            done = self.epochs_done.get(spec.id, 0)
            found.append((spec.arm, population.generation_start if population else done))
        found += [(spec.arm, epochs) for spec, epochs in self.held.values()]
        for arm, population in self.search.populations.items():
            paused = population.scores.keys() - population.terminated
            found += [(arm, population.generation_end)] * len(paused)
        return found

    def peek(self) -> NextKind:
        """Return the kind of trial that could start now; "" for none. Changes nothing."""
        return self._choose().kind

    def suggest(self) -> TrialSpec | None:
        """Return the trial to start now.

        None: nothing can start before another trial ends, or ever (see `done`).
        """
        choice = self._choose()
        self._store_reasons(choice)
        if not choice.kind:
            return None
        if choice.kind == "resume" and not self.waiting:
            self.resume_trial(next(iter(self.held)))
        spec = self.waiting.pop(0) if choice.kind == "resume" else self._new_trial(choice)
        self.running.add(spec.id)
        self.counts.add(spec.id)
        self.search.join(spec)
        if (population := self.search.population_of(spec)) is not None:
            config = population.config(spec.id)
            spec = replace(spec, overrides=config, pause_at_epoch=population.generation_end)
        return spec

    def close(self) -> None:
        """Store why nothing further starts. Call when no trial runs any more."""
        self._store_reasons(self._choose())

    def pause_trial(self, spec: TrialSpec, epoch: dict) -> None:
        """Take in that a member of a population has finished its part of a generation."""
        self.running.discard(spec.id)
        self._pause_member(spec, epoch)

    def hold_trial(self, spec: TrialSpec, epochs: int) -> None:
        """Take in that its arm's scheduler has paused a trial after so many epochs."""
        self.running.discard(spec.id)
        self.waiting = [other for other in self.waiting if other.id != spec.id]
        self.held[spec.id] = spec, epochs

    def resume_trial(self, trial_id: str) -> None:
        """Let a trial go on that its arm's scheduler had paused."""
        if trial_id in self.held:
            spec, self.epochs_done[trial_id] = self.held.pop(trial_id)
            self.waiting.append(spec)

    def finish_generation(self) -> tuple[str, dict] | None:
        """End a generation whose members have all come to its end.

        The caller makes the exploits before it calls `suggest` again.

        Returns:
            Arm and decision (`Population.decide`); None where no generation is complete.
        """
        for arm, population in self.search.populations.items():
            if population.is_complete(search_ended=self.search_end_reason != ""):
                members = sorted(population.scores.keys() - population.terminated)
                self.waiting += [self.paused.pop(member) for member in members]
                return arm, population.decide()
        return None

    def on_trial_complete(self, record: dict) -> None:
        """Take in the ledger record of a trial that has ended: done, stopped or failed."""
        self.running.discard(record["trial"])
        self.held.pop(record["trial"], None)
        self.results.add(record)
        if record["stage"] == "search":
            self.search.on_trial_complete(record, self.results.gains(record))

    def initial_spec(self, spec: TrialSpec) -> TrialSpec:
        """Return the trial as it began; the same object where its settings cannot change."""
        population = self.search.population_of(spec)
        if population is None:
            return spec
        return replace(spec, overrides=population.initial_configs[spec.id], pause_at_epoch=None)

    def config_history(self, trial_id: str) -> list[list]:
        """Return how a search trial's settings changed on the way; [] where they did not."""
        arm, stage, _ = self.counts.parse(trial_id)
        if stage != "search" or arm not in self.search.populations:
            return []
        history = self.search.populations[arm].config_history(trial_id)
        return history if len(history) > 1 else []

    def _choose(self) -> _Choice:
        """Choose the next trial without changing anything."""
        search_end = self.search_end_reason
        confirm_skip = self.confirm_skip_reason
        if reason := self.budget_check("running", ""):
            return _Choice("", "", search_end or reason, confirm_skip)
        if self.waiting:
            return _Choice("resume", self.waiting[0].arm, search_end, confirm_skip)
        arm = min(self.arms, key=lambda a: self.counts.num_suggested[a]["search"])
        if not search_end and self.counts.num_suggested[arm]["search"] < self.search.per_arm:
            reason = self.budget_check("search", arm)
            if not reason:
                return _Choice("search", arm, search_end, confirm_skip)
            if not self.running:  # a running trial may end early and leave room
                search_end = reason
        # In turn, since a budget may end the confirmation before its last trial.
        for arm in sorted(self.arms, key=lambda a: self.counts.num_suggested[a]["confirm"]):
            if self._is_confirmation_due(arm, search_end):
                confirm_skip = self.budget_check("confirm", arm)
                if not confirm_skip:
                    return _Choice("confirm", arm, search_end, confirm_skip)
        if self.held and not self.running:  # the scheduler waits for a trial that does not come
            spec, _ = next(iter(self.held.values()))
            return _Choice("resume", spec.arm, search_end, confirm_skip)
        return _Choice("", "", search_end, confirm_skip)

    def _is_confirmation_due(self, arm: str, search_end_reason: str) -> bool:
        if self.counts.num_suggested[arm]["confirm"] >= self.experiment.search.seeds.confirm:
            return False
        population = self.search.populations.get(arm)
        has_active_members = population is not None and bool(population.active)
        is_cut_short = bool(search_end_reason) and not has_active_members
        is_over = is_cut_short or self.results.num_ended[arm]["search"] >= self.search.per_arm
        return is_over and self.results.best_record(arm) is not None

    def _store_reasons(self, choice: _Choice) -> None:
        self.search_end_reason = choice.search_end_reason
        self.confirm_skip_reason = choice.confirm_skip_reason

    def _new_trial(self, choice: _Choice) -> TrialSpec:
        index = self.counts.num_suggested[choice.arm][choice.kind]
        if choice.kind == "search":
            return self.search.propose(choice.arm, index)
        best = self.results.best_record(choice.arm)
        assert best is not None  # _is_confirmation_due has found one
        return confirmation_spec(self.experiment, choice.arm, index, best)

    def _pause_member(self, spec: TrialSpec, epoch: dict | None) -> bool:
        """Pause a trial that has come to the end of its generation, which then has its score.

        Returns:
            Whether the trial waits for its generation.
        """
        population = self.search.population_of(spec)
        if population is None or epoch is None:
            return False
        if not population.generation_end <= epoch["epoch"] < population.epochs:
            return False
        population.scores[spec.id] = epoch.get(self.experiment.search.objective.metric)
        self.paused[spec.id] = spec
        return True
