"""One arm's searcher: random, grid or Optuna's TPE."""

from orchestrator.config import Experiment
from orchestrator.search.space import _distribution, active_params

TPE_BEST, TPE_KEPT = 25, 300

"""TPE reads all trials for each suggestion. Its good ones are at most the best 25 (Optuna's default), so those and the latest are enough."""


class Study:
    """One Optuna study an arm: TPE over the dimensions the arm has."""

    def __init__(self, experiment: Experiment, arm: str):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.arm, self.optuna = arm, optuna
        self.space = {
            k: _distribution(v)
            for k, v in experiment.search.space.items()
            if k in active_params(experiment, arm, experiment.search.space)
        }
        self.sampler = optuna.samplers.TPESampler(seed=experiment.seed, n_startup_trials=4)
        self.study = optuna.create_study(direction="maximize", sampler=self.sampler)
        self.told = 0
        self.asked: dict[str, object] = {}

    def ask(self, trial_id: str) -> dict:
        self.asked[trial_id] = trial = self.study.ask(self.space)
        return dict(trial.params)

    def tell(self, record: dict, value: float | None) -> None:
        """Also of trials that this study was not asked for: it learns of them as they are."""
        state = self.optuna.trial.TrialState
        trial = self.asked.pop(record["trial"], None)
        if trial is not None:
            self.study.tell(trial, value, state=state.COMPLETE if value is not None else state.FAIL)
        elif value is not None:
            params = {k: v for k, v in record["overrides"].items() if k in self.space}
            self.study.add_trial(
                self.optuna.trial.create_trial(params=params, distributions=self.space, value=value)
            )
        self.told += 1
        if self.told >= 2 * TPE_KEPT:
            self._thin()

    def _thin(self) -> None:
        """A new study of the best and the latest trials; what is still asked for will be told to it as another's."""
        done = self.study.get_trials(deepcopy=False, states=[self.optuna.trial.TrialState.COMPLETE])
        best = sorted(done[:-TPE_KEPT], key=lambda t: -t.value)[:TPE_BEST]
        self.study = self.optuna.create_study(direction="maximize", sampler=self.sampler)
        self.study.add_trials([*best, *done[-TPE_KEPT:]])
        self.told = TPE_BEST + TPE_KEPT
        self.asked.clear()
