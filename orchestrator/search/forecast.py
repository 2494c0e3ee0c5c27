"""What a sweep would take, said before it starts: trials, placement, time and money, from a few steps on a machine like its trials'."""

from orchestrator import cluster, data
from orchestrator.config import Experiment, from_dict
from orchestrator.search import budget, cost, pace, plan
from orchestrator.storage import storage_root

ELSEWHERE_S = 180.0

"""For a few steps on a node of the cluster: its process starts, imports torch and makes the model."""

UNKNOWN = "trials have GPUs that this machine lacks, and on none of the cluster could a few steps be measured"


def estimate_at_launch(
    experiment: Experiment, epochs: dict[str, int], placement: cluster.Placement, say
) -> dict | None:
    """Time and money said before the start; None where they cannot be measured before the first epoch."""
    seconds = estimate_epoch_s(experiment)
    if seconds is None:
        say(f"plan: {UNKNOWN}; time and money follow with the first epoch")
        return None
    made = plan.Plan(experiment, epochs=epochs)
    found = pace.planned(made, experiment, seconds, placement.concurrent)
    say(
        f"plan: {made.total} trials, at most {pace.described(found['hours'], found['cost'], found['epoch_s'])} (a few steps measured just now)"
    )
    return found


def describe_plan(experiment: Experiment, placement: cluster.Placement) -> str:
    """What a sweep would do: trials, placement and time."""
    made, search = plan.Plan(experiment, epochs=cost.equal_epochs(experiment)), experiment.search
    lines = [f"{experiment.name}: {made.total} trials of {experiment.train.epochs} epochs"]
    for arm in search.arms:
        n = len(made.settings[arm])
        of = f"{made.per_arm} of {n} settings" if made.per_arm < n else f"{n} setting(s)"
        settings = of if search.method == "grid" else f"sampled by {search.method}"
        length = (
            ""
            if made.epochs[arm] == experiment.train.epochs
            else f", {made.epochs[arm]} epochs each"
        )
        lines.append(
            f"  {arm:16} {made.per_arm} search trials over {settings}, then {search.seeds.confirm} confirmation seeds{length}"
        )
    if search.scheduler == "asha":
        lines.append(
            f"  ASHA inside each arm of the search: rungs from epoch {search.asha.grace}, one in {search.asha.reduction} goes on"
        )
    lines.append(f"placement: {placement.arithmetic}")
    if limits := search.budget.limits:
        lines.append(
            "budget: "
            + ", ".join(f"{value:g} {name}" for name, value in limits.items())
            + "; confirmation is kept room for"
        )
    lines += _time_and_cost(experiment, made, placement)
    lines.append("nothing was started")
    return "\n".join(lines)


def _time_and_cost(
    experiment: Experiment, made: plan.Plan, placement: cluster.Placement
) -> list[str]:
    seconds = estimate_epoch_s(experiment)
    if seconds is None:
        return [f"time and cost: {UNKNOWN}; a sweep says them after its first epoch"]
    _, hours, money = pace.planned(made, experiment, seconds, placement.concurrent).values()
    asha = " before ASHA stops trials" if experiment.search.scheduler == "asha" else ""
    prices = f"{experiment.resources.price_per_gpu_hour:g} a GPU hour and {experiment.resources.price_per_cpu_hour:g} a CPU hour"
    none = "no prices given (resources.price_per_gpu_hour, resources.price_per_cpu_hour)"
    return [
        f"time: about {seconds:.1f} s an epoch (a few steps measured just now), so at most {hours * 60:.0f} min ({hours:.2f} h) in all{asha}",
        f"cost: {f'at most {budget.money(money)} at {prices}' if budget.hourly_price(experiment.resources) else none}",
    ]


def estimate_epoch_s(experiment: Experiment) -> float | None:
    """Seconds of an epoch of one worker, from a few steps on noise at this experiment's sizes: on this machine, or where trials have a GPU that it
    lacks on a node of the cluster that is up. None where none has one free."""
    steps = _steps(experiment)
    if steps is None:
        return None
    used = data.check_sources(experiment.data, storage_root(experiment.storage.root))
    if used is not None:
        counts = used.manifest["splits"][experiment.data.train_split]
        n = counts["sentences" if experiment.data.unit == "sentence" else "refs"]
    else:
        n = int(
            experiment.data.synth.images * 0.75 * 2.42
        )  # train share and refs an image of generated data
    n = min(n, experiment.data.train_limit or n)
    samples, seconds = steps
    return n * seconds / samples / experiment.resources.workers


def _steps(experiment: Experiment) -> tuple[int, float] | None:
    """Samples and seconds of a step of one worker."""
    import torch

    from aml.training import step_seconds

    if not experiment.resources.gpus_per_worker or torch.cuda.is_available():
        return step_seconds(experiment)
    return cluster.run_on_worker(
        _steps_there,
        experiment.for_workers(),
        wanted=cluster.worker_resources(experiment.resources),
        seconds=ELSEWHERE_S,
    )


def _steps_there(tree: dict) -> tuple[int, float]:
    """Runs in a task."""
    from aml.training import step_seconds

    return step_seconds(from_dict(tree))
