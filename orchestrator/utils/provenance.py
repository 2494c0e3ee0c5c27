"""Find the commit of the code that runs, and the processor that it runs on."""

import os
import platform
import subprocess
from pathlib import Path


def git_state() -> tuple[str, bool]:
    """Return the commit of this code, and whether the working tree differs from it.

    In a job both come from the variables that `submit` hands over. The commit is "unknown" where
    this file is in no repository, or in one that does not track it: an environment inside another
    project's repository is not to be taken for that project.
    """
    if "AMLRIS_GIT_SHA" in os.environ:
        return os.environ["AMLRIS_GIT_SHA"], os.environ.get("AMLRIS_GIT_DIRTY") == "1"
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False


def _git(*arguments: str) -> str:
    """Return what a git command prints in this file's folder."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def processor() -> str:
    """Return the model of this machine's processor and the instructions that torch uses of it.

    Both decide how sums are rounded.
    """
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, "") or platform.processor() or platform.machine()
    return f"{model} with {torch.backends.cpu.get_cpu_capability()}"
