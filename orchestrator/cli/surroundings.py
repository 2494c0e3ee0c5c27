"""The MLflow UI of the store in use, and checks of what this machine has and reaches."""

import logging
import os
import shutil
import subprocess
import sys
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import aml
from orchestrator import storage, tracking
from orchestrator.utils import redact

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


def serve_mlflow_ui(host: str, port: int) -> int:
    """Serve the MLflow UI of the store in use until interrupted, and return its exit code.

    Runs whose process was lost are ended first.
    """
    root = storage.storage_root()
    uri = tracking.tracking_uri(None, root)
    for text in tracking.end_lost(root):
        logger.info(text)
    logger.info(f"MLflow UI of {redact(uri)} on http://{host}:{port}")
    if uri.startswith("http"):
        logger.info("that is a server already: open it in a browser")
        return 0
    # One worker: the UI is for one person, and MLflow's supervisor of several kills those that
    # a busy machine keeps waiting for 5 s.
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:  # how a person ends it
        return 0


def check_surroundings() -> int:
    """Print one line for each thing checked; return 0 where nothing is missing, else 1."""
    code = Path(aml.__file__).parents[1]
    kind = "a checkout" if (code / "pyproject.toml").exists() else "installed"
    logger.info(f"amlris        {aml.__version__}, {kind}: {code}")
    logger.info(f"python        {sys.version.split()[0]}")
    missing = _check_packages()
    import torch

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
    uri = tracking.tracking_uri(None, root)
    if uri.startswith("sqlite"):
        return ""
    try:
        # the user's own tracking server
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=5)  # noqa: S310
    except OSError as error:
        return (
            f"{redact(uri)} does not answer ({redact(str(error))}): runs go on, what it misses "
            "is kept on disk"
        )
    return ""
