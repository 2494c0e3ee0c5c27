"""Checks that the nodes of a cluster see the folder which results go to."""

import time
import uuid
from pathlib import Path

from aml.errors import UserError
from orchestrator import storage, utils

SEEN_S = 5.0
"""Seconds that a network's file system may take to show a file that another node has written."""

ANSWER_S = 60.0
"""Seconds to wait for the nodes; one that gives no answer is left to Ray."""


def check_shared_folder(folder: Path) -> None:
    """Refuse a local results folder that a node of the cluster does not see.

    Its trials would write to a disk of their own, which neither the driver nor a report reads. A
    folder whose copy is in a bucket needs no sharing, and a single node none either.

    Args:
        folder: The results folder, or one in it.

    Raises:
        UserError: Which nodes do not see it, and what to do.
    """
    if storage.bucket_of(folder):
        return
    import ray

    own = ray.get_runtime_context().get_node_id()
    marker = folder / f".seen-{uuid.uuid4().hex}"
    utils.atomic_write(marker, b"")
    try:
        blind = hosts_without(marker, own)
    finally:
        marker.unlink(missing_ok=True)
    if blind:
        raise UserError(
            f"results go to {folder}, which {', '.join(blind)} of the cluster cannot see: what is "
            "trained there would stay there; set AMLRIS_HOME (or storage.root) to a folder that "
            "all nodes share, or to s3:// or gs://BUCKET/PREFIX"
        )


def hosts_without(marker: Path, own: str) -> list[str]:
    """Return the names of nodes on which a file does not exist.

    Args:
        marker: The file.
        own: The id of the node that wrote it, which is not asked.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(_exists)
    pending = {}
    for node in ray.nodes():
        resources = node["Resources"]
        can_train = resources.get("CPU") or resources.get("GPU")
        if not node["Alive"] or node["NodeID"] == own or not can_train:
            continue
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": strategy}
        pending[task.options(**options).remote(str(marker), SEEN_S)] = node["NodeManagerHostname"]
    if not pending:
        return []
    answered, _ = ray.wait(list(pending), num_returns=len(pending), timeout=ANSWER_S)
    blind = []
    for ref in answered:
        try:
            blind += [] if ray.get(ref) else [pending[ref]]
        except ray.exceptions.RayError:  # the node left meanwhile
            continue
    return sorted(blind)


def _exists(path: str, patience_s: float) -> bool:
    """Return whether this node sees a file within so many seconds."""
    deadline = time.monotonic() + patience_s
    while not Path(path).exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.5)
    return True
