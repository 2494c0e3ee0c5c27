"""What a training step of an arm costs, and for how many epochs an arm may train to cost as much as another."""

import statistics

from aml.training import make_learner_and_batch, step_flops, timed_steps
from orchestrator.config import AT_COMPUTE, Experiment, base_arm

ROUNDS = 5

SAMPLES = 8

"""FLOPs are counted on so many samples: they are proportional, up to the text."""


def flops_ratios(experiment: Experiment, arms: dict[str, dict]) -> dict[str, dict]:
    """FLOPs a sample of one training step in each arm's setting, and the ratio to `off` (counted whether or not it ran)."""
    base = flops(experiment.for_arm("off", {}))
    return {
        arm: {"flops_per_item": (f := flops(experiment.for_arm(arm, overrides))), "ratio": f / base}
        for arm, overrides in arms.items()
    }


def equal_epochs(experiment: Experiment) -> dict[str, int]:
    """Epochs of the arms that are to cost what the costliest arm does at train.epochs; {} where all train for equal epochs.

    An arm x trains round(E F_c / F_x) epochs, F the FLOPs (search.equal seconds: the seconds) of a step, c the costliest arm. Its schedule
    is stretched over them: a run of its own, never a prefix.
    """
    search = experiment.search
    asked = [arm for arm in search.arms if search.equal != "epochs" or arm.endswith(AT_COMPUTE)]
    if not asked:
        return {}
    trials = {base_arm(arm): experiment.for_arm(arm, {}) for arm in search.arms}
    costs = (
        seconds(trials)
        if search.equal == "seconds"
        else {arm: flops(trial) for arm, trial in trials.items()}
    )
    return {
        arm: max(1, round(experiment.train.epochs * max(costs.values()) / costs[base_arm(arm)]))
        for arm in asked
    }


def flops(trial: Experiment) -> float:
    """Of one training step, a sample."""
    batch = min(trial.train.batch, SAMPLES)
    learner, noise = make_learner_and_batch(
        trial.aml, trial.model, batch=batch, size=trial.data.size
    )
    return step_flops(learner, noise) / batch


def seconds(trials: dict[str, Experiment]) -> dict[str, float]:
    """Of one training step on this machine: the arms take turns, the median counts."""
    made = {
        arm: make_learner_and_batch(
            t.aml,
            t.model,
            batch=t.train.batch // t.resources.workers,
            size=t.data.size,
            precision=t.train.precision,
        )
        for arm, t in trials.items()
    }
    times = {arm: [] for arm in made}
    for index in range(ROUNDS + 1):
        for arm, (learner, noise) in made.items():
            times[arm].append(timed_steps(learner, noise, index))
    return {arm: statistics.median(t[1:]) for arm, t in times.items()}  # the first warms caches up
