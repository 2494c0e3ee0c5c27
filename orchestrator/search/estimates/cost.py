"""The compute of an arm's training step, and the epochs at which arms cost the same."""

import math
import statistics
from typing import Any

from aml.training import make_learner_and_batch, step_flops, timed_steps
from orchestrator.config import AT_COMPUTE, Experiment, base_arm
from orchestrator.search.plan import Plan

ROUNDS = 5
"""Timed steps of each arm."""

SAMPLES = 8
"""Samples of the batch whose FLOPs are counted: FLOPs are proportional to the samples."""


def flops_ratios(experiment: Experiment, arms: dict[str, dict]) -> dict[str, dict]:
    """Return FLOPs of a training step for each sample, and their ratio to the arm off.

    Args:
        experiment: The settings of the sweep.
        arms: The overrides of each arm's setting. off is counted whether or not it is among them.

    Returns:
        {arm: {"flops_per_item", "ratio"}}.
    """
    base = flops(experiment.for_arm("off", {}))
    by_arm = {arm: flops(experiment.for_arm(arm, config)) for arm, config in arms.items()}
    return {arm: {"flops_per_item": n, "ratio": n / base} for arm, n in by_arm.items()}


def equal_epochs(experiment: Experiment) -> dict[str, int]:
    """Return the epochs at which arms cost as much as the costliest at train.epochs.

    An arm x trains round(E F_c / F_x) epochs. E is train.epochs, F the FLOPs of a step (its
    seconds with search.equal seconds), c the costliest arm. The learning rate schedule is
    stretched over them, so that such a run is no prefix of another.

    Returns:
        {arm: epochs} of the arms compared at equal cost; {} where all train for equal epochs.
    """
    search = experiment.search
    asked = [arm for arm in search.arms if search.equal != "epochs" or arm.endswith(AT_COMPUTE)]
    if not asked:
        return {}
    trials = {base_arm(arm): experiment.for_arm(arm, {}) for arm in search.arms}
    if search.equal == "seconds":
        costs = seconds(trials)
    else:
        costs = {arm: flops(trial) for arm, trial in trials.items()}
    budget = experiment.train.epochs * max(costs.values())
    return {arm: max(1, round(budget / costs[base_arm(arm)])) for arm in asked}


def flops(trial: Experiment) -> float:
    """Return the FLOPs of one training step for each sample."""
    batch = min(trial.train.batch, SAMPLES)
    learner, noise = make_learner_and_batch(
        trial.aml, trial.model, batch=batch, size=trial.data.size
    )
    return step_flops(learner, noise) / batch


def seconds(trials: dict[str, Experiment]) -> dict[str, float]:
    """Return the seconds of one training step on this machine: the median, arms taking turns."""
    prepared = {
        arm: make_learner_and_batch(
            trial.aml,
            trial.model,
            batch=trial.train.batch // trial.resources.workers,
            size=trial.data.size,
            precision=trial.train.precision,
        )
        for arm, trial in trials.items()
    }
    times: dict[str, list[float]] = {arm: [] for arm in prepared}
    for index in range(ROUNDS + 1):
        for arm, (learner, noise) in prepared.items():
            times[arm].append(timed_steps(learner, noise, index))
    return {arm: statistics.median(t[1:]) for arm, t in times.items()}  # the first warms caches up


def least_share(plan: Plan) -> float:
    """Return the share of the epochs left that are trained at least if all that can be is stopped.

    Of each rung of asha, async_hyperband and hyperband one trial in the reduction factor goes on;
    median_stopping_rule may stop all after its grace period. 1 with any other scheduler.
    """
    rungs = _rungs(plan.experiment.search.scheduler)
    if rungs is None:
        return 1.0
    grace, reduction = rungs
    least = full = 0.0
    for arm, epochs in plan.epochs.items():
        ended = plan.results.num_ended[arm]
        search = max(0, plan.search.per_arm - ended["search"])
        confirm = max(0, plan.experiment.search.seeds.confirm - ended["confirm"]) * epochs
        kept, begin, end = 0.0, 0.0, float(grace)
        share = 1.0
        while begin < epochs:
            kept += share * (min(end, epochs) - begin)
            begin, end, share = end, end * reduction, share / reduction
        least += search * kept + confirm
        full += search * epochs + confirm
    return least / full if full else 1.0


def _rungs(scheduler: Any) -> tuple[int, float] | None:
    """Return the first rung's epoch and the reduction of a scheduler; None where it has none."""
    if scheduler.name == "asha":
        return scheduler.grace, scheduler.reduction
    if scheduler.name == "async_hyperband":
        return scheduler.grace_period, scheduler.reduction_factor
    if scheduler.name == "hyperband":
        return 1, scheduler.reduction_factor
    if scheduler.name == "median_stopping_rule":
        return scheduler.grace_period, math.inf
    return None
