"""One process at a time where two would spoil each other's work."""

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path):
    """Hold the folder itself (no lock file is left behind), waiting while another process does; one that dies lets go."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
