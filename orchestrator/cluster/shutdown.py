"""Requests to save a checkpoint before an end, between the driver and its workers.

They are passed through the key-value store of the cluster.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable

from orchestrator.cluster import ray_compat
from orchestrator.cluster.session import POLL_S

PREEMPTED = "this machine is to be taken away"

SHUTDOWN = "the command is asked to end"
"""Reasons of a request, as workers write them to their notes."""


@functools.cache
def shutdown_notice() -> Callable[[], str]:
    """Start to watch for a request to save, in one thread a process that asks Ray every `POLL_S`.

    Returns:
        A function that returns why this process should save what it trains now: PREEMPTED where Ray
        drains its node, as on the notice of a spot machine, SHUTDOWN where the driver asks for it,
        or an empty text.
    """
    import ray

    node = ray.get_runtime_context().get_node_id()
    key = kv_key()
    reasons: list[str] = []

    def watch() -> None:
        while SHUTDOWN not in reasons:
            time.sleep(POLL_S)
            # Nothing is known while the head is away, or from a Ray that has changed.
            with contextlib.suppress(Exception):
                if ray_compat.kv_exists(key):
                    reasons.append(SHUTDOWN)
                elif not reasons and ray_compat.is_draining(node):
                    reasons.append(PREEMPTED)

    threading.Thread(target=watch, name="notice", daemon=True).start()
    return lambda: reasons[-1] if reasons else ""


def ack_shutdown(name: str) -> None:
    """Tell the driver, after its shutdown request if any, that this worker saved a checkpoint.

    Args:
        name: of the run or trial.
    """
    if shutdown_notice()() == SHUTDOWN:
        with contextlib.suppress(Exception):  # the driver waits no longer than it said
            ray_compat.kv_put(kv_key(name))


def request_checkpoints(names: Callable[[], set[str]], seconds: float) -> set[str]:
    """Ask the driver's workers to save, and wait until all have answered or the driver leaves Ray.

    A busy machine may keep Ray from answering for a while, which is not the end of waiting.

    Args:
        names: returns the runs or trials whose answers are needed.
        seconds: to wait at most.

    Returns:
        The runs or trials that did not answer in time.
    """
    import ray

    key = kv_key()
    deadline = time.monotonic() + seconds
    is_asked = False
    missing = names()
    while ray.is_initialized() and time.monotonic() < deadline:
        with contextlib.suppress(Exception):  # Ray does not answer
            if not is_asked:
                ray_compat.kv_put(key)
                is_asked = True
            missing = {name for name in names() if not ray_compat.kv_exists(key + name.encode())}
            if not missing:
                break
        time.sleep(0.1)
    with contextlib.suppress(Exception):
        if ray.is_initialized():
            ray_compat.kv_delete_prefix(key)
    return missing


def kv_key(name: str = "") -> bytes:
    """Return a key of the driver, which is the same in its workers: they share its Ray job."""
    import ray

    return f"amlris/{ray.get_runtime_context().get_job_id()}/{name}".encode()
