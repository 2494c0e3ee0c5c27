"""Which nodes there are, what a worker needs, and how many trials fit."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aml.errors import UserError
from orchestrator.cluster.session import init_ray, set_ray_environment

if TYPE_CHECKING:
    from orchestrator.config import Experiment


DRIVER_CPUS = 0.01

"""What the driver process of a distributed trial asks for: it only waits."""

DATA = "data"

"""The custom resource of nodes that are there to read and decode (`ray start --resources '{"data": 1}'`)."""

STORE_MOST = 200e9

"""Bytes that Ray's object store takes at most; it takes 30 % of a smaller machine's memory."""


def cluster_nodes() -> list[dict[str, float]]:
    """What each node of the cluster holds, or this machine where no Ray runs yet: {"CPU", "GPU", "memory" in bytes}."""
    set_ray_environment()
    import ray

    if ray.is_initialized():
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [{name: found.get(name, 0) for name in ("CPU", "GPU", "memory")} for found in alive]
    import torch

    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return [
        {
            "CPU": os.cpu_count() or 1,
            "GPU": torch.cuda.device_count(),
            "memory": physical - min(0.3 * physical, STORE_MOST),
        }
    ]


def planned_nodes() -> list[dict[str, float]]:
    """The same of where a command would run: the cluster RAY_ADDRESS names, which is joined to be asked, else this machine."""
    if os.environ.get("RAY_ADDRESS"):
        init_ray()
    return cluster_nodes()


def total_resources(nodes: list[dict[str, float]]) -> dict[str, float]:
    """What all nodes hold."""
    return {name: sum(node[name] for node in nodes) for name in ("CPU", "GPU", "memory")}


def data_task_options() -> dict:
    """What tasks that read and decode ask for besides CPUs: a place on the nodes started for them, where the cluster has any."""
    import ray

    return {"resources": {DATA: 0.001}} if ray.cluster_resources().get(DATA) else {}


def driver_node_options() -> dict:
    """What tasks ask for that need files of the driver's machine: its node, though it may hold no CPUs for others."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        ),
    }


def run_on_worker(function: Callable, *arguments, wanted: dict[str, float], seconds: float):
    """function(*arguments) in a task that has what a worker has; None where no Ray has been joined, the nodes that are up have no room for it, or
    it fails or takes longer than `seconds`. No node is started for it."""
    import ray

    if not ray.is_initialized() or any(
        ray.available_resources().get(name, 0) < amount for name, amount in wanted.items()
    ):
        return None
    how = {
        "num_cpus": wanted.get("CPU", 0),
        "num_gpus": wanted.get("GPU", 0),
        "memory": wanted.get("memory"),
        "max_retries": 0,
    }
    task = ray.remote(**how)(function).remote(*arguments)
    try:
        return ray.get(task, timeout=seconds)
    except ray.exceptions.RayError:
        ray.cancel(task, force=True)
        return None


def idle_gpus(
    experiment: "Experiment", nodes: list[dict[str, float]], *, sweep: bool = True
) -> str:
    """That a run leaves GPUs unused, or nothing."""
    have = total_resources(nodes)["GPU"]
    if have < 1 or experiment.resources.gpus_per_worker:
        return ""
    share = (
        ", or 0.25 for four trials on each" if sweep and experiment.resources.workers == 1 else ""
    )
    return f"resources.gpus_per_worker is 0: training runs on CPUs, and {have:g} GPU stay idle; give 1{share}"


@dataclass(frozen=True)
class Placement:
    """How many trials run at a time, and why."""

    concurrent: int
    resources: dict[str, float]
    """Of one worker, as Ray takes them."""
    arithmetic: str


def worker_resources(resources) -> dict[str, float]:
    """What one worker asks Ray for: CPU, and GPU and memory (bytes) where it wants any."""
    wanted = {
        "CPU": resources.cpus_per_worker,
        "GPU": resources.gpus_per_worker,
        "memory": (resources.memory_gb or 0) * 2**30,
    }
    return {name: amount for name, amount in wanted.items() if amount}


def workers_per_node(node: dict[str, float], wanted: dict[str, float]) -> int:
    """Workers that fit on a node. A part of a GPU lies on one GPU: of two GPUs, each holds one worker of 0.6."""

    def whole(have: float, want: float) -> int:
        return int(have / want + 1e-9)  # 1 // 0.1 is 9

    fits = [whole(node[name], want) for name, want in wanted.items() if name != "GPU" or want >= 1]
    share = wanted.get("GPU", 1)
    return min(fits + ([int(node["GPU"]) * whole(1, share)] if share < 1 else []))


def plan_placement(
    experiment: "Experiment", nodes: list[dict[str, float]], *, sweep: bool = True
) -> Placement:
    """Trials of a sweep, or the one run of `train`, that fit side by side. UserError, with the sum, where not even one does."""
    r = experiment.resources
    driver = DRIVER_CPUS if sweep and not r.light else 0.0
    workers, wanted = r.min_workers or r.workers, worker_resources(r)
    cpus = workers * r.cpus_per_worker + driver
    total = total_resources(nodes)
    fits = min(
        sum(workers_per_node(node, wanted) for node in nodes) // workers,
        int(total["CPU"] / cpus + 1e-9),
    )
    needs = (
        f"{workers} worker(s) x {r.cpus_per_worker:g} CPU"
        + (f" + {driver:g} for the driver" if driver else "")
        + f" = {cpus:g} CPU"
    )
    has = f"{total['CPU']:g} CPU and {total['GPU']:g} GPU"
    if r.gpus_per_worker:
        needs += f" and {workers} x {r.gpus_per_worker:g} = {workers * r.gpus_per_worker:g} GPU"
    if r.memory_gb:
        needs += f" and {workers} x {r.memory_gb:g} = {workers * r.memory_gb:g} GiB"
        has += f" and {total['memory'] / 2**30:.1f} GiB for workers"
    has += f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    if not fits:
        raise UserError(
            f"one {'trial' if sweep else 'run'} needs {needs}, but the cluster has {has}, and a worker lies on one node; "
            f"lower {'resources.min_workers' if r.min_workers else 'resources.workers'}, cpus_per_worker, gpus_per_worker or memory_gb, or add nodes"
        )
    concurrent = max(1, min(fits, experiment.search.max_concurrent or fits))
    return Placement(
        concurrent,
        wanted,
        f"a trial needs {needs}; the cluster has {has}: {fits} fit, {concurrent} run at a time",
    )
