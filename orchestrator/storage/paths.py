"""Places of results: storage root, addresses and working folders of buckets, paths for any node."""

import hashlib
import os
from pathlib import Path

from aml.errors import UserError

ADDRESS = "bucket.txt"
"""Name of the file in a working root that holds the address of its bucket."""


def is_address(text: str | Path | None) -> bool:
    """Return whether a text is the address of a place in a bucket."""
    return str(text or "").startswith("s3://")


def join_uri(uri: str, *names: str) -> str:
    """Return the address of a place below another one; the names go before its `?query`."""
    base, mark, query = uri.partition("?")
    return "/".join([base.rstrip("/"), *(n for n in names if n not in ("", "."))]) + mark + query


def refuse_keys(uri: str) -> None:
    """Check that an address holds no keys.

    Raises:
        UserError: it does; the message does not repeat them.
    """
    place = uri.partition("://")[2].partition("/")[0]
    if "@" in place:
        raise UserError(
            f"the address of {place.rpartition('@')[2]} holds keys, and addresses are logged; "
            "export AWS_ACCESS_KEY_ID and the like instead"
        )


def storage_root(configured: str | None = None) -> Path:
    """Return the absolute folder of results.

    This is the configured one, else AMLRIS_HOME, else `runs` in the current folder, or `~/amlris`
    in a Ray job, whose current folder is thrown away with the job. For an s3:// address it is the
    folder in which this machine works; `SyncedFolder` keeps the folder and the bucket in step.
    """
    given = configured or os.environ.get("AMLRIS_HOME")
    if given and is_address(given):
        return working_root(given)
    if given:
        return Path(given).expanduser().absolute()
    in_job = "RAY_JOB_ID" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return Path("~/amlris").expanduser() if in_job else Path("runs").absolute()


def working_root(uri: str) -> Path:
    """Return this machine's folder for a storage root in a bucket, made where it is missing.

    Raises:
        UserError: the address holds keys.
    """
    refuse_keys(uri)
    uri = join_uri(uri)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = (cache / "amlris" / hashlib.sha256(uri.encode()).hexdigest()[:16]).absolute()
    if not (root / ADDRESS).exists():
        root.mkdir(parents=True, exist_ok=True)
        draft = root / f"{ADDRESS}.{os.getpid()}"
        draft.write_text(uri, "utf-8")
        os.replace(draft, root / ADDRESS)
    return root


def root_of(path: Path) -> Path | None:
    """Return the working root that contains or is a path; None where the path is in no bucket."""
    path = Path(path).absolute()
    return next((p for p in (path, *path.parents) if (p / ADDRESS).is_file()), None)


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
