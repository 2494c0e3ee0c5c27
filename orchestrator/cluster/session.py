"""Ray itself: starting or joining it, what it holds, and whether a plan fits."""

import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aml.errors import RunError, UserError
from orchestrator import utils

if TYPE_CHECKING:  # it imports torch, for which tasks that only decode need not wait
    pass

POLL_S = 1.0

"""A spot machine is given up half a minute to two minutes after its notice, a stopped job sooner."""

QUIET = {"log_to_driver": False, "logging_level": logging.WARNING}


def set_ray_environment() -> None:
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
        "RAY_raylet_start_wait_time_s": "60",  # Ray gives a node 30 s to appear, which a busy machine may need for its imports
    }.items():
        os.environ.setdefault(key, value)


def init_ray(say: Callable[[str], object] = print) -> None:
    """Join the cluster RAY_ADDRESS names (a Ray job has it set; `auto` finds one of this machine), else start one here. UserError where the one
    it names cannot be joined, RunError where none comes up here in time."""
    set_ray_environment()
    import ray

    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.WARNING)
    for name in (
        "ray._private.authentication.authentication_token_setup",
        "ray.data._internal.progress",
    ):  # what is as it should be
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    # Without RAY_ADDRESS ray.init would look for a cluster some `ray start` has noted on this machine, and wait for one that is gone.
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        _join(address)
    else:
        _start_here(say)
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler prints a C++ trace and may abort; a job that is stopped ends as one interrupted at the keyboard does.
        signal.signal(signal.SIGTERM, utils.stop_at_once)
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    for name in (
        "ray.data._internal.execution.streaming_executor_state",
        "ray.data.exceptions",
    ):  # tracebacks of what is raised and told anyway
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().raise_original_map_exception = True


LATE = re.compile(
    r"tim(ed|e) ?out|deadline exceeded|failed to (start|connect to) gcs|cannot find the node",
    re.IGNORECASE,
)

"""What Ray says, in exceptions of many kinds, where a part of it was not up in time."""


def _start_here(say: Callable[[str], object]) -> None:
    """Start a Ray on this machine, once more where it does not come up in time, as on one that is busy. RunError where it does not then either."""
    import ray

    for tries_left in (1, 0):
        with _groups_of_their_own() as started:
            try:
                ray.init("local", include_dashboard=False, **QUIET)
                return
            except Exception as error:
                ray.shutdown()
                _end(started)  # shutdown knows nothing of what a start that failed has begun
                if not (isinstance(error, TimeoutError) or LATE.search(str(error))):
                    raise
        if tries_left:
            say("Ray did not start in time on this machine; starting it once more")
    raise RunError(
        f"Ray did not start in time on this machine, tried twice; its logs are in {_logs()}: give the same command when less runs here"
    )


def _logs() -> str:
    """The log folder of the Ray this process started last."""
    from ray._common.utils import get_default_ray_temp_dir

    folder = Path(get_default_ray_temp_dir())
    of_ours = sorted(folder.glob(f"session_*_{os.getpid()}"))  # their names begin with the time
    return str((of_ours[-1] if of_ours else folder / "session_latest") / "logs")


def _end(started: list[subprocess.Popen]) -> None:
    """Take down what Ray has started: asked first, killed after some seconds, and with it the rest of its groups."""
    for process in started:
        process.terminate()
    deadline = time.monotonic() + 5
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _groups_of_their_own():
    """Processes that Ray starts are no part of this command's group. Who ends a command often signals all of its group (`timeout`, a batch system):
    Ray is still needed then, to save what is under way, and ends with the command.   -> a list of them, as they are started"""
    from ray._private import services

    start, started = services.ConsolePopen, []

    def popen(*arguments, **how):
        started.append(start(*arguments, process_group=0, **how))
        return started[-1]

    services.ConsolePopen = popen
    try:
        yield started
    finally:
        services.ConsolePopen = start


def _join(address: str) -> None:
    """UserError for what Ray would say in tracebacks: of a cluster that is away only after more than a minute."""
    import ray

    other = "or unset RAY_ADDRESS to start a Ray on this machine"
    if address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS is {address}, which Ray Train and Tune cannot be driven through; submit to http://HEAD:8265, {other}"
        )
    host, _, port = address.rpartition(":")
    if address != "auto":
        if not host or not port.isdigit():
            raise UserError(
                f"RAY_ADDRESS is {address}; give HOST:PORT of a cluster's head, auto for the cluster of this machine, {other}"
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise UserError(
                f"no Ray answers at {address}, which RAY_ADDRESS names ({error.strerror or error}); start it, {other}"
            ) from None
    try:
        ray.init(address, **QUIET)
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        if address == "auto" and isinstance(error, ConnectionError):
            raise UserError(
                f"RAY_ADDRESS is auto, but no Ray runs on this machine; start it with `ray start --head`, {other}"
            ) from None
        why = f"{error.__cause__ or ''} {error}"
        if "AuthToken" in why or isinstance(error, ray.exceptions.AuthenticationError):
            raise UserError(
                f"the Ray at {address} refuses the token it was given, or was given none; export RAY_AUTH_MODE=token, with the token in "
                "RAY_AUTH_TOKEN or in ~/.ray/auth_token"
            ) from None
        raise UserError(
            f"the Ray at {address} cannot be joined ({' '.join(str(error).split())[:300]}); mend that, {other}"
        ) from None


def quiet_tune() -> None:
    """Tune looks for result files of its own loggers, which are off, and names its own way to resume: the ledger has and does both."""
    for name in (
        "ray.tune.analysis.experiment_analysis",
        "ray.tune.tune",
        "ray.tune.search.searcher",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in (
        "ray.tune.execution.experiment_state",
        "ray.train._internal.syncer",
    ):  # its snapshot, which nobody reads, on a full disk
        logging.getLogger(name).setLevel(logging.CRITICAL)


def hide_credentials_from_tune() -> None:
    """Tune would hand AWS keys to its trials in their runtime environment, which Ray writes to its log; each node has its own instead."""
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE -= {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")
    }
