"""Ray itself: starting or joining it, what it holds, and whether a plan fits."""

import contextlib
import functools
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aml.errors import UserError
from orchestrator import interrupts

if TYPE_CHECKING:  # it imports torch, for which tasks that only decode need not wait
    from orchestrator.config import Experiment

DRIVER_CPUS = 0.01
"""What the driver process of a distributed trial asks for: it only waits."""

POLL_S = 1.0
"""A spot machine is given up half a minute to two minutes after its notice, a stopped job sooner."""

QUIET = {"log_to_driver": False, "logging_level": logging.WARNING}

DATA = "data"
"""The custom resource of nodes that are there to read and decode (`ray start --resources '{"data": 1}'`)."""


def settle_environment() -> None:
    """Ray's switches, before its first import. Nothing phones home; trials keep the folder they were started in."""
    for key, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report is seen once in so long
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the sweep has its own
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "1",
    }.items():
        os.environ.setdefault(key, value)


# ---- what a worker is told, and answers -----------------------------------------------------------------------------

LEAVING, ENDING = "this machine is to be taken away", "the command is asked to end"


@functools.cache
def notice() -> Callable[[], str]:
    """-> why this process should save what it trains now, or nothing: LEAVING (Ray drains its node, as on a spot machine's notice) or ENDING.

    Asked of Ray every POLL_S by one thread a process.
    """
    import ray
    from ray.experimental import internal_kv

    context, given = ray.get_runtime_context(), []
    node, key = context.get_node_id(), _key()

    def watch() -> None:
        while ENDING not in given:
            time.sleep(POLL_S)
            with contextlib.suppress(Exception):  # the head is away, or a Ray that tells no longer; then nothing is known
                if internal_kv._internal_kv_exists(key):
                    given.append(ENDING)
                elif not given and node in ray._private.state.state.get_draining_nodes():
                    given.append(LEAVING)

    threading.Thread(target=watch, name="notice", daemon=True).start()
    return lambda: given[-1] if given else ""


def answer(name: str) -> None:
    """Of a worker: what it trains has been saved since ENDING was given; nothing otherwise."""
    from ray.experimental import internal_kv

    if notice()() == ENDING:
        with contextlib.suppress(Exception):  # the driver waits no longer than it said
            internal_kv._internal_kv_put(_key(name), b"")


def keep_place(name: str) -> None:
    """Of a distributed trial's worker: which placement group it holds, for free_places."""
    import ray
    from ray.experimental import internal_kv

    if place := ray.util.get_current_placement_group():
        internal_kv._internal_kv_put(_key(f"{name}/place"), place.id.binary())


def free_places(names: list[str]) -> bool:
    """Take the places of these runs, and with them their workers.   -> whether there were workers in them

    Of distributed trials that are over: Ray Train leaves this to an actor that asks the dashboard, without which a trial that was stopped would
    hold its places for ever."""
    from ray.util.placement_group import remove_placement_group

    places = [place for name in names if (place := _place(name))]
    for group, state in places:
        if state != "REMOVED":
            remove_placement_group(group)
    return any(state == "CREATED" for _, state in places)


def waits(name: str) -> bool:
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


def wanted(resources) -> str:
    """What a run's workers need at least, for a person."""
    amounts = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker, "GiB": resources.memory_gb}
    each = [f"{amount:g} {name}" for name, amount in amounts.items() if amount]
    return f"{resources.min_workers or resources.workers} worker(s) x {' and '.join(each)}"


def room(resources) -> str:
    """What nobody holds of the cluster, of what is asked for, for a person."""
    import ray

    has, left = ray.cluster_resources(), ray.available_resources()
    found = [f"{left.get(name, 0):g} of {has[name]:g} {name}" for name in ("CPU", "GPU") if has.get(name)]
    if resources.memory_gb:
        found.append(f"{left.get('memory', 0) / 2**30:.1f} of {has.get('memory', 0) / 2**30:.1f} GiB")
    return " and ".join(found)


def have_saved(names: Callable[[], set[str]], seconds: float) -> None:
    """Of the driver: give ENDING to its workers and wait, at most so long, until each of the names has answered, or the driver has left Ray."""
    import ray
    from ray.experimental import internal_kv

    key, deadline = _key(), time.monotonic() + seconds
    internal_kv._internal_kv_put(key, b"")
    while ray.is_initialized() and time.monotonic() < deadline and not all(internal_kv._internal_kv_exists(key + n.encode()) for n in names()):
        time.sleep(0.1)
    for left in internal_kv._internal_kv_list(key) if ray.is_initialized() else ():
        internal_kv._internal_kv_del(left)


