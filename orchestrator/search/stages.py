"""The two stages of an arm, search and confirmation, and the number of trials in each."""

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.config import PACKAGES, Experiment, OptunaMethod, PbtScheduler, active_params
from orchestrator.search.methods.space import distinct_settings, sample_config
from orchestrator.search.methods.study import REPLAYED, ReplayedStudy, Study
from orchestrator.search.methods.tune_study import TuneStudy
from orchestrator.search.populations.population import Population
from orchestrator.search.trial_spec import TrialSpec, slugify, trial_id

CONFIRM_SEEDS = 1000
"""Confirmation seeds start this far above the search seeds, so that the two never coincide."""


class SearchStage:
    """Propose every arm's search trials: of a grid, at random, or by a study of the results."""

    def __init__(
        self,
        experiment: Experiment,
        epochs: Mapping[str, int] | None = None,
        decisions: Mapping[str, list[dict]] | None = None,
    ) -> None:
        """Create the stage.

        Args:
            experiment: The settings of the sweep.
            epochs: Epochs of the arms that train for others than train.epochs.
            decisions: Under population-based training, the decisions of earlier generations by arm.
        """
        search = experiment.search
        self.experiment = experiment
        self.epochs = {arm: (epochs or {}).get(arm, experiment.train.epochs) for arm in search.arms}
        """Epochs of a trial, by arm."""
        self.settings = {arm: distinct_settings(experiment, arm) for arm in search.arms}
        """The grid of each arm."""
        largest_grid = max(len(settings) for settings in self.settings.values())
        every_setting = largest_grid * search.seeds.search
        self.per_arm: int = every_setting if search.trials is None else search.trials
        """Search trials of an arm; 0 confirms the one setting of each."""
        self.order = {
            arm: np.random.default_rng(experiment.seed).permutation(len(settings))
            for arm, settings in self.settings.items()
        }
        """The order in which an arm tries its grid where it cannot try all of it."""
        self.studies: dict[str, Study | TuneStudy] = {}
        if search.method.name not in ("grid", "random"):
            study = _kind_of_study(search.method)
            self.studies = {arm: study(experiment, arm) for arm in search.arms}
        self.populations: dict[str, Population] = {}
        if search.scheduler.name == "pbt":
            self.populations = {
                arm: Population(experiment, arm, self.per_arm, n, (decisions or {}).get(arm, ()))
                for arm, n in self.epochs.items()
            }

    def given_configs(self) -> dict[str, dict]:
        """Return the overrides of each arm's one setting where nothing is searched, else {}."""
        if self.per_arm:
            return {}
        return {arm: self._with_epochs(arm, one) for arm, (one, *_) in self.settings.items()}

    def _with_epochs(self, arm: str, overrides: dict) -> dict:
        if self.epochs[arm] == self.experiment.train.epochs:
            return overrides
        return overrides | {"train.epochs": self.epochs[arm]}

    def propose(self, arm: str, index: int) -> TrialSpec:
        """Return the arm's search trial of this index."""
        overrides, seed_offset = self._propose_config(arm, index)
        overrides = self._with_epochs(arm, overrides)
        seed = self.experiment.seed + seed_offset
        return TrialSpec(trial_id(arm, "search", index), arm, "search", seed, overrides)

    def _propose_config(self, arm: str, index: int) -> tuple[dict, int]:
        """Return overrides and seed offset of an arm's search trial."""
        search = self.experiment.search
        if self.studies:
            return self.studies[arm].ask(trial_id(arm, "search", index), index), 0
        if search.method.name == "random":
            sample = sample_config(search.space, [self.experiment.seed, index])
            config = active_params(self.experiment.aml.rate, arm, sample)
            # Members of a population may hold equal settings; they must differ in their seed.
            return config, index if self.populations else 0
        settings = self.settings[arm]
        if self.per_arm < len(settings):
            return settings[self.order[arm][index]], 0
        return settings[index % len(settings)], index // len(settings)

    def population_of(self, spec: TrialSpec) -> Population | None:
        """Return the population that the trial is a member of; None where it is of none."""
        return self.populations.get(spec.arm) if spec.stage == "search" else None

    def join(self, spec: TrialSpec) -> None:
        """Add a search trial to its arm's study or population, where it has one."""
        if spec.stage == "search" and (study := self.studies.get(spec.arm)):
            study.join(spec.id, spec.overrides)
        if (population := self.population_of(spec)) is not None:
            population.initial_configs.setdefault(spec.id, spec.overrides)

    def on_trial_complete(self, record: dict, gains: Sequence[float] | None) -> None:
        """Tell the arm's study or population that a search trial has ended.

        A study whose method models scores is not told that of a trial that the arm's scheduler
        has stopped. It is of an earlier epoch than the others: it says little of the setting, and
        a model would take it for a bad one. Trials that a limit of time or budget ends are told:
        where there is one, there may be no others.

        Args:
            record: The trial's ledger record.
            gains: Its last metrics, more is better; None where it lacks one.
        """
        arm = record["arm"]
        if arm in self.studies:
            study = self.studies[arm]
            is_cut = record.get("stopped_by") == self.experiment.search.scheduler.name
            study.tell(record, None if is_cut and not study.reads_stopped else gains)
        if population := self.populations.get(arm):
            population.initial_configs.setdefault(record["trial"], record["overrides"])
            population.terminated.add(record["trial"])

    def num_segments(self, arm: str) -> int:
        """Return how often a search trial of the arm is started at most, if no process is lost."""
        scheduler = self.experiment.search.scheduler
        if scheduler.name == "hyperband":  # it may pause a trial at any epoch
            return self.epochs[arm]
        if not isinstance(scheduler, PbtScheduler):
            return 1
        return -(-self.epochs[arm] // scheduler.interval)


def _kind_of_study(method: object) -> type[Study] | type[TuneStudy]:
    """Return the class of the studies that a search method has."""
    if getattr(method, "name", "") in PACKAGES:
        return TuneStudy
    is_replayed = isinstance(method, OptunaMethod) and method.sampler in REPLAYED
    return ReplayedStudy if is_replayed else Study


def confirmation_spec(experiment: Experiment, arm: str, index: int, best: dict) -> TrialSpec:
    """Return a confirmation trial: the best setting on a seed that was never searched.

    Args:
        experiment: The settings of the sweep.
        arm: The arm.
        index: The index of the trial among the arm's confirmation trials.
        best: A ledger record of the arm's best setting.
    """
    seed = experiment.seed + CONFIRM_SEEDS + index
    name = trial_id(arm, "confirm", index)
    history = best.get("path", [])
    return TrialSpec(name, arm, "confirm", seed, best["overrides"], history)


class TrialCounts:
    """The numbers of trials: planned, and suggested so far."""

    def __init__(self, search: SearchStage) -> None:
        self.search = search
        self.arms = search.experiment.search.arms
        self.num_confirm = search.experiment.search.seeds.confirm
        """Confirmation trials of an arm."""
        self.num_suggested = {arm: {"search": 0, "confirm": 0} for arm in self.arms}
        """Trials suggested so far, by arm and stage."""

    def add(self, trial_id: str) -> None:
        """Count a trial as suggested; its index counts those before it, too."""
        arm, stage, index = self.parse(trial_id)
        self.num_suggested[arm][stage] = max(self.num_suggested[arm][stage], index + 1)

    def parse(self, trial_id: str) -> tuple[str, str, int]:
        """Return arm, stage and index of a trial's id."""
        slug, stage, index = trial_id.rsplit("-", 2)
        (arm,) = [arm for arm in self.arms if slugify(arm) == slug]
        return arm, stage, int(index)

    @property
    def total(self) -> int:
        """Trials of the whole plan."""
        return len(self.arms) * (self.search.per_arm + self.num_confirm)

    @property
    def total_epochs(self) -> int:
        """Epochs of all trials, if none is stopped."""
        return sum(self.search.epochs.values()) * (self.search.per_arm + self.num_confirm)

    @property
    def num_segments(self) -> int:
        """The largest number of trial starts, if no process is lost."""
        per_arm = self.search.per_arm
        segments = sum(per_arm * self.search.num_segments(arm) for arm in self.arms)
        return segments + len(self.arms) * self.num_confirm

    @property
    def num_started(self) -> int:
        """Trials suggested so far."""
        return sum(sum(stages.values()) for stages in self.num_suggested.values())

    def remaining_confirmations(self) -> tuple[int, int]:
        """Return the number of confirmation trials not suggested yet, and of their epochs."""
        left = {
            arm: self.num_confirm - stages["confirm"] for arm, stages in self.num_suggested.items()
        }
        return sum(left.values()), sum(n * self.search.epochs[arm] for arm, n in left.items())
