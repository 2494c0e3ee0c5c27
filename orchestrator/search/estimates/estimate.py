"""Estimates of a sweep's time and money before it starts, from a few steps."""

import logging
import math
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

from orchestrator import cluster, config, data
from orchestrator.config import Experiment, from_dict
from orchestrator.search import budget
from orchestrator.search.estimates import cost
from orchestrator.search.estimates.measured import find_measured_step
from orchestrator.search.estimates.power import ANY_DIFFERENCE, PowerQuestion, describe_power
from orchestrator.search.plan import Plan
from orchestrator.storage import storage_root
from orchestrator.utils import range_text

if TYPE_CHECKING:
    from aml.training import StepCost

logger = logging.getLogger(__name__)


UNMEASURED = 2.0
"""How many times longer than by a few steps a sweep may take: trials share cores, and validate."""

START_S = 60.0
"""Seconds beside all trials, for the start of Ray, decoding and the report, that an estimate before
the start allows for."""

REMOTE_STEPS_S = 180.0
"""Seconds a node has for a few steps: its process starts, imports torch and builds the model."""

FORWARD_SHARE = 1 / 3
"""Share of a training step that a forward pass is assumed to take: a backward takes two of them."""

JUST_NOW = "a few steps measured just now"

UNKNOWN = (
    "trials have GPUs that this machine lacks, and on none of the cluster could a few steps be "
    "measured"
)


class Estimate(TypedDict):
    """Time and money of a whole sweep, as sweep.json holds them."""

    epoch_s: float
    hours: float
    """If every trial trains to its end, at `epoch_s`."""
    cost: float
    hours_range: NotRequired[list[float]]
    """Fewest and most hours, by what the scheduler may stop and how little is measured."""


CHECKPOINT_COPIES = 8
"""Weights that a trial's checkpoints take at most, with AdamW's two moments in a training state:
three times in last and in last.previous, and once in best and in best.previous."""

TEACHER_COPIES = 2
"""Weights besides where an arm has a teacher: its average, in last and in last.previous."""


class SweepSize(NamedTuple):
    """Upper bounds of the trials, time and disk of a sweep."""

    trials: int
    estimate: Estimate | None
    """None where a step's time is not known before the first epoch."""
    source: str
    """Where the time of a step is from, or what is not known of it."""
    seed_hours: float
    """Wall clock of one more confirmation seed of every arm; NaN where unknown."""
    disk: int | None
    """Bytes of all checkpoints; None where unknown."""


def estimate_plan(plan: Plan, experiment: Experiment, epoch_s: float, concurrent: int) -> Estimate:
    """Return hours and money of a plan whose epochs take `epoch_s` seconds.

    Args:
        plan: The plan.
        experiment: The settings of the sweep: prices and budget.
        epoch_s: Seconds of an epoch.
        concurrent: Trials that run at a time.
    """
    price = config.hourly_price(experiment.resources)
    scoring = scoring_s(experiment, epoch_s) * plan.search.per_arm * len(plan.arms)
    hours, total = budget.estimate(
        experiment.search.budget,
        plan,
        epoch_s=epoch_s,
        concurrent=concurrent,
        price=price,
        beside_s=scoring,
    )
    most = UNMEASURED * hours + START_S / 3600
    if experiment.search.budget.hours is not None:
        most = min(most, experiment.search.budget.hours)
    ends = [min(hours * cost.least_share(plan), most), most]
    return {"epoch_s": epoch_s, "hours": hours, "cost": total, "hours_range": ends}


def scoring_s(experiment: Experiment, epoch_s: float) -> float:
    """Return the seconds that a search trial is scored under corruption at its end; 0 if it is not.

    A sentence under a corruption is reckoned at a third of a training item: the forward pass alone.

    Args:
        experiment: The settings of the sweep.
        epoch_s: Seconds of a training epoch.
    """
    if not experiment.searched_conditions:
        return 0.0
    sentences = _sentences(experiment) * len(experiment.searched_conditions)
    return sentences * epoch_s / _items(experiment) * FORWARD_SHARE


def estimate_text(estimate: Estimate) -> str:
    """Return an estimate as text: 6 to 12 min, cost 0.40 at most, at 2.5 s an epoch."""
    hours = estimate["hours"]
    low, high = estimate.get("hours_range", [hours, hours])  # older runs have none
    price = f", cost {budget.money(estimate['cost'])} at most," if estimate["cost"] else ""
    return f"{range_text(3600 * low, 3600 * high)}{price} at {estimate['epoch_s']:.1f} s an epoch"


