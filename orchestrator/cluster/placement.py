"""Placement: the nodes of the cluster, the resources of a worker, and how many trials fit."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aml.errors import UserError
from orchestrator.cluster.session import init_ray, set_ray_environment

if TYPE_CHECKING:
    from orchestrator.config import Experiment

Resources = dict[str, float]
"""{"CPU": number, "GPU": number, "memory": bytes}, as Ray takes them."""

DRIVER_CPUS = 0.01
"""CPUs that the driver process of a distributed trial asks for: it only waits."""

DATA = "data"
"""The custom resource of nodes that were started to read and decode data.

`ray start --resources '{"data": 1}'` starts one.
"""

STORE_MOST = 200e9
"""Bytes that Ray's object store takes at most; it takes 30 % of a smaller machine's memory."""


def cluster_nodes() -> list[Resources]:
    """Return the resources of each node of the cluster, or of this machine where no Ray runs."""
    set_ray_environment()
    import ray

    if ray.is_initialized():
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [{name: node.get(name, 0) for name in ("CPU", "GPU", "memory")} for node in alive]
    import torch

    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return [
        {
            "CPU": os.cpu_count() or 1,
            "GPU": torch.cuda.device_count(),
            "memory": physical - min(0.3 * physical, STORE_MOST),
        }
    ]


def planned_nodes() -> list[Resources]:
    """Return the resources of the nodes on which a command would run.

    These are the nodes of the cluster that RAY_ADDRESS names, which is joined to be asked; without
    RAY_ADDRESS it is this machine.
    """
    if os.environ.get("RAY_ADDRESS"):
        init_ray()
    return cluster_nodes()


def total_resources(nodes: list[Resources]) -> Resources:
    """Return the resources of all nodes together."""
    return {name: sum(node[name] for node in nodes) for name in ("CPU", "GPU", "memory")}


def data_task_options() -> dict[str, Any]:
    """Return options of Ray tasks that read and decode, besides their CPUs.

    They run on the nodes that were started for them, where the cluster has any.
    """
    import ray

    return {"resources": {DATA: 0.001}} if ray.cluster_resources().get(DATA) else {}


def driver_node_options() -> dict[str, Any]:
    """Return options of Ray tasks that need files of the driver's machine.

    They run on its node, even where it has no CPUs for others.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }


def run_on_worker(
    function: Callable, *arguments: Any, wanted: Resources, seconds: float
) -> Any | None:
    """Call a function in a Ray task that has the resources of a worker.

    Args:
        function: to call.
        arguments: its positional arguments.
        wanted: resources of the task.
        seconds: to wait at most.

    Returns:
        The result; None where no Ray has been joined, where the running nodes have no room (none is
        started for the task), or where the function fails or takes too long. One that takes too
        long ends itself: Ray's own cancellation may end this process where the task is just done.
    """
    import ray

    if not ray.is_initialized():
        return None
    free = ray.available_resources()
    if any(free.get(name, 0) < amount for name, amount in wanted.items()):
        return None
    options: dict[str, Any] = {
        "num_cpus": wanted.get("CPU", 0),
        "num_gpus": wanted.get("GPU", 0),
        "memory": wanted.get("memory"),
        "max_retries": 0,
    }
    task = ray.remote(**options)(_call_within).remote(seconds, function, *arguments)
    try:
        return ray.get(task, timeout=seconds)
    except ray.exceptions.RayError:
        return None


