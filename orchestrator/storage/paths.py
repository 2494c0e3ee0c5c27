"""Where results lie: the storage root, its working folder for a bucket, and paths that any node
understands.
"""

import hashlib
import os
from pathlib import Path

from orchestrator.storage import uri as uri_module
from orchestrator.storage.uri import ADDRESS, is_address, join_uri


def storage_root(configured: str | None = None) -> Path:
    """Absolute folder of results: the configured one, AMLRIS_HOME, runs/ here; ~/amlris in a Ray job, whose folder is thrown away.

    Of an s3:// address: the folder this machine works in; orchestrator.mirror keeps the two in step.
    """
    given = configured or os.environ.get("AMLRIS_HOME")
    if uri_module.is_address(given):
        return working_root(given)
    if given:
        return Path(given).expanduser().absolute()
    in_job = "RAY_JOB_ID" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return Path("~/amlris").expanduser() if in_job else Path("runs").absolute()


def working_root(uri: str) -> Path:
    """This machine's folder for a root in a bucket. UserError: the address holds keys."""
    from orchestrator.storage.uri import refuse_keys

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
    """The working root that a path is in or is; None: it is in no bucket."""
    path = Path(path).absolute()
    return next((p for p in (path, *path.parents) if (p / ADDRESS).is_file()), None)


def bucket_of(path: Path) -> str | None:
    """The address of a path of a working root; None: it is in no bucket."""
    root = root_of(path)
    return (
        join_uri(
            (root / ADDRESS).read_text("utf-8"), Path(path).absolute().relative_to(root).as_posix()
        )
        if root
        else None
    )


def to_uri(path: Path) -> str:
    """A path as `here` on any node understands it: ROOT#INNER where it is mirrored, itself where every node must see it."""
    root = root_of(path)
    return (
        f"{(root / ADDRESS).read_text('utf-8')}#{Path(path).absolute().relative_to(root).as_posix()}"
        if root
        else str(path)
    )


def local_path(text: str) -> Path:
    """The path on this machine of what `portable` made."""
    uri, mark, inner = text.partition("#")
    return working_root(uri) / inner if mark and is_address(uri) else Path(text)