def estimate_at_launch(
    experiment: Experiment, epochs: dict[str, int], placement: cluster.Placement
) -> Estimate | None:
    """Log and return time and money of a sweep before it starts.

    Args:
        experiment: The settings of the sweep.
        epochs: Epochs of the arms that train for others than train.epochs.
        placement: How many trials run at a time.

    Returns:
        The estimate; None where no steps can be measured before the first epoch.
    """
    steps = _measure_steps(experiment)
    if steps is None:
        logger.info(f"plan: {UNKNOWN}; time and money follow with the first epoch")
        return None
    plan = Plan(experiment, epochs=epochs)
    seconds = _epoch_seconds(experiment, steps)
    found = estimate_plan(plan, experiment, seconds, placement.concurrent)
    logger.info(
        f"plan: {plan.counts.total} trials, {estimate_text(found)} ({JUST_NOW}; the range narrows "
        "as epochs end)"
    )
    return found


def describe_plan(
    experiment: Experiment,
    placement: cluster.Placement,
    question: PowerQuestion = ANY_DIFFERENCE,
) -> str:
    """Return what a sweep would do and show: trials, placement, budget, time, cost, power.

    Args:
        experiment: The settings of the sweep.
        placement: How many trials run at a time.
        question: Which differences between arms the confirmation should show.
    """
    plan = Plan(experiment, epochs=cost.equal_epochs(experiment))
    search = experiment.search
    lines = [f"{experiment.name}: {plan.counts.total} trials of {experiment.train.epochs} epochs"]
    lines += [_arm_line(plan, arm) for arm in search.arms]
    if len(search.objectives) > 1:
        metrics = " and ".join(f"{o.metric} ({o.mode})" for o in search.objectives)
        lines.append(f"  judged by {metrics}: the best compromise of an arm's front is confirmed")
    if search.scheduler.name != "none" and plan.search.per_arm:
        own = {k: v for k, v in search.scheduler.to_dict().items() if k != "name"}
        settings = ", ".join(f"{key} {value:g}" for key, value in own.items())
        lines.append(f"  {search.scheduler.name} inside each arm of the search: {settings}")
    lines.append(f"placement: {placement.explanation}")
    if limits := search.budget.limits:
        limits_text = ", ".join(f"{value:g} {name}" for name, value in limits.items())
        lines.append(f"budget: {limits_text}; confirmation is kept room for")
    seconds, source = _planned_epoch(experiment, plan, _measure_steps(experiment))
    lines += _time_and_cost(experiment, plan, placement, seconds, source)
    lines += describe_power(experiment, question, _seed_hours(plan, placement, seconds))
    lines.append("nothing was started")
    return "\n".join(lines)


def size_sweep(experiment: Experiment, placement: cluster.Placement) -> SweepSize:
    """Return trials, time, money and disk of a sweep, from a few steps measured now.

    Where they cannot be measured the time is that of steps on another machine's GPU, if known.

    Args:
        experiment: The settings of the sweep.
        placement: How many trials run at a time.

    Raises:
        UserError: There are no data, and nothing to generate them of.
    """
    plan = Plan(experiment, epochs=cost.equal_epochs(experiment))
    trials = plan.counts.total
    steps = _measure_steps(experiment)
    taught = any(experiment.for_arm(arm, {}).aml.reads_teacher for arm in experiment.search.arms)
    copies = CHECKPOINT_COPIES + TEACHER_COPIES * taught
    disk = trials * copies * steps.weight_bytes if steps else None
    seconds, source = _planned_epoch(experiment, plan, steps)
    found = None
    if seconds is not None:
        found = estimate_plan(plan, experiment, seconds, placement.concurrent)
    return SweepSize(trials, found, source, _seed_hours(plan, placement, seconds), disk)


def _planned_epoch(
    experiment: Experiment, plan: Plan, steps: "StepCost | None"
) -> tuple[float | None, str]:
    """Return the seconds of an epoch and where they are from; None and what is not known of them.

    Args:
        experiment: The settings of the sweep.
        plan: Its plan.
        steps: The steps measured just now; None where none could be.
    """
    if steps is not None:
        return _epoch_seconds(experiment, steps), JUST_NOW
    found = find_measured_step(experiment, plan)
    if isinstance(found, str):
        return None, f"{UNKNOWN}; {found}"
    return found.epoch_s(_items(experiment), experiment.resources.workers), found.source


def _seed_hours(plan: Plan, placement: cluster.Placement, seconds: float | None) -> float:
    """Return the hours of one more confirmation seed of every arm; NaN where unknown."""
    if seconds is None:
        return math.nan
    return sum(plan.epochs.values()) * seconds / 3600 / placement.concurrent


