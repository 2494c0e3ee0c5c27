"""Requests to save and end, passed between the driver and those who train."""

import contextlib
import functools
import threading
import time
from collections.abc import Callable

from orchestrator.cluster.session import POLL_S

PREEMPTED, SHUTDOWN = "this machine is to be taken away", "the command is asked to end"


@functools.cache
def shutdown_notice() -> Callable[[], str]:
    """-> why this process should save what it trains now, or nothing: LEAVING (Ray drains its node, as on a spot machine's notice) or ENDING.

    Asked of Ray every POLL_S by one thread a process.
    """
    import ray
    from ray.experimental import internal_kv

    context, given = ray.get_runtime_context(), []
    node, key = context.get_node_id(), _key()

    def watch() -> None:
        while SHUTDOWN not in given:
            time.sleep(POLL_S)
            with contextlib.suppress(
                Exception
            ):  # the head is away, or a Ray that tells no longer; then nothing is known
                if internal_kv._internal_kv_exists(key):
                    given.append(SHUTDOWN)
                elif not given and node in ray._private.state.state.get_draining_nodes():
                    given.append(PREEMPTED)

    threading.Thread(target=watch, name="notice", daemon=True).start()
    return lambda: given[-1] if given else ""


def ack_shutdown(name: str) -> None:
    """Of a worker: what it trains has been saved since ENDING was given; nothing otherwise."""
    from ray.experimental import internal_kv

    if shutdown_notice()() == SHUTDOWN:
        with contextlib.suppress(Exception):  # the driver waits no longer than it said
            internal_kv._internal_kv_put(_key(name), b"")


def request_checkpoints(names: Callable[[], set[str]], seconds: float) -> None:
    """Of the driver: give ENDING to its workers and wait, at most so long, until each of the names has answered, or the driver has left Ray."""
    import ray
    from ray.experimental import internal_kv

    key, deadline = _key(), time.monotonic() + seconds
    internal_kv._internal_kv_put(key, b"")
    while (
        ray.is_initialized()
        and time.monotonic() < deadline
        and not all(internal_kv._internal_kv_exists(key + n.encode()) for n in names())
    ):
        time.sleep(0.1)
    for left in internal_kv._internal_kv_list(key) if ray.is_initialized() else ():
        internal_kv._internal_kv_del(left)


def _key(name: str = "") -> bytes:
    """Of the driver, whose Ray job its workers share."""
    import ray

    return f"amlris/{ray.get_runtime_context().get_job_id()}/{name}".encode()