def _call_within(seconds: float, function: Callable, *arguments: Any) -> Any:
    """Call a function in a task; raise TimeoutError in it once the seconds are over."""
    signal.signal(signal.SIGALRM, _raise_timeout)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return function(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _raise_timeout(number: int, frame: Any) -> None:
    raise TimeoutError("the time for this task is over")


def idle_gpus(experiment: "Experiment", nodes: list[Resources], *, sweep: bool = True) -> str:
    """Return a warning that a run leaves all GPUs unused, or an empty text.

    Args:
        experiment: the settings.
        nodes: resources of each node.
        sweep: False for the one run of `train`.
    """
    gpus = total_resources(nodes)["GPU"]
    if gpus < 1 or experiment.resources.gpus_per_worker:
        return ""
    several = sweep and experiment.resources.workers == 1
    share = ", or 0.25 for four trials on each" if several else ""
    return (
        "resources.gpus_per_worker is 0: training runs on CPUs, "
        f"and {gpus:g} GPU stay idle; give 1{share}"
    )


@dataclass(frozen=True)
class Placement:
    """Number of trials that run at a time, and its explanation."""

    concurrent: int
    resources: Resources
    """Resources that Tune reserves for a trial.

    They are those of its worker; the workers of a distributed trial have a placement group of their
    own, so that only its driver process is counted here.
    """
    explanation: str
    """The arithmetic in words."""


def worker_resources(resources: Any) -> Resources:
    """Return what one worker of `experiment.resources` asks Ray for, without zeros."""
    wanted = {
        "CPU": resources.cpus_per_worker,
        "GPU": resources.gpus_per_worker,
        "memory": (resources.memory_gb or 0) * 2**30,
    }
    return {name: amount for name, amount in wanted.items() if amount}


def workers_per_node(node: Resources, wanted: Resources) -> int:
    """Return how many workers fit on a node.

    A share of a GPU lies on one GPU: each of two GPUs holds one worker of 0.6.

    Args:
        node: resources of the node.
        wanted: resources of a worker.
    """
    fits = [
        _whole(node[name], amount)
        for name, amount in wanted.items()
        if name != "GPU" or amount >= 1
    ]
    share = wanted.get("GPU", 1)
    if share < 1:
        fits.append(int(node["GPU"]) * _whole(1, share))
    return min(fits)


def _whole(have: float, want: float) -> int:
    """Return how often an amount fits; 1 // 0.1 would be 9."""
    return int(have / want + 1e-9)


def plan_placement(
    experiment: "Experiment", nodes: list[Resources], *, sweep: bool = True
) -> Placement:
    """Return how many trials of a sweep fit side by side.

    Args:
        experiment: the settings.
        nodes: resources of each node.
        sweep: False for the one run of `train`.

    Raises:
        UserError: not even one trial fits; the message has the arithmetic.
    """
    r = experiment.resources
    driver = DRIVER_CPUS if sweep and not r.light else 0.0
    workers = r.min_workers or r.workers
    wanted = worker_resources(r)
    cpus = workers * r.cpus_per_worker + driver
    total = total_resources(nodes)
    fits = min(
        sum(workers_per_node(node, wanted) for node in nodes) // workers,
        _whole(total["CPU"], cpus),
    )
    needs = f"{workers} worker(s) x {r.cpus_per_worker:g} CPU"
    needs += f" + {driver:g} for the driver" if driver else ""
    needs += f" = {cpus:g} CPU"
    has = f"{total['CPU']:g} CPU and {total['GPU']:g} GPU"
    if r.gpus_per_worker:
        needs += f" and {workers} x {r.gpus_per_worker:g} = {workers * r.gpus_per_worker:g} GPU"
    if r.memory_gb:
        needs += f" and {workers} x {r.memory_gb:g} = {workers * r.memory_gb:g} GiB"
        has += f" and {total['memory'] / 2**30:.1f} GiB for workers"
    has += f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    if not fits:
        setting = "resources.min_workers" if r.min_workers else "resources.workers"
        raise UserError(
            f"one {'trial' if sweep else 'run'} needs {needs}, but the cluster has {has}, and a "
            f"worker lies on one node; lower {setting}, cpus_per_worker, gpus_per_worker or "
            "memory_gb, or add nodes"
        )
    concurrent = max(1, min(fits, experiment.search.max_concurrent or fits))
    return Placement(
        concurrent,
        {"CPU": driver} if driver else wanted,
        f"a trial needs {needs}; the cluster has {has}: {fits} fit, {concurrent} run at a time",
    )
