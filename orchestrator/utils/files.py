"""Files written whole or not at all, and JSON without NaN."""

import math
import os
from pathlib import Path

from aml import files
from aml.errors import NotSaved


def without_nan(metrics: dict) -> dict:
    """JSON has no NaN: null instead."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()
    }


def atomic_write(path: Path, data: bytes) -> None:
    """Complete or absent. NotSaved where the disk takes no more."""
    draft = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise NotSaved(files.write_failure(path, error, len(data))) from error
