"""Files and environment that a submitted job takes along."""

import fnmatch
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from aml.errors import UserError
from orchestrator import storage
from orchestrator.utils import looks_secret

LOCAL = "http://127.0.0.1:8265"

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

"""Never uploaded, whatever the ignore files say; a leading slash means the project's own folder only."""

LIMIT_MB = 100

"""Ray's own limit for a package."""

BY_REFERENCE = ("MLFLOW_TRACKING_URI", "AWS_", "HF_")

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"

"""What Ray leaves a job that is stopped before SIGKILL, 3 s otherwise: what is under way is saved meanwhile."""


@dataclass(frozen=True)
class Package:
    """What of a folder is uploaded."""

    root: Path
    files: list[Path]
    """Relative to root."""
    left_out: list[str]
    """Top-level names, or paths below, that stay here."""

    @property
    def size(self) -> int:
        """Bytes, not compressed."""
        return sum((self.root / f).stat().st_size for f in self.files)

    def copy_to(self, folder: Path) -> None:
        for file in self.files:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / file, target)


def package_working_dir(root: Path, limit_mb: float = LIMIT_MB) -> Package:
    """The files under `root` that neither NEVER nor its .gitignore or .rayignore names. UserError above the limit."""
    patterns = [
        *NEVER,
        *(line for name in (".gitignore", ".rayignore") for line in _patterns(root / name)),
    ]
    files, left_out = [], []
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        for name in sorted(folders):
            if ignored(here / name, patterns):
                folders.remove(name)
                left_out.append(str(here / name))
        files += [
            here / name
            for name in sorted(names)
            if (Path(folder) / name).is_file() and not ignored(here / name, patterns)
        ]
        left_out += [str(here / name) for name in sorted(names) if ignored(here / name, patterns)]
    made = Package(root, files, sorted(p for p in left_out if not p.endswith("__pycache__")))
    if made.size > limit_mb * 2**20:
        sizes: dict[str, int] = {}
        for file in files:
            sizes[file.parts[0]] = sizes.get(file.parts[0], 0) + (root / file).stat().st_size
        largest = max(sizes, key=sizes.get)
        raise UserError(
            f"the package would be {made.size / 2**20:.1f} MB, more than {limit_mb:g} MB; {largest} alone is {sizes[largest] / 2**20:.1f} MB: "
            f"name what a job does not need in .rayignore"
        )
    return made


def ignored(path: Path, patterns: list[str]) -> bool:
    """Whether a path relative to the project is named by a pattern: a name anywhere (*.pem), or a place from the top (/data, a/b)."""
    for pattern in patterns:
        anchored = "/" in pattern
        if (
            fnmatch.fnmatch(str(path), pattern.lstrip("/"))
            if anchored
            else fnmatch.fnmatch(path.name, pattern)
        ):
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
    """Variables that go along: AMLRIS_HOME, the commit and the dirty flag, how long a stop waits, and those named. UserError for one that is unset or looks secret."""
    sha, dirty = storage.git_state()
    found = {
        "AMLRIS_GIT_SHA": sha,
        "AMLRIS_GIT_DIRTY": "1" if dirty else "0",
        STOP_WAIT: os.environ.get(STOP_WAIT, "60"),
    }
    if home := os.environ.get("AMLRIS_HOME"):
        if not home.startswith(("/", "~", "s3://")):
            raise UserError(
                f"AMLRIS_HOME is {home!r}, which a job's throw-away folder would take with it; give it from / or ~, as the cluster's nodes see it, "
                "or as s3://BUCKET/PREFIX"
            )
        if home.startswith("s3://"):
            storage.refuse_keys(home)
        found["AMLRIS_HOME"] = home
    for name in named:
        if name not in os.environ:
            raise UserError(
                f"--env {name}: {name.partition('=')[0]} is not set here; export it, or export it where the cluster runs and leave --env away"
            )
        if looks_secret(name, os.environ[name]) and not secret_from_env:
            raise UserError(
                f"--env {name} looks like a secret, and everybody who sees the cluster's jobs could read it; "
                "export it where the cluster runs, or add --secret-from-env"
            )
        found[name] = os.environ[name]
    return found


def stays_here(handed: dict[str, str]) -> list[str]:
    """Names set here that a job takes from where its cluster runs."""
    return sorted(n for n in os.environ if n.startswith(BY_REFERENCE) and n not in handed)
