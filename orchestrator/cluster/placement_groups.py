"""Placement groups of distributed trials: registered by workers, removed for the next trial."""

import contextlib
import json
from typing import TYPE_CHECKING, Any

from orchestrator.cluster import ray_compat
from orchestrator.cluster.shutdown import kv_key

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup


def register_placement_group(name: str) -> None:
    """Note which placement group a worker of a distributed run is in.

    Args:
        name: of the run or trial.
    """
    import ray

    if group := ray.util.get_current_placement_group():
        ray_compat.kv_put(kv_key(f"{name}/place"), group.id.binary())


def remove_placement_groups(names: list[str]) -> bool:
    """Remove the placement groups of distributed runs that are over, and with them their workers.

    Ray Train leaves this to an actor that asks the dashboard; without a dashboard a trial that was
    stopped would hold its placement group for ever.

    Args:
        names: of the runs or trials.

    Returns:
        Whether there were workers in the groups.
    """
    from ray.util.placement_group import remove_placement_group

    groups = [found for name in names if (found := _registered_group(name))]
    for group, state in groups:
        if state != "REMOVED":
            remove_placement_group(group)
    return any(state == "CREATED" for _, state in groups)


def is_pending(name: str) -> bool:
    """Return whether a distributed run of this driver has no workers.

    There was no room for them yet, or they were lost.
    """
    found = _registered_group(name)
    return not found or found[1] != "CREATED"


def has_place(resources: Any) -> bool:
    """Return whether a placement group stands in the cluster that is like a run's workers.

    A run without registered workers then waits for its processes to start, and not for room.

    Args:
        resources: `experiment.resources` of the run.
    """
    from ray.util.placement_group import placement_group_table

    fewest = resources.min_workers or resources.workers
    states = {
        group["state"]
        for group in placement_group_table().values()
        if fewest <= len(group["bundles"]) <= resources.workers
        and all(b.get("CPU") == resources.cpus_per_worker for b in group["bundles"].values())
    }
    return "CREATED" in states and "PENDING" not in states


def put_progress(name: str, found: dict[str, float]) -> None:
    """Tell the driver how far a run is within an epoch; do nothing while Ray does not answer.

    Args:
        name: of the run or trial.
        found: numbers that `progress_of` returns.
    """
    with contextlib.suppress(Exception):
        ray_compat.kv_put(kv_key(f"{name}/progress"), json.dumps(found).encode())


def progress_of(name: str) -> dict[str, float] | None:
    """Return what a worker of this driver's run put last; None before the first."""
    found = ray_compat.kv_get(kv_key(f"{name}/progress"))
    return json.loads(found) if found else None


def _registered_group(name: str) -> tuple["PlacementGroup", str | None] | None:
    """Return the placement group that a run's worker has registered, and its state."""
    from ray.util.placement_group import placement_group_table

    if group_id := ray_compat.kv_get(kv_key(f"{name}/place")):
        group = ray_compat.placement_group(group_id)
        return group, placement_group_table(group).get("state")
    return None


def required_resources(resources: Any) -> str:
    """Return in words what the workers of `experiment.resources` need at least."""
    amounts = {
        "CPU": resources.cpus_per_worker,
        "GPU": resources.gpus_per_worker,
        "GiB": resources.memory_gb,
    }
    each = [f"{amount:g} {name}" for name, amount in amounts.items() if amount]
    return f"{resources.min_workers or resources.workers} worker(s) x {' and '.join(each)}"


def available_resources(resources: Any) -> str:
    """Return in words how much is free in the cluster of what `experiment.resources` asks for."""
    import ray

    total: dict[str, Any] = ray.cluster_resources()
    free: dict[str, Any] = ray.available_resources()
    texts = [
        f"{free.get(name, 0):g} of {total[name]:g} {name}"
        for name in ("CPU", "GPU")
        if total.get(name)
    ]
    if resources.memory_gb:
        gib = [found.get("memory", 0) / 2**30 for found in (free, total)]
        texts.append(f"{gib[0]:.1f} of {gib[1]:.1f} GiB")
    return " and ".join(texts)