def _key(name: str = "") -> bytes:
    """Of the driver, whose Ray job its workers share."""
    import ray

    return f"amlris/{ray.get_runtime_context().get_job_id()}/{name}".encode()


# ---- Ray ------------------------------------------------------------------------------------------------------------


def start() -> None:
    """Join the cluster RAY_ADDRESS names (a Ray job has it set; `auto` finds one of this machine), else start one here. UserError where the one
    it names cannot be joined."""
    settle_environment()
    import ray

    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.WARNING)
    for name in ("ray._private.authentication.authentication_token_setup", "ray.data._internal.progress"):  # what is as it should be
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    # Without RAY_ADDRESS ray.init would look for a cluster some `ray start` has noted on this machine, and wait for one that is gone.
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        _join(address)
    else:
        with _groups_of_their_own():
            ray.init("local", include_dashboard=False, **QUIET)
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler prints a C++ trace and may abort; a job that is stopped ends as one interrupted at the keyboard does.
        signal.signal(signal.SIGTERM, interrupts.at_once)
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    for name in ("ray.data._internal.execution.streaming_executor_state", "ray.data.exceptions"):  # tracebacks of what is raised and told anyway
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().raise_original_map_exception = True


@contextlib.contextmanager
def _groups_of_their_own():
    """Processes that Ray starts are no part of this command's group. Who ends a command often signals all of its group (`timeout`, a batch system):
    Ray is still needed then, to save what is under way, and ends with the command."""
    from ray._private import services

    start = services.ConsolePopen
    services.ConsolePopen = functools.partial(start, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = start


def _join(address: str) -> None:
    """UserError for what Ray would say in tracebacks: of a cluster that is away only after more than a minute."""
    import ray

    other = "or unset RAY_ADDRESS to start a Ray on this machine"
    if address.startswith("ray://"):
        raise UserError(f"RAY_ADDRESS is {address}, which Ray Train and Tune cannot be driven through; submit to http://HEAD:8265, {other}")
    host, _, port = address.rpartition(":")
    if address != "auto":
        if not host or not port.isdigit():
            raise UserError(f"RAY_ADDRESS is {address}; give HOST:PORT of a cluster's head, auto for the cluster of this machine, {other}")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise UserError(f"no Ray answers at {address}, which RAY_ADDRESS names ({error.strerror or error}); start it, {other}") from None
    try:
        ray.init(address, **QUIET)
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        if address == "auto" and isinstance(error, ConnectionError):
            raise UserError(f"RAY_ADDRESS is auto, but no Ray runs on this machine; start it with `ray start --head`, {other}") from None
        why = f"{error.__cause__ or ''} {error}"
        if "AuthToken" in why or isinstance(error, ray.exceptions.AuthenticationError):
            raise UserError(
                f"the Ray at {address} refuses the token it was given, or was given none; export RAY_AUTH_MODE=token, with the token in "
                "RAY_AUTH_TOKEN or in ~/.ray/auth_token"
            ) from None
        raise UserError(f"the Ray at {address} cannot be joined ({' '.join(str(error).split())[:300]}); mend that, {other}") from None


def quiet_tune() -> None:
    """Tune looks for result files of its own loggers, which are off, and names its own way to resume: the ledger has and does both."""
    for name in ("ray.tune.analysis.experiment_analysis", "ray.tune.tune", "ray.tune.search.searcher"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("ray.tune.execution.experiment_state", "ray.train._internal.syncer"):  # its snapshot, which nobody reads, on a full disk
        logging.getLogger(name).setLevel(logging.CRITICAL)


def keep_keys_from_tune() -> None:
    """Tune would hand AWS keys to its trials in their runtime environment, which Ray writes to its log; each node has its own instead."""
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}


STORE_MOST = 200e9
"""Bytes that Ray's object store takes at most; it takes 30 % of a smaller machine's memory."""


def capacity() -> list[dict[str, float]]:
    """What each node of the cluster holds, or this machine where no Ray runs yet: {"CPU", "GPU", "memory" in bytes}."""
    settle_environment()
    import ray

    if ray.is_initialized():
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [{name: found.get(name, 0) for name in ("CPU", "GPU", "memory")} for found in alive]
    import torch

    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return [{"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count(), "memory": physical - min(0.3 * physical, STORE_MOST)}]


def planned() -> list[dict[str, float]]:
    """The same of where a command would run: the cluster RAY_ADDRESS names, which is joined to be asked, else this machine."""
    if os.environ.get("RAY_ADDRESS"):
        start()
    return capacity()


def together(nodes: list[dict[str, float]]) -> dict[str, float]:
    """What all nodes hold."""
    return {name: sum(node[name] for node in nodes) for name in ("CPU", "GPU", "memory")}


def data_tasks() -> dict:
    """What tasks that read and decode ask for besides CPUs: a place on the nodes started for them, where the cluster has any."""
    import ray

    return {"resources": {DATA: 0.001}} if ray.cluster_resources().get(DATA) else {}


def on_this_node() -> dict:
    """What tasks ask for that need files of the driver's machine: its node, though it may hold no CPUs for others."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)}


def on_a_worker(function: Callable, *arguments, wanted: dict[str, float], seconds: float):
    """function(*arguments) in a task that has what a worker has; None where no Ray has been joined, the nodes that are up have no room for it, or
    it fails or takes longer than `seconds`. No node is started for it."""
    import ray

    if not ray.is_initialized() or any(ray.available_resources().get(name, 0) < amount for name, amount in wanted.items()):
        return None
    how = {"num_cpus": wanted.get("CPU", 0), "num_gpus": wanted.get("GPU", 0), "memory": wanted.get("memory"), "max_retries": 0}
    task = ray.remote(**how)(function).remote(*arguments)
    try:
        return ray.get(task, timeout=seconds)
    except ray.exceptions.RayError:
        ray.cancel(task, force=True)
        return None


def idle_gpus(experiment: "Experiment", nodes: list[dict[str, float]], *, sweep: bool = True) -> str:
    """That a run leaves GPUs unused, or nothing."""
    have = together(nodes)["GPU"]
    if have < 1 or experiment.resources.gpus_per_worker:
        return ""
    share = ", or 0.25 for four trials on each" if sweep and experiment.resources.workers == 1 else ""
    return f"resources.gpus_per_worker is 0: training runs on CPUs, and {have:g} GPU stay idle; give 1{share}"


@dataclass(frozen=True)
class Placement:
    """How many trials run at a time, and why."""

    concurrent: int
    resources: dict[str, float]
    """Of one worker, as Ray takes them."""
    arithmetic: str


def of_worker(resources) -> dict[str, float]:
    """What one worker asks Ray for: CPU, and GPU and memory (bytes) where it wants any."""
    wanted = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker, "memory": (resources.memory_gb or 0) * 2**30}
    return {name: amount for name, amount in wanted.items() if amount}


def slots(node: dict[str, float], wanted: dict[str, float]) -> int:
    """Workers that fit on a node. A part of a GPU lies on one GPU: of two GPUs, each holds one worker of 0.6."""

    def whole(have: float, want: float) -> int:
        return int(have / want + 1e-9)  # 1 // 0.1 is 9

    fits = [whole(node[name], want) for name, want in wanted.items() if name != "GPU" or want >= 1]
    share = wanted.get("GPU", 1)
    return min(fits + ([int(node["GPU"]) * whole(1, share)] if share < 1 else []))


def place(experiment: "Experiment", nodes: list[dict[str, float]], *, sweep: bool = True) -> Placement:
    """Trials of a sweep, or the one run of `train`, that fit side by side. UserError, with the sum, where not even one does."""
    r = experiment.resources
    driver = DRIVER_CPUS if sweep and not r.light else 0.0
    workers, wanted = r.min_workers or r.workers, of_worker(r)
    cpus = workers * r.cpus_per_worker + driver
    total = together(nodes)
    fits = min(sum(slots(node, wanted) for node in nodes) // workers, int(total["CPU"] / cpus + 1e-9))
    needs = f"{workers} worker(s) x {r.cpus_per_worker:g} CPU" + (f" + {driver:g} for the driver" if driver else "") + f" = {cpus:g} CPU"
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
    return Placement(concurrent, wanted, f"a trial needs {needs}; the cluster has {has}: {fits} fit, {concurrent} run at a time")
