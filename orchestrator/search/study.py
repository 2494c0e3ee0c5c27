"""Optuna's TPE sampler for one arm."""

from orchestrator.config import Experiment, active_params
from orchestrator.search.space import optuna_distribution

TPE_BEST = 25
"""Number of best trials that TPE reads. Its good trials are at most 25, Optuna's default."""

TPE_KEPT = 300
"""Number of latest trials that TPE reads: it reads every trial it has for each suggestion."""


class Study:
    """One arm's Optuna study: TPE over the dimensions the arm has."""

    def __init__(self, experiment: Experiment, arm: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        searched = experiment.search.space
        active = active_params(experiment.aml.rate, arm, searched)
        self.space = {k: optuna_distribution(v) for k, v in searched.items() if k in active}
        self.sampler = optuna.samplers.TPESampler(seed=experiment.seed, n_startup_trials=4)
        self.study = optuna.create_study(direction="maximize", sampler=self.sampler)
        self.told = 0
        """Number of trials the present study was told of."""
        self.asked: dict[str, optuna.Trial] = {}

    def ask(self, trial_id: str) -> dict:
        """Return the settings of a new trial."""
        trial = self.study.ask(self.space)
        self.asked[trial_id] = trial
        return dict(trial.params)

    def tell(self, record: dict, value: float | None) -> None:
        """Tell the study how a trial ended, also one that this study was not asked for.

        Args:
            record: The trial's record in the ledger.
            value: The value to maximise; None where the trial failed.
        """
        from optuna.trial import TrialState, create_trial

        trial = self.asked.pop(record["trial"], None)
        if trial is not None:
            state = TrialState.COMPLETE if value is not None else TrialState.FAIL
            self.study.tell(trial, value, state=state)
        elif value is not None:
            params = {k: v for k, v in record["overrides"].items() if k in self.space}
            self.study.add_trial(create_trial(params=params, distributions=self.space, value=value))
        self.told += 1
        if self.told >= 2 * TPE_KEPT:
            self._thin()

    def _thin(self) -> None:
        """Replace the study by one of the best and the latest trials.

        Trials that were asked for and have not ended are told to it later as another's.
        """
        import optuna

        done = self.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
        best = sorted(done[:-TPE_KEPT], key=lambda trial: -(trial.value or 0.0))[:TPE_BEST]
        self.study = optuna.create_study(direction="maximize", sampler=self.sampler)
        self.study.add_trials([*best, *done[-TPE_KEPT:]])
        self.told = TPE_BEST + TPE_KEPT
        self.asked.clear()
