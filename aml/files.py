"""Word messages about files that could not be written, without importing torch."""

import shutil
from pathlib import Path


def write_failure(path: Path, error: Exception, wanted: int) -> str:
    """Return the message for a file or folder that could not be written.

    Args:
        path: the file or folder.
        error: the exception that was raised.
        wanted: size of what was to be written, in bytes.
    """
    place = next(p for p in Path(path).absolute().parents if p.exists())
    free = shutil.disk_usage(place).free
    why = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
    return (
        f"{path} could not be written ({why}): it takes {wanted / 2**20:.1f} MB, and "
        f"{free / 2**20:.0f} MB are free there; what was saved before is whole, so make room and "
        "give the same command again"
    )
