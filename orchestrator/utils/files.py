"""Files that are written whole or not at all, and JSON without NaN."""

import math
import os
from pathlib import Path

from aml import files


def without_nan(metrics: dict) -> dict:
    """Return the metrics with None in place of NaN and infinity, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metrics.items()
    }


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that it is complete or absent.

    Raises:
        NotSaved: the disk takes no more.
    """
    draft = path.with_name(path.name + files.DRAFT)
    with files.writing(path, len(data)), files.removed_on_failure(draft):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        os.replace(draft, path)
