"""Tune's three plug-in points, each handing on to the Sweep: who is next, does it go on, what has happened.

Apart from tune.py because the base classes need Ray imported.
"""

import ray
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher


class PlanSearcher(Searcher):
    """Tune asks here for the next trial."""

    def __init__(self, sweep):
        super().__init__(metric=sweep.experiment.search.metric, mode=sweep.experiment.search.mode)
        self.sweep = sweep

    def suggest(self, trial_id: str):
        config = self.sweep.next_config()
        if config is None:
            return Searcher.FINISHED if self.sweep.plan.done or self.sweep.interrupted else None
        return config

    def on_trial_complete(self, trial_id: str, result=None, error: bool = False) -> None:
        """The plan has heard already, through the scheduler or the ear."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return (str, ("searcher",))


class SweepScheduler(FIFOScheduler):
    """Each result goes to the sweep, which decides inside the trial's arm and writes the ledger first."""

    def __init__(self, sweep):
        super().__init__()
        self.sweep = sweep

    def on_trial_add(self, tune_controller, trial):
        spec = self.sweep.live[trial.config["trial"]].spec
        if spec.stage == "search":
            self.sweep.announce(spec.id, spec.arm)

    def on_trial_result(self, tune_controller, trial, result):
        over = self.sweep.heard(trial.config["trial"], result)
        # A trial that is done or has failed returns by itself; stopping it would leave a distributed one's workers to be cleaned up after.
        return TrialScheduler.STOP if over and over[0] == "stopped" else TrialScheduler.CONTINUE

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return (str, ("scheduler",))


class SweepCallback(Callback):
    """Starts, deaths and silence, which a scheduler does not hear of."""

    def __init__(self, sweep):
        self.sweep = sweep

    def on_step_begin(self, iteration, trials, **info):
        self.sweep.tick(
            frozenset(trial.config["trial"] for trial in trials if trial.status == trial.PENDING)
        )
        for trial in trials:
            if trial.status == trial.RUNNING and self.sweep.hangs(trial.config["trial"]):
                trial.max_failures = 0  # it is over: no restart
                ray.kill(trial.temporary_state.ray_actor)

    def on_trial_start(self, iteration, trials, trial, **info):
        self.sweep.started(trial.config["trial"])

    def on_trial_error(self, iteration, trials, trial, **info):
        self.sweep.died(trial.config["trial"], last_line(trial))
        self.sweep.clear(trial.config["trial"])

    def on_trial_complete(self, iteration, trials, trial, **info):
        # A function that returned without its last epoch has failed without an exception: never so far, but never in silence either.
        self.sweep.died(trial.config["trial"], "the trial ended before its last epoch")

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return (str, ("ear",))


def last_line(trial) -> str:
    """The innermost error of a failed trial, in one line."""
    error = trial.get_pickled_error() or trial.get_error()
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip()[:300]}" if lines else type(cause).__name__
