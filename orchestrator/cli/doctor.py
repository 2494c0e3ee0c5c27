"""Commands about the surroundings: the MLflow UI, and what this machine has."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from orchestrator import storage
from orchestrator.storage import storage_root

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


def ui(host: str, port: int, say) -> int:
    """Serve the store in use until interrupted."""
    from orchestrator.tracking import end_lost, tracking_uri
    from orchestrator.utils import redact

    uri = tracking_uri(None, storage_root())
    for text in end_lost(storage_root()):
        say(text)
    say(f"MLflow UI of {redact(uri)} on http://{host}:{port}")
    # One process: it is for one person, and the supervisor of several kills those that a busy machine keeps waiting for 5 s.
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        host,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    if uri.startswith("http"):
        say("that is a server already: open it in a browser")
        return 0
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:  # its ordinary end
        return 0


def doctor(say) -> int:
    """A line a finding.   -> 0 where nothing is missing"""
    missing = 0
    say(f"python        {sys.version.split()[0]}")
    for package in PACKAGES:
        try:
            say(f"{package:13} {version(package)}")
        except PackageNotFoundError:
            missing += 1
            say(f"{package:13} MISSING: install requirements.txt (make env)")
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    say(f"GPU           {', '.join(devices) if devices else 'none: training runs on the CPU'}")
    say(f"CPU           {os.cpu_count()} cores")
    root = storage_root()
    place = next(p for p in (root, *root.parents) if p.exists())
    writable = os.access(place, os.W_OK)
    missing += not writable
    say(
        f"storage       {root} ({'writable' if writable else 'NOT WRITABLE: set AMLRIS_HOME'}, {shutil.disk_usage(place).free / 2**30:.0f} GB free)"
    )
    if bucket := storage.bucket_of(root):
        problem = storage.bucket_problem(root)
        missing += bool(problem)
        say(f"bucket        {problem or f'{bucket} reachable'}")
    say(
        f"Ray           {os.environ.get('RAY_ADDRESS') or 'no RAY_ADDRESS: a local one is started when needed'}"
    )
    problem = store_problem(root)
    missing += bool(problem)
    say(f"tracking      {problem or 'reachable'}")
    return 1 if missing else 0


def store_problem(root) -> str:
    """Why the tracking store cannot be used, or nothing."""
    from orchestrator.tracking import tracking_uri
    from orchestrator.utils import redact

    uri = tracking_uri(None, root)
    if uri.startswith("sqlite"):
        return ""
    import urllib.request

    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=5)  # noqa: S310 (the user's own tracking server)
    except OSError as error:
        return f"{redact(uri)} does not answer ({redact(str(error))}): runs go on, what it misses is kept on disk"
    return ""