def _arm_line(plan: Plan, arm: str) -> str:
    search = plan.experiment.search
    tried = plan.search.per_arm
    grid = len(plan.search.settings[arm])
    settings = f"sampled by {search.method.name}"
    if search.method.name == "grid":
        settings = f"{tried} of {grid} settings" if tried < grid else f"{grid} setting(s)"
    length = ""
    if plan.epochs[arm] != plan.experiment.train.epochs:
        length = f", {plan.epochs[arm]} epochs each"
    width = max(map(len, plan.arms))
    first = f"{tried} search trials over {settings}, then " if tried else ""
    return f"  {arm:{width}} {first}{search.seeds.confirm} confirmation seeds{length}"


def _time_and_cost(
    experiment: Experiment,
    plan: Plan,
    placement: cluster.Placement,
    seconds: float | None,
    source: str,
) -> list[str]:
    """Return lines on time and money; `seconds` are those of an epoch, None where unknown."""
    if seconds is None:
        return [f"time and cost: {source}; a sweep says them after its first epoch"]
    found = estimate_plan(plan, experiment, seconds, placement.concurrent)
    low, high = found["hours_range"]
    scheduler = experiment.search.scheduler.name
    stops_early = scheduler not in ("none", "pbt") and plan.search.per_arm
    early = f", the less the more trials {scheduler} stops" if stops_early else ""
    resources = experiment.resources
    price = "no prices given (resources.price_per_gpu_hour, resources.price_per_cpu_hour)"
    if config.hourly_price(resources):
        price = (
            f"at most {budget.money(found['cost'])} at {resources.price_per_gpu_hour:g} a GPU hour "
            f"and {resources.price_per_cpu_hour:g} a CPU hour"
        )
    lines = [
        f"time: about {seconds:.1f} s an epoch ({source}), so "
        f"{range_text(3600 * low, 3600 * high)} in all{early}",
        f"cost: {price}",
    ]
    if conditions := experiment.searched_conditions:
        scoring = scoring_s(experiment, seconds)
        lines.insert(
            1,
            f"in it: each search trial scores {_sentences(experiment):,} validation sentences "
            f"under {len(conditions)} corruption(s) after its last epoch, about {scoring:.1f} s or "
            f"{scoring / seconds:.2g} epochs a trial",
        )
    return lines


def _epoch_seconds(experiment: Experiment, steps: "StepCost") -> float:
    """Return the seconds of an epoch of one worker, given what a step takes."""
    return _items(experiment) * steps.seconds / steps.samples / experiment.resources.workers


def _items(experiment: Experiment) -> int:
    """Return the items of a training epoch."""
    settings = experiment.data
    found = data.check_sources(settings, storage_root(experiment.storage.root))
    if found is not None:
        counts = found.manifest["splits"][settings.train_split]
        items = counts["sentences" if settings.unit == "sentence" else "refs"]
    else:
        assert settings.synth is not None  # else check_sources refuses data that are not there
        # The train share, and the refs of an image, of generated data.
        items = int(settings.synth.images * 0.75 * 2.42)
    return min(items, settings.train_limit or items)


def _sentences(experiment: Experiment) -> int:
    """Return the sentences that validate."""
    settings = experiment.data
    found = data.check_sources(settings, storage_root(experiment.storage.root))
    if found is not None:
        sentences = found.manifest["splits"][settings.val_split]["sentences"]
    else:
        assert settings.synth is not None  # else check_sources refuses data that are not there
        # The share of a split of evaluation, and the sentences of an image, of generated data.
        sentences = int(settings.synth.images * 0.125 * 7.0)
    return min(sentences, settings.val_limit or sentences)


def _measure_steps(experiment: Experiment) -> "StepCost | None":
    """Return what a step of one worker takes, from a few steps on noise.

    The steps run on this machine, or, where trials have a GPU that it lacks, on a running node of
    the cluster; None where no node has such a GPU free.
    """
    import torch

    from aml.training import step_seconds

    if not experiment.resources.gpus_per_worker or torch.cuda.is_available():
        return step_seconds(experiment)
    return cluster.run_on_worker(
        _measure_steps_in_task,
        experiment.for_workers(),
        wanted=cluster.worker_resources(experiment.resources),
        seconds=REMOTE_STEPS_S,
    )


def _measure_steps_in_task(tree: dict) -> "StepCost":
    from aml.training import step_seconds

    return step_seconds(from_dict(tree))
