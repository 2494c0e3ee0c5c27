"""Read the folder of an evaluation, and check that two evaluations can be compared."""

import json
from collections.abc import Callable
from pathlib import Path

from aml.errors import UserError


def read_evaluation(folder: Path) -> tuple[dict, dict]:
    """Return about.json and metrics.json of a folder that `evaluate --out` wrote.

    Raises:
        UserError: The folder is no finished evaluation.
    """
    try:
        about, metrics = (
            json.loads((Path(folder) / name).read_text("utf-8"))
            for name in ("about.json", "metrics.json")
        )
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{folder} is no finished evaluation ({problem}); give the --out folder of "
            "`python -m orchestrator evaluate`"
        ) from None
    return about, metrics


def check_comparable(a: dict, b: dict, name_a: str, name_b: str) -> None:
    """Check that two evaluations measured the same thing.

    Args:
        a: about.json of the first.
        b: about.json of the second.
        name_a: What a message calls the first.
        name_b: What a message calls the second.

    Raises:
        UserError: The shards, the protocol or, in the square protocol, the network size differ.
    """
    same_protocol = "evaluate both with --protocol original"
    checks: list[tuple[str, Callable[[dict], str], str]] = [
        (
            "data fingerprint",
            lambda about: about["data"]["fingerprint"],
            "evaluate both on the same shards",
        ),
        ("protocol", lambda about: about["protocol"], same_protocol),
    ]
    if a["protocol"] == b["protocol"] == "square":
        checks.append(
            (
                "network size",
                lambda about: f"{about['image_size']} px, {about['fit']}",
                f"the square protocol scores at network size, so {same_protocol}",
            )
        )
    for what, value_of, remedy in checks:
        if value_of(a) != value_of(b):
            raise UserError(
                f"{name_a} and {name_b} cannot be compared: the {what} is {value_of(a)} and "
                f"{value_of(b)}; {remedy}"
            )
