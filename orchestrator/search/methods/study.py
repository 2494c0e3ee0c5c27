"""A sampler of Optuna for one arm: TPE, a Gaussian process, NSGA-II or CMA-ES."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.config import Experiment, OptunaMethod, active_params
from orchestrator.search.methods.space import optuna_distribution, sample_config

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

TPE_BEST = 25
"""Number of best trials that TPE reads. Its good trials are at most 25, Optuna's default."""

TPE_KEPT = 300
"""Number of latest trials that TPE reads: it reads every trial it has for each suggestion."""

REPLAYED = ("nsga2", "cmaes")
"""Samplers that keep generations in the trials they were asked for."""


class Study:
    """One arm's Optuna study over the dimensions the arm has.

    A suggestion depends on the seed, its index, the results so far and the settings of the trials
    under way, which Optuna counts as bad ones (`constant_liar`): otherwise trials that run side by
    side get nearly the same settings. It does not depend on how often the sweep was restarted.
    """

    reads_stopped = False
    """Whether it is told the score of a trial that the arm's scheduler stopped."""

    def __init__(self, experiment: Experiment, arm: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        searched = experiment.search.space
        active = active_params(experiment.aml.rate, arm, searched)
        self.space = {k: optuna_distribution(v) for k, v in searched.items() if k in active}
        self.seed = experiment.seed
        method = experiment.search.method
        self.method = method if isinstance(method, OptunaMethod) else OptunaMethod()
        maximize = optuna.study.StudyDirection.MAXIMIZE
        self.directions = [maximize] * len(experiment.search.objectives)
        self.study = optuna.create_study(directions=self.directions)
        self.told = 0
        """Number of trials the present study was told of."""
        self.running: dict[str, int] = {}
        """Numbers in the present study of the trials under way, by their ids."""

    def ask(self, trial_id: str, index: int) -> dict:
        """Return the settings of a new trial.

        Args:
            trial_id: Its id.
            index: Its index among the arm's search trials.
        """
        self.study.sampler = self._sampler(index)
        trial = self.study.ask(self.space)
        self.running[trial_id] = trial.number
        return dict(trial.params)

    def join(self, trial_id: str, overrides: dict) -> None:
        """Take in a trial that an earlier attempt asked for and that has not ended.

        Args:
            trial_id: Its id.
            overrides: Its settings.
        """
        from optuna.trial import TrialState

        if trial_id not in self.running:
            self.running[trial_id] = self._add(overrides, state=TrialState.RUNNING)

    def tell(self, record: dict, values: Sequence[float] | None) -> None:
        """Tell the study how a trial ended, also one that this study was not asked for.

        Args:
            record: The trial's record in the ledger.
            values: The values to maximise; None where the trial lacks one.
        """
        from optuna.trial import TrialState

        number = self.running.pop(record["trial"], None)
        if number is not None:
            state = TrialState.COMPLETE if values is not None else TrialState.FAIL
            self.study.tell(number, values, state=state)
        elif values is not None:
            self._add(record["overrides"], values=values)
        self.told += 1
        if self.told >= 2 * TPE_KEPT:
            self._thin()

    def _sampler(self, index: int) -> "BaseSampler":
        """Return the sampler of the trial of this index, seeded by it."""
        from optuna import samplers

        seed = int(np.random.default_rng([self.seed, index]).integers(2**32))
        startup = self.method.startup
        if self.method.sampler == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=startup)
        if self.method.sampler == "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=max(2, startup))
        if self.method.sampler == "cmaes":
            return samplers.CmaEsSampler(
                seed=seed, n_startup_trials=max(1, startup), warn_independent_sampling=False
            )
        return samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)

    def _add(self, overrides: dict, **ended) -> int:
        """Add a trial of these settings to the study and return its number there."""
        from optuna.trial import create_trial

        params = {k: v for k, v in overrides.items() if k in self.space}
        self.study.add_trial(create_trial(params=params, distributions=self.space, **ended))
        return len(self.study.get_trials(deepcopy=False)) - 1

    def _thin(self) -> None:
        """Replace the study by one of the best, the latest, and the running trials."""
        import optuna
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if len(self.directions) > 1:
            front = {trial.number for trial in self.study.best_trials}
            best = [trial for trial in done[:-TPE_KEPT] if trial.number in front][-TPE_BEST:]
        else:
            best = sorted(done[:-TPE_KEPT], key=lambda trial: -(trial.value or 0.0))[:TPE_BEST]
        running = {trial_id: trials[number] for trial_id, number in self.running.items()}
        kept = [*best, *done[-TPE_KEPT:]]
        self.study = optuna.create_study(directions=self.directions)
        self.study.add_trials([*kept, *running.values()])
        self.running = {trial_id: len(kept) + i for i, trial_id in enumerate(running)}
        self.told = len(kept)


class ReplayedStudy(Study):
    """One arm's study by a sampler that keeps its state in its own trials: NSGA-II or CMA-ES.

    For each suggestion a new study is asked for all earlier trials in the order of their indices,
    given their settings, and told the results of those that have ended. So a suggestion depends on
    the seed, its index, and the settings and results so far, and not on restarts.
    """

    reads_stopped = True
    """A generation counts trials with a score only."""

    def __init__(self, experiment: Experiment, arm: str) -> None:
        super().__init__(experiment, arm)
        searched = experiment.search.space
        self.searched = {key: searched[key] for key in self.space}
        self.settings: dict[int, dict] = {}
        """Settings of trials by their indices."""
        self.ended: dict[int, Sequence[float] | None] = {}
        """Values of the trials that have ended; None where one is lacking."""

    def ask(self, trial_id: str, index: int) -> dict:
        """Return the settings of a new trial; see Study.ask."""
        import optuna
        from optuna.trial import TrialState

        self.study = optuna.create_study(directions=self.directions)
        for earlier in sorted(self.settings):
            self.study.enqueue_trial(self.settings[earlier])
            trial, _ = self._ask(earlier)
            if earlier in self.ended:
                values = self.ended[earlier]
                state = TrialState.FAIL if values is None else TrialState.COMPLETE
                self.study.tell(trial, values, state=state)
        drawn = sample_config(self.searched, [self.seed, index])
        self.settings[index] = drawn | self._ask(index)[1]
        return dict(self.settings[index])

    def _ask(self, index: int) -> "tuple[Trial, dict]":
        """Return a new trial of the study, and what the sampler proposes for it.

        The sampler notes the trial's generation, also where its settings are given. Where it
        proposes nothing it would draw from a generator that is seeded as the one of its decisions,
        so that a value would depend on why it is drawn: `ask` draws it instead.
        """
        self.study.sampler = self._sampler(index)
        fixed = self.space if index in self.settings else None
        trial = self.study.ask(fixed)
        return trial, dict(trial.relative_params) if self.space else {}

    def join(self, trial_id: str, overrides: dict) -> None:
        """Take in a trial that an earlier attempt asked for and that has not ended."""
        params = {k: v for k, v in overrides.items() if k in self.space}
        self.settings.setdefault(_index(trial_id), params)

    def tell(self, record: dict, values: Sequence[float] | None) -> None:
        """Take in how a trial ended; see Study.tell."""
        self.join(record["trial"], record["overrides"])
        self.ended[_index(record["trial"])] = values


def _index(trial_id: str) -> int:
    return int(trial_id.rsplit("-", 1)[1])
