"""The files and environment variables that are handed over with a submitted job."""

import fnmatch
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aml.errors import UserError
from aml.own_classes import names_file, names_own_class
from orchestrator import utils
from orchestrator.utils import looks_secret

if TYPE_CHECKING:
    from orchestrator.config import Experiment

LOCAL = "http://127.0.0.1:8265"
"""The dashboard of a cluster on this machine."""

NEVER = (
    "/.git",
    "/.venv",
    "/runs",
    "/data",
    "__pycache__",
    ".*_cache",
    "*.egg-info",
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    ".netrc",
    ".gitignore",
    ".rayignore",
)
"""Never uploaded, whatever the ignore files say.

A leading slash means the top-level folder of the project only.
"""

LIMIT_MB = 100
"""Ray's own limit for a package, in MiB."""

BY_REFERENCE = ("MLFLOW_TRACKING_URI", "AWS_", "GOOGLE_", "AZURE_", "HF_")
"""Beginnings of variable names that a job takes from where its cluster runs."""

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""The variable with the seconds between the stop of a job and its SIGKILL, by default 3.

Meanwhile the training under way is saved.
"""


@dataclass(frozen=True)
class Package:
    """The files of a folder that are uploaded."""

    root: Path
    files: list[Path]
    """Paths relative to root."""
    left_out: list[str]
    """Names in root, or paths below it, that are not uploaded."""
    installed: dict[Path, Path] = field(default_factory=dict)
    """Files of installed packages that are uploaded too: path in the package to path here."""

    @property
    def sources(self) -> dict[Path, Path]:
        """Return for each uploaded path the file on this machine."""
        return {file: self.root / file for file in self.files} | self.installed

    @property
    def size(self) -> int:
        """Bytes of all files, not compressed."""
        return sum(source.stat().st_size for source in self.sources.values())

    def copy_to(self, folder: Path) -> None:
        """Copy every uploaded file to its place below `folder`."""
        for file, source in self.sources.items():
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def with_installed(self, site: Path) -> "Package":
        """Return this package with the code that the job runs, which `root` does not hold.

        Args:
            site: The folder in which the packages `aml` and `orchestrator` are installed.
        """
        found = {
            path.relative_to(site): path
            for name in ("aml", "orchestrator")
            for path in sorted((site / name).rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }
        return replace(self, installed=found)


def package_working_dir(root: Path, limit_mb: float = LIMIT_MB) -> Package:
    """Return the files below a folder that a job gets.

    Args:
        root: the folder of the project.
        limit_mb: the most that the package may hold, in MiB.

    Returns:
        All files that neither NEVER nor the .gitignore or .rayignore of the folder names.

    Raises:
        UserError: the package is larger than the limit.
    """
    patterns = _left_out_patterns(root)
    files: list[Path] = []
    left_out: list[str] = []
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        for name in sorted(folders):
            if ignored(here / name, patterns):
                folders.remove(name)
                left_out.append(str(here / name))
        for name in sorted(names):
            if ignored(here / name, patterns):
                left_out.append(str(here / name))
            elif (Path(folder) / name).is_file():
                files.append(here / name)
    package = Package(root, files, sorted(p for p in left_out if not p.endswith("__pycache__")))
    if package.size > limit_mb * 2**20:
        raise UserError(_too_large(package, limit_mb))
    return package


def _too_large(package: Package, limit_mb: float) -> str:
    sizes: dict[str, int] = {}
    for file in package.files:
        top = file.parts[0]
        sizes[top] = sizes.get(top, 0) + (package.root / file).stat().st_size
    largest = max(sizes, key=lambda top: sizes[top])
    return (
        f"the package would be {package.size / 2**20:.1f} MB, more than {limit_mb:g} MB; "
        f"{largest} alone is {sizes[largest] / 2**20:.1f} MB: "
        "name what a job does not need in .rayignore"
    )


def refuse_files_left_behind(experiment: "Experiment", root: Path) -> None:
    """Refuse a class of one's own whose file a job would not get.

    Args:
        experiment: Names classes in model.name, aml.mode and search.arms.
        root: The folder that is uploaded, which is the job's current folder.

    Raises:
        UserError: A file lies outside the folder, is not named relative to it, or is left out.
    """
    patterns = _left_out_patterns(root)
    names = [experiment.model["name"], experiment.aml.mode, *experiment.search.arms]
    for name in names:
        if not (names_own_class(name) and names_file(name)):
            continue
        file = Path(name.rpartition(":")[0])
        inside = not file.is_absolute() and ".." not in file.parts and (root / file).is_file()
        if not inside:
            raise UserError(
                f"{file} of {name} is not a file in {root}, whose files the job gets; copy it "
                "there and name it relative to that folder"
            )
        if any(ignored(path, patterns) for path in (file, *file.parents[:-1])):
            raise UserError(
                f"{file} of {name} is not uploaded: .gitignore, .rayignore or the project's own "
                "rules leave it out; move it, or change .rayignore"
            )


def _left_out_patterns(root: Path) -> list[str]:
    """Return the patterns of what is never uploaded from a folder."""
    return [*NEVER, *_patterns(root / ".gitignore"), *_patterns(root / ".rayignore")]


def ignored(path: Path, patterns: list[str]) -> bool:
    """Return whether a pattern names a path.

    Args:
        path: relative to the folder of the project.
        patterns: a pattern with a slash names a place from the top (/data, a/b), another one a name
            in any folder (*.pem).
    """
    for pattern in patterns:
        text = str(path) if "/" in pattern else path.name
        if fnmatch.fnmatch(text, pattern.lstrip("/")):
            return True
    return False


def _patterns(file: Path) -> list[str]:
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return [
        line.strip().rstrip("/")
        for line in lines
        if line.strip() and not line.startswith(("#", "!"))
    ]


def runtime_environment(named: list[str], *, secret_from_env: bool = False) -> dict[str, str]:
    """Return the environment variables that are handed over with a job.

    They are AMLRIS_HOME, the commit and whether the working tree differs from it, the seconds that
    a stop waits, and the named ones.

    Args:
        named: names of further variables.
        secret_from_env: hand variables over even where they look like secrets.

    Raises:
        UserError: a named variable is unset or looks like a secret, or AMLRIS_HOME would be lost.
    """
    sha, dirty = utils.git_state()
    found = {
        "AMLRIS_GIT_SHA": sha,
        "AMLRIS_GIT_DIRTY": "1" if dirty else "0",
        STOP_WAIT: os.environ.get(STOP_WAIT, "60"),
    }
    if home := os.environ.get("AMLRIS_HOME"):
        utils.check_address(home, "AMLRIS_HOME", results=True)
        if not (home.startswith(("/", "~")) or utils.is_address(home)):
            raise UserError(
                f"AMLRIS_HOME is {home!r}, which a job's throw-away folder would take with it; "
                "give it from / or ~, as the cluster's nodes see it, or as s3://BUCKET/PREFIX or "
                "gs://BUCKET/PREFIX"
            )
        found["AMLRIS_HOME"] = home
    for name in named:
        if name not in os.environ:
            raise UserError(
                f"--env {name}: {name.partition('=')[0]} is not set here; "
                "export it, or export it where the cluster runs and leave --env away"
            )
        if looks_secret(name, os.environ[name]) and not secret_from_env:
            raise UserError(
                f"--env {name} looks like a secret, and everybody who sees the cluster's jobs "
                "could read it; export it where the cluster runs, or add --secret-from-env"
            )
        found[name] = os.environ[name]
    return found


def stays_here(handed: dict[str, str]) -> list[str]:
    """Return the variables set here that a job takes from where its cluster runs instead."""
    return sorted(n for n in os.environ if n.startswith(BY_REFERENCE) and n not in handed)
