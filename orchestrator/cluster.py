"""Ray itself: starting or joining it, what it holds, and whether a plan fits."""

import os
import signal
import threading
import warnings
from dataclasses import dataclass

from aml.errors import UserError
from orchestrator import interrupts
from orchestrator.config import Experiment

DRIVER_CPUS = 0.01
"""What the driver process of a distributed trial asks for: it only waits."""


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


def start() -> None:
    """Join the cluster RAY_ADDRESS names (a Ray job has it set; `auto` finds one of this machine), else start one here."""
    settle_environment()
    import logging

    import ray

    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    # Without RAY_ADDRESS ray.init would look for a cluster some `ray start` has noted on this machine, and wait for one that is gone.
    where = {} if "RAY_ADDRESS" in os.environ else {"address": "local", "include_dashboard": False}
    ray.init(log_to_driver=False, logging_level=logging.WARNING, **where)
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler prints a C++ trace and may abort; a job that is stopped ends as one interrupted at the keyboard does.
        signal.signal(signal.SIGTERM, interrupts.at_once)
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False


def quiet_tune() -> None:
    """Tune looks for result files of its own loggers, which are off, and names its own way to resume: the ledger has and does both."""
    import logging

    for name in ("ray.tune.analysis.experiment_analysis", "ray.tune.tune", "ray.tune.search.searcher"):
        logging.getLogger(name).setLevel(logging.ERROR)


def capacity() -> dict[str, float]:
    """CPUs and GPUs of the cluster, or of this machine where no Ray runs yet."""
    import ray

    if ray.is_initialized():
        found = ray.cluster_resources()
        return {"CPU": found.get("CPU", 0), "GPU": found.get("GPU", 0)}
    import torch

    return {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}


@dataclass(frozen=True)
class Placement:
    """How many trials run at a time, and why."""

    concurrent: int
    cpus: float
    """Of one trial."""
    gpus: float
    arithmetic: str


def place(experiment: Experiment, have: dict[str, float], *, sweep: bool = True) -> Placement:
    """Trials of a sweep, or the one run of `train`, that fit side by side. UserError, with the sum, where not even one does."""
    r = experiment.resources
    driver = DRIVER_CPUS if sweep and not r.light else 0.0
    cpus, gpus = r.workers * r.cpus_per_worker + driver, r.workers * r.gpus_per_worker
    sum_ = f"{r.workers} worker(s) x {r.cpus_per_worker:g} CPU" + (f" + {driver:g} for the driver" if driver else "") + f" = {cpus:g} CPU"
    if gpus:
        sum_ += f" and {r.workers} x {r.gpus_per_worker:g} = {gpus:g} GPU"
    if cpus > have["CPU"] or gpus > have["GPU"]:
        raise UserError(
            f"one {'trial' if sweep else 'run'} needs {sum_}, but the cluster has {have['CPU']:g} CPU and {have['GPU']:g} GPU; "
            "lower resources.workers, cpus_per_worker or gpus_per_worker, or add nodes"
        )
    fits = int(have["CPU"] // cpus) if not gpus else int(min(have["CPU"] // cpus, have["GPU"] // gpus + 1e-9))
    limit = experiment.search.max_concurrent or fits
    concurrent = max(1, min(fits, limit))
    text = f"a trial needs {sum_}; the cluster has {have['CPU']:g} CPU and {have['GPU']:g} GPU: {fits} fit, {concurrent} run at a time"
    return Placement(concurrent, cpus, gpus, text)
