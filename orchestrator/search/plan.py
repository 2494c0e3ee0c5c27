"""Which trials a sweep runs, in which order: pure bookkeeping, without Ray.

Every arm gets the same number of search trials, taken in turn. When an arm's search is over, its best setting is trained again on fresh
seeds, to the end and without a scheduler (method: search, then confirmation). Told again what a killed sweep had finished, a Plan goes on
where that stopped. A gate (the budget) may forbid a trial; then the search ends early and is confirmed as it stands.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from aml.errors import UserError
from orchestrator.config import Experiment
from orchestrator.search import budget
from orchestrator.search.population import Population
from orchestrator.search.space import active_params, distinct_settings, sample_config, unbundle
from orchestrator.search.study import Study
from orchestrator.search.trial_spec import TrialSpec, slugify, value_of
from orchestrator.training import check_run

CONFIRM_SEEDS = 1000

"""Confirmation seeds start so far above the search seeds: never the same."""


class Plan:
    """Hands out trials and hears how they ended."""

    def __init__(
        self,
        experiment: Experiment,
        records: list[dict] = (),
        started: list[TrialSpec] = (),
        epochs: dict[str, int] | None = None,
        decisions: dict[str, list[dict]] | None = None,
        reached: dict[str, dict] | None = None,
    ):
        """records: of finished trials; started: trials under way when a sweep was killed; epochs: of arms that train for others than asked.

        Under population-based training also decisions: of the generations that had ended, by arm; reached: the last epoch of trials under way.
        """
        search = experiment.search
        self.experiment, self.sign = experiment, 1 if search.mode == "max" else -1
        self.epochs = {arm: (epochs or {}).get(arm, experiment.train.epochs) for arm in search.arms}
        self.settings = {arm: distinct_settings(experiment, arm) for arm in search.arms}
        widest = max(len(s) for s in self.settings.values())
        self.per_arm = search.trials or widest * search.seeds.search
        self.studies = (
            {arm: Study(experiment, arm) for arm in search.arms} if search.method == "tpe" else {}
        )
        self.arms = {slugify(arm): arm for arm in search.arms}
        self.order = {
            arm: np.random.default_rng(experiment.seed).permutation(len(s))
            for arm, s in self.settings.items()
        }
        pbt = search.scheduler == "pbt"
        self.populations = (
            {
                arm: Population(experiment, arm, self.per_arm, n, (decisions or {}).get(arm, ()))
                for arm, n in self.epochs.items()
            }
            if pbt
            else {}
        )
        self.records: dict[str, dict] = {}
        self.ended = {arm: {"search": 0, "confirm": 0} for arm in search.arms}
        self.epochs_left = {
            arm: n * (self.per_arm + search.seeds.confirm) for arm, n in self.epochs.items()
        }
        """Of the trials that have not ended, by arm, were none stopped."""
        self.epochs_trained = 0
        """By the trials that have ended."""
        self.live: set[str] = set()
        known = {r["trial"] for r in records}
        self.waiting: list[TrialSpec] = []
        self.paused: dict[str, TrialSpec] = {}
        """Members of a population that wait for the others of their generation."""
        for trial in started:
            self._join(trial)
            if trial.id not in known and not self._rests(trial, (reached or {}).get(trial.id)):
                self.waiting.append(trial)
        self.handed = {arm: {"search": 0, "confirm": 0} for arm in search.arms}
        self.gate: Callable[[str, str], str] = lambda stage, arm: ""
        """(search | confirm | running, arm) -> why no such trial may start, or run on, now."""
        self.closed = ""
        """Why the search ended before its last trial."""
        self.refused = ""
        """Why a confirmation was not started, last time."""
        for record in records:
            self.finished(record)
        for trial in [*(r["trial"] for r in records), *(t.id for t in started)]:
            arm, stage, index = self.parse(trial)
            self.handed[arm][stage] = max(self.handed[arm][stage], index + 1)

    @property
    def total(self) -> int:
        return len(self.experiment.search.arms) * (
            self.per_arm + self.experiment.search.seeds.confirm
        )

    @property
    def total_epochs(self) -> int:
        """Of all trials, were none stopped."""
        return sum(self.epochs.values()) * (self.per_arm + self.experiment.search.seeds.confirm)

    @property
    def turns(self) -> int:
        """Times that a trial is started at most, were none lost."""
        a_trial = {
            arm: -(-n // self.experiment.search.pbt.interval) if self.populations else 1
            for arm, n in self.epochs.items()
        }
        return sum(
            self.per_arm * n + self.experiment.search.seeds.confirm for n in a_trial.values()
        )

    @property
    def done(self) -> bool:
        return not self.live and self.next(peek=True) is None

    @property
    def cut(self) -> str:
        """Why a sweep that is done is not whole; nothing where it is."""
        short = (
            self.started < self.total
            or self.waiting
            or self.paused
            or any(r["stopped_by"] == "budget" for r in self.records.values())
        )
        return (self.closed or self.refused) if short else ""

    @property
    def started(self) -> int:
        """Trials handed out so far."""
        return sum(sum(stages.values()) for stages in self.handed.values())

    def to_confirm(self) -> tuple[int, int]:
        """Confirmation trials not handed out yet, and their epochs."""
        left = {
            arm: self.experiment.search.seeds.confirm - stages["confirm"]
            for arm, stages in self.handed.items()
        }
        return sum(left.values()), sum(n * self.epochs[arm] for arm, n in left.items())

    def unconfirmed(self) -> dict[str, int]:
        """Confirmation trials that each arm lacks."""
        wanted = self.experiment.search.seeds.confirm
        done = {arm: 0 for arm in self.experiment.search.arms}
        for r in self.records.values():
            done[r["arm"]] += r["stage"] == "confirm" and r["state"] == "done"
        return {arm: wanted - n for arm, n in done.items() if n < wanted}

    def next(self, peek: bool = False) -> TrialSpec | None:
        """The trial to start now; None while there is nothing to start before another trial ends (or ever: see `done`)."""
        if reason := self.gate("running", ""):
            self.closed = self.closed or reason
            return None
        trial = (
            (self.waiting[0] if peek else self.waiting.pop(0))
            if self.waiting
            else self._next_search(peek) or self._next_confirmation()
        )
        if trial and not peek:
            self.live.add(trial.id)
            arm, stage, index = self.parse(trial.id)
            self.handed[arm][stage] = max(self.handed[arm][stage], index + 1)
            self._join(trial)
            if (population := self._population(trial)) is not None:
                trial = replace(
                    trial, overrides=population.settings(trial.id), until=population.until
                )
        return trial

    def pauses(self, trial: TrialSpec, epoch: dict) -> None:
        """A member of a population has finished its part of a generation."""
        self.live.discard(trial.id)
        self._rests(trial, epoch)

    def generation(self) -> tuple[str, dict] | None:
        """End a generation whose members have all come that far.   -> arm, decision (`Population.decide`), or None where there is none

        Its moves are to be made before `next` is asked again.
        """
        for arm, population in self.populations.items():
            if population.complete(self.closed != ""):
                self.waiting += [
                    self.paused.pop(trial)
                    for trial in sorted(population.scores.keys() - population.gone)
                ]
                return arm, population.decide()
        return None

    def first(self, trial: TrialSpec) -> TrialSpec:
        """The trial as it began."""
        population = self._population(trial)
        return (
            trial
            if population is None
            else replace(trial, overrides=population.starts[trial.id], until=None)
        )

    def path(self, trial_id: str) -> list:
        """How a search trial's settings changed on the way (`Trial.path`); empty where they did not."""
        arm, stage, _ = self.parse(trial_id)
        path = (
            self.populations[arm].path(trial_id) if self.populations and stage == "search" else []
        )
        return path if len(path) > 1 else []

    def resting(self) -> list[tuple[str, int]]:
        """Arm and epochs trained of each trial under way that is not live."""
        waiting = [
            (t.arm, self.populations[t.arm].begun if self._population(t) else 0)
            for t in self.waiting
        ]
        return waiting + [
            (arm, p.until)
            for arm, p in self.populations.items()
            for trial in p.scores
            if trial not in p.gone
        ]

    def finished(self, record: dict) -> None:
        """A trial has ended: done, stopped or failed."""
        self.live.discard(record["trial"])
        self.records[record["trial"]] = record
        self.ended[record["arm"]][record["stage"]] += 1
        self.epochs_left[record["arm"]] -= self.epochs[record["arm"]]
        self.epochs_trained += record["epochs"]
        if record["arm"] in self.studies and record["stage"] == "search":
            value = value_of(record, self.experiment.search.metric)
            self.studies[record["arm"]].tell(record, None if value is None else self.sign * value)
        if self.populations and record["stage"] == "search":
            population = self.populations[record["arm"]]
            population.starts.setdefault(record["trial"], record["overrides"])
            population.gone.add(record["trial"])

    def best(self, arm: str) -> dict | None:
        """The setting (overrides) of the arm with the best mean over its search seeds, among those that got furthest."""
        record = self._best_record(arm)
        return None if record is None else record["overrides"]

    def _best_record(self, arm: str) -> dict | None:
        """One of the records with that setting."""
        groups: dict[str, list[dict]] = {}
        for _, r in sorted(
            self.records.items()
        ):  # of equal ones the first by name, not the first to end
            if (
                r["arm"] == arm
                and r["stage"] == "search"
                and value_of(r, self.experiment.search.metric) is not None
            ):
                groups.setdefault(
                    json.dumps([r["overrides"], r.get("path", [])], sort_keys=True), []
                ).append(r)
        if not groups:
            return None

        def rank(records):
            furthest = max(r["epochs"] for r in records)
            values = [
                self.sign * value_of(r, self.experiment.search.metric)
                for r in records
                if r["epochs"] == furthest
            ]
            return furthest, sum(values) / len(values)

        return max(groups.values(), key=rank)[0]

    def tried(self) -> dict[str, int]:
        """Distinct settings searched, by arm."""
        seen = {arm: set() for arm in self.experiment.search.arms}
        for r in self.records.values():
            if r["stage"] == "search":
                seen[r["arm"]] |= {
                    json.dumps(overrides, sort_keys=True)
                    for _, overrides in r.get("path") or [[0, r["overrides"]]]
                }
        return {arm: len(keys) for arm, keys in seen.items()}

    def parse(self, trial_id: str) -> tuple[str, str, int]:
        """arm, stage, index out of a trial's id."""
        slug, stage, index = trial_id.rsplit("-", 2)
        return self.arms[slug], stage, int(index)

    def _next_search(self, peek: bool) -> TrialSpec | None:
        arm = min(self.experiment.search.arms, key=lambda a: self.handed[a]["search"])
        index = self.handed[arm]["search"]
        if index >= self.per_arm or self.closed:
            return None
        if reason := self.gate("search", arm):
            self.closed = "" if self.live else reason  # a trial that ends early leaves room
            return None
        overrides, seed = ({}, 0) if peek else self._propose(arm, index)
        if self.epochs[arm] != self.experiment.train.epochs:
            overrides = overrides | {"train.epochs": self.epochs[arm]}
        return TrialSpec(
            f"{slugify(arm)}-search-{index:03d}",
            arm,
            "search",
            self.experiment.seed + seed,
            overrides,
        )

    def _propose(self, arm: str, index: int) -> tuple[dict, int]:
        """Overrides and seed offset of an arm's search trial."""
        search = self.experiment.search
        if search.method == "tpe":
            return self.studies[arm].ask(f"{slugify(arm)}-search-{index:03d}"), 0
        if search.method == "random":
            seed = (
                index if self.populations else 0
            )  # members that may hold one setting must differ in something
            return active_params(
                self.experiment, arm, sample_config(search.space, [self.experiment.seed, index])
            ), seed
        settings = self.settings[arm]
        if self.per_arm < len(settings):
            return settings[self.order[arm][index]], 0
        return settings[index % len(settings)], index // len(settings)

    def _next_confirmation(self) -> TrialSpec | None:
        wanted = self.experiment.search.seeds.confirm
        for arm in sorted(
            self.experiment.search.arms, key=lambda a: self.handed[a]["confirm"]
        ):  # in turn: a budget may end it
            index = self.handed[arm]["confirm"]
            population = self.populations.get(arm)
            over = (self.closed and not (population and population.staying)) or self.ended[arm][
                "search"
            ] >= self.per_arm
            if index < wanted and over and (best := self._best_record(arm)) is not None:
                self.refused = self.gate("confirm", arm)
                if self.refused:
                    continue
                seed = self.experiment.seed + CONFIRM_SEEDS + index
                return TrialSpec(
                    f"{slugify(arm)}-confirm-{index:03d}",
                    arm,
                    "confirm",
                    seed,
                    best["overrides"],
                    best.get("path", []),
                )
        return None

    def _population(self, trial: TrialSpec) -> Population | None:
        return self.populations.get(trial.arm) if trial.stage == "search" else None

    def _join(self, trial: TrialSpec) -> None:
        if (population := self._population(trial)) is not None:
            population.starts.setdefault(trial.id, trial.overrides)

    def _rests(self, trial: TrialSpec, epoch: dict | None) -> bool:
        """Whether a trial that has come to this epoch waits for its generation, which then knows its score."""
        population = self._population(trial)
        if (
            population is None
            or epoch is None
            or not population.until <= epoch["epoch"] < population.epochs
        ):
            return False
        population.scores[trial.id] = epoch.get(self.experiment.search.metric)
        self.paused[trial.id] = trial
        return True


