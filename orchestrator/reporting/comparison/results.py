"""Make a comparison's JSON rows."""

import math
from typing import Any

from orchestrator.reporting.significance import Difference


def result_row(a: str, b: str, d: Difference, p: float, verdict: str) -> dict[str, Any]:
    """Return the JSON row of one test.

    Args:
        a: Label of the first group or evaluation.
        b: Label of the second one.
        d: Tested difference a - b.
        p: Its p value after Holm's correction.
        verdict: What `wording.verdict` says of it.
    """
    return {"a": a, "b": b, **d._asdict(), "p_holm": p, "verdict": verdict}


def nan_to_none(value: Any) -> Any:
    """Replace NaN and infinities by None in nested dicts and lists: JSON has neither."""
    if isinstance(value, dict):
        return {k: nan_to_none(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [nan_to_none(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
