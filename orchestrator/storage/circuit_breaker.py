"""Circuit breaker for requests to a bucket: after a failed one, optional requests fail at once."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aml.errors import Unreachable
from orchestrator.storage import paths
from orchestrator.storage.filesystem import is_bucket_error
from orchestrator.utils import redact

OPEN_S = 30.0
"""Seconds for which an unreachable bucket is not asked by whoever can do without its answer.

Background uploads go on trying meanwhile, and so are the first to learn that it answers again.
"""

_circuit_open_until: dict[Path, tuple[float, str]] = {}
"""{working root: (`time.monotonic()` until which its requests fail, reason)}, of this process."""


@contextmanager
def circuit_breaker(folder: Path, *, force: bool) -> Iterator[None]:
    """Run a block that asks the bucket of a folder, unless the bucket did not answer just now.

    Args:
        folder: a path below a working root.
        force: run the block even then.

    Raises:
        Unreachable: a request failed less than `OPEN_S` ago, and `force` is False.
    """
    root = _root(folder)
    open_until, why = _circuit_open_until.get(root, (0.0, ""))
    if not force and time.monotonic() < open_until:
        raise Unreachable(
            f"{redact(paths.bucket_of(folder))} is not asked for: "
            f"the bucket did not answer just now ({why})"
        )
    try:
        yield
    except Exception as error:
        if isinstance(error, Unreachable) or is_bucket_error(error):
            why = " ".join(redact(error).split())[:200]
            _circuit_open_until[root] = (time.monotonic() + OPEN_S, why)
        raise
    _circuit_open_until.pop(root, None)


def reset_circuit(folder: Path) -> None:
    """Let the next request to the bucket of a folder through."""
    _circuit_open_until.pop(_root(folder), None)


def _root(folder: Path) -> Path:
    return paths.root_of(folder) or folder
