"""Places of results: storage root, addresses and working folders of buckets, paths for any node."""

import hashlib
import os
from pathlib import Path

from aml.files import DRAFT, check_folder, check_kind_of_folder, home_expanded, writing
from orchestrator.utils import check_address, is_address

ADDRESS = "bucket.txt"
"""Name of the file in a working root that holds the address of its bucket."""


def join_uri(uri: str, *names: str) -> str:
    """Return the address of a place below another one; the names go before its `?query`."""
    base, mark, query = uri.partition("?")
    return "/".join([base.rstrip("/"), *(n for n in names if n not in ("", "."))]) + mark + query


def storage_root(configured: str | None = None) -> Path:
    """Return the absolute folder of results.

    This is the configured one, else AMLRIS_HOME, else `runs` in the current folder, or `~/amlris`
    in a Ray job, whose current folder is thrown away with the job. For the address of a bucket it
    is the folder in which this machine works; `SyncedFolder` keeps the folder and the bucket in
    step.

    Raises:
        UserError: the place is no folder, or an address that is not served.
    """
    given = configured or os.environ.get("AMLRIS_HOME")
    given_as = "storage.root" if configured else "AMLRIS_HOME"
    if given:
        check_address(given, given_as, results=True)
        if is_address(given):
            return working_root(given)
        return check_kind_of_folder(home_expanded(given), given_as)
    in_job = "RAY_JOB_ID" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return home_expanded("~/amlris") if in_job else Path("runs").absolute()


def working_root(uri: str) -> Path:
    """Return this machine's folder for a storage root in a bucket, made where it is missing.

    Raises:
        UserError: the address is not served, or holds keys.
        NotSaved: the folder cannot be made.
    """
    check_address(uri, results=True)
    uri = join_uri(uri)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = (cache / "amlris" / _digest(uri)).absolute()
    if not (root / ADDRESS).exists():
        with writing(root, len(uri)):
            root.mkdir(parents=True, exist_ok=True)
            draft = root / f"{ADDRESS}.{os.getpid()}{DRAFT}"
            draft.write_text(uri, "utf-8")
            os.replace(draft, root / ADDRESS)
    return root


def check_root(root: Path) -> None:
    """Check that results can be written below a storage root.

    Raises:
        UserError: the folder is read-only, or cannot be made.
        NotSaved: there is no room.
    """
    check_folder(root, "the folder of results (storage.root, AMLRIS_HOME)")


def root_of(path: Path) -> Path | None:
    """Return the working root that contains or is a path; None where the path is in no bucket.

    A file of the same name in another folder makes no working root of it.
    """
    path = Path(path).absolute()
    return next((p for p in (path, *path.parents) if _is_working_root(p)), None)


def _is_working_root(folder: Path) -> bool:
    try:
        return _digest((folder / ADDRESS).read_text("utf-8")) == folder.name
    except (OSError, ValueError):
        return False


def _digest(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def bucket_of(path: Path) -> str | None:
    """Return the address of a path below a working root; None where the path is in no bucket."""
    root = root_of(path)
    if not root:
        return None
    inner = Path(path).absolute().relative_to(root).as_posix()
    return join_uri((root / ADDRESS).read_text("utf-8"), inner)


def to_uri(path: Path) -> str:
    """Return a text from which `local_path` finds the path on any node.

    The text is `ROOT#INNER` for a path in a bucket, and the path itself elsewhere: there every node
    must see the same file system.
    """
    root = root_of(path)
    if not root:
        return str(path)
    inner = Path(path).absolute().relative_to(root).as_posix()
    return f"{(root / ADDRESS).read_text('utf-8')}#{inner}"


def local_path(text: str) -> Path:
    """Return the path on this machine for a text that `to_uri` made."""
    uri, mark, inner = text.partition("#")
    return working_root(uri) / inner if mark and is_address(uri) else Path(text)