def check_plan(experiment: Experiment) -> None:
    """Refuse, before anything starts, a sweep any of whose corners could not train."""
    search = experiment.search
    if experiment.resources.elastic:
        raise UserError(
            "resources.min_workers is for `train`: a sweep's trials must not compete for workers; leave it out and set resources.workers"
        )
    if search.scheduler == "pbt":
        _check_populations(experiment)
    budget.check(
        search.budget,
        len(search.arms),
        experiment.train.epochs,
        budget.hourly_price(experiment.resources),
    )
    corners = {
        k: v if isinstance(v, list) else [v["low"], v["high"]] for k, v in search.space.items()
    }
    for arm in search.arms:
        for values in itertools.product(*corners.values()):
            check_run(
                experiment.for_arm(
                    arm,
                    active_params(
                        experiment, arm, unbundle(dict(zip(corners, values, strict=True)))
                    ),
                )
            )


CHANGEABLE = ("optim.lr", "optim.weight_decay")

"""Settings besides masking's that may change while a model trains."""


def _check_populations(experiment: Experiment) -> None:
    search = experiment.search
    if not experiment.resources.light:
        raise UserError(
            "search.scheduler pbt moves checkpoints between light trials; use resources.workers 1 and driver auto or light, or scheduler asha"
        )
    if search.method == "tpe":
        raise UserError(
            "search.scheduler pbt chooses settings itself after the first; use search.method random or grid with it"
        )
    for key in search.space:
        if not key.startswith("aml.") and key not in CHANGEABLE:
            raise UserError(
                f"search.space {key} cannot change while a model trains, as search.scheduler pbt would have it; search aml.*, "
                f"{' and '.join(CHANGEABLE)}, or use scheduler asha"
            )
    if search.pbt.interval >= experiment.train.epochs:
        raise UserError(
            f"search.pbt.interval is {search.pbt.interval} epochs and train.epochs {experiment.train.epochs}: no generation would end before"
        )
