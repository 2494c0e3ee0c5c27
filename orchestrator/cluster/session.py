"""Ray on this machine: join the cluster that RAY_ADDRESS names, or start one."""

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
from typing import Any

from aml.errors import RunError, UserError
from orchestrator import utils
from orchestrator.cluster import ray_compat

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""Seconds between looks for a shutdown.

A spot machine is taken away half a minute to two minutes after its notice, a stopped job sooner.
"""

LOCAL = "local"
"""Address of a Ray that ray.init starts on this machine."""

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}

LATE = re.compile(
    r"tim(ed|e) ?out|deadline exceeded|failed to (start|connect to) gcs|cannot find the node",
    re.IGNORECASE,
)
"""Words in Ray's exceptions, of many kinds, where a part of it was not up in time."""

OTHERWISE = "or unset RAY_ADDRESS to start a Ray on this machine"


def set_ray_environment() -> None:
    """Set Ray's switches in the environment; to be called before Ray is first imported.

    Nothing is sent to Ray's makers, and trials stay in the folder in which they were started.
    """
    for key, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report is seen once in this interval
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the sweep has its own
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "1",
        # Ray gives a node 30 s to appear, which a busy machine may need for its imports alone.
        "RAY_raylet_start_wait_time_s": "60",
    }.items():
        os.environ.setdefault(key, value)
    if _address() == LOCAL:
        # Under `uv run` Ray would start each worker by another `uv run`, in a copy of the current
        # folder, and refuse where that holds no pyproject.toml. Here all workers have this Python.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def init_ray() -> None:
    """Join the cluster that RAY_ADDRESS names, or start a Ray on this machine.

    A Ray job has RAY_ADDRESS set; `auto` finds the cluster of this machine.

    Raises:
        UserError: the cluster that RAY_ADDRESS names cannot be joined.
        RunError: no Ray starts here in time.
    """
    set_ray_environment()
    address = _address()
    here = address == LOCAL
    with utils.announced_wait(
        "Ray to start on this machine" if here else f"the Ray at {address} to answer"
    ):
        _init_ray(address)


def _init_ray(address: str) -> None:
    """Join the cluster at an address, or start a Ray on this machine where it is `local`."""
    import ray

    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    ray_compat.set_levels(ray_compat.START_LOGGERS)
    if address != LOCAL:
        _join_cluster(address)
    else:
        _start_locally()
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler prints a C++ trace and may abort; a stopped job is to end like a command
        # that was interrupted at the keyboard.
        signal.signal(signal.SIGTERM, utils.stop_at_once)
    import ray.data

    ray_compat.set_levels(ray_compat.DATA_LOGGERS)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True


def _address() -> str:
    """Return what RAY_ADDRESS names; `local`, for a Ray of its own, where it names nothing.

    Without an address ray.init would look for a cluster that some `ray start` has noted on this
    machine, and wait for one that is gone.
    """
    return os.environ.get("RAY_ADDRESS") or LOCAL


def configure_tune() -> None:
    """Silence Tune's remarks on files and ways to resume that this project does not use.

    Tune also stops handing AWS keys to its trials: see `ray_compat.keep_credentials_from_trials`.
    """
    ray_compat.set_levels(ray_compat.TUNE_LOGGERS)
    ray_compat.keep_credentials_from_trials()


def _start_locally() -> None:
    """Start a Ray on this machine, a second time where a busy machine was late the first time.

    Raises:
        RunError: it is late the second time, too, or cannot start at all.
    """
    import ray

    for tries_left in (1, 0):
        with ray_compat.own_process_groups() as started:
            try:
                ray.init(LOCAL, include_dashboard=False, **QUIET)
                return
            except Exception as error:  # Ray raises almost any kind
                # What it leaves unfinished may not even be shut down.
                with contextlib.suppress(Exception):
                    ray.shutdown()
                _terminate(started)  # ray.shutdown does not know the processes of a failed start
                late = isinstance(error, TimeoutError) or LATE.search(str(error))
                if not late:
                    raise RunError(_start_failure(error)) from None
        if tries_left:
            logger.info("Ray did not start in time on this machine; starting it once more")
    raise RunError(
        "Ray did not start in time on this machine, tried twice; "
        f"its logs are in {_log_folder()}: give the same command when less runs here"
    )


def _start_failure(error: Exception) -> str:
    """Return a sentence about an error that starting Ray again would meet again."""
    why = " ".join(str(error).split())[:300] or type(error).__name__
    advice = "mend what they say, and give the same command again"
    if isinstance(error, OSError):
        advice = (
            f"make room in {ray_compat.ray_temp_folder()}, or name another folder, of a short "
            "path, by RAY_TMPDIR"
        )
    return f"Ray cannot start on this machine ({why}); its logs are in {_log_folder()}: {advice}"


def _log_folder() -> str:
    """Return the log folder of the Ray that this process started last."""
    folder = ray_compat.ray_temp_folder()
    sessions = sorted(folder.glob(f"session_*_{os.getpid()}"))  # their names begin with the time
    return str((sessions[-1] if sessions else folder / "session_latest") / "logs")


def _terminate(started: list[subprocess.Popen]) -> None:
    """End processes that Ray started, after five seconds by force, and the rest of their groups."""
    for process in started:
        process.terminate()
    deadline = time.monotonic() + 5
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _join_cluster(address: str) -> None:
    """Join a cluster, given its address.

    Raises:
        UserError: in one sentence what Ray would say in tracebacks, and of a cluster that is away
            only after more than a minute.
    """
    import ray

    _check_address(address)
    try:
        ray.init(address, **QUIET)
    except Exception as error:  # Ray raises almost any kind
        if address == "auto" and isinstance(error, ConnectionError):
            raise UserError(
                "RAY_ADDRESS is auto, but no Ray runs on this machine; "
                f"start it with `ray start --head`, {OTHERWISE}"
            ) from None
        why = f"{error.__cause__ or ''} {error}"
        if "AuthToken" in why or isinstance(error, ray.exceptions.AuthenticationError):
            raise UserError(
                f"the Ray at {address} refuses the token it was given, or was given none; "
                "export RAY_AUTH_MODE=token, with the token in RAY_AUTH_TOKEN or in "
                "~/.ray/auth_token"
            ) from None
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"the Ray at {address} cannot be joined ({why}); mend that, {OTHERWISE}"
        ) from None


def _check_address(address: str) -> None:
    """Raise UserError where an address is none that can be joined, or no process answers there."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS is {address}, which Ray Train and Tune cannot be driven through; "
            f"submit to http://HEAD:8265, {OTHERWISE}"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(
            f"RAY_ADDRESS is {address}; give HOST:PORT of a cluster's head, auto for the cluster "
            f"of this machine, {OTHERWISE}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"no Ray answers at {address}, which RAY_ADDRESS names ({error.strerror or error}); "
            f"start it, {OTHERWISE}"
        ) from None
