"""Placement groups of distributed trials: registered by workers, removed for the next trial."""

from orchestrator.cluster.shutdown import _key


def register_placement_group(name: str) -> None:
    """Of a distributed trial's worker: which placement group it holds, for free_places."""
    import ray
    from ray.experimental import internal_kv

    if place := ray.util.get_current_placement_group():
        internal_kv._internal_kv_put(_key(f"{name}/place"), place.id.binary())


def remove_placement_groups(names: list[str]) -> bool:
    """Take the places of these runs, and with them their workers.   -> whether there were workers in them

    Of distributed trials that are over: Ray Train leaves this to an actor that asks the dashboard, without which a trial that was stopped would
    hold its places for ever."""
    from ray.util.placement_group import remove_placement_group

    places = [place for name in names if (place := _place(name))]
    for group, state in places:
        if state != "REMOVED":
            remove_placement_group(group)
    return any(state == "CREATED" for _, state in places)


def is_pending(name: str) -> bool:
    """Whether a distributed run of this driver has no workers in place: there was no room for them yet, or it was lost."""
    place = _place(name)
    return not place or place[1] != "CREATED"


def _place(name: str) -> tuple[object, str] | None:
    """The placement group that a run's worker has noted, and its state."""
    from ray._raylet import PlacementGroupID
    from ray.experimental import internal_kv
    from ray.util.placement_group import PlacementGroup, placement_group_table

    if noted := internal_kv._internal_kv_get(_key(f"{name}/place")):
        group = PlacementGroup(PlacementGroupID(noted))
        return group, placement_group_table(group).get("state")
    return None


def required_resources(resources) -> str:
    """What a run's workers need at least, for a person."""
    amounts = {
        "CPU": resources.cpus_per_worker,
        "GPU": resources.gpus_per_worker,
        "GiB": resources.memory_gb,
    }
    each = [f"{amount:g} {name}" for name, amount in amounts.items() if amount]
    return f"{resources.min_workers or resources.workers} worker(s) x {' and '.join(each)}"


def available_resources(resources) -> str:
    """What nobody holds of the cluster, of what is asked for, for a person."""
    import ray

    has, left = ray.cluster_resources(), ray.available_resources()
    found = [
        f"{left.get(name, 0):g} of {has[name]:g} {name}" for name in ("CPU", "GPU") if has.get(name)
    ]
    if resources.memory_gb:
        found.append(
            f"{left.get('memory', 0) / 2**30:.1f} of {has.get('memory', 0) / 2**30:.1f} GiB"
        )
    return " and ".join(found)
