"""Name the conditions under which a model is scored: a corruption of the picture and its severity.

The corruptions themselves are in `aml.data`. This module imports nothing heavy, so that settings
are checked at once.
"""

import difflib
from collections.abc import Mapping

from aml.errors import UserError

Condition = tuple[str, int]
"""Name of a corruption and its severity."""

CLEAN: Condition = ("clean", 0)
"""The condition of a picture that is not corrupted."""

CORRUPTIONS: tuple[str, ...] = (
    "fog",
    "low_light",
    "occlusion",
    "noise",
    "blur",
    "colour",
    "jpeg",
)

SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)

KNOWN = ", ".join(CORRUPTIONS)
"""The known names, for a message."""


def parse_corruptions(text: str) -> list[Condition]:
    """Parse a list of corruptions such as "fog:3,noise:1", "fog:all", "all:2" or "all:all".

    "all" as a name is every corruption, as a severity it is 1 to 5; severity 0, the clean image,
    must be asked for by its number.

    Returns:
        (name, severity) pairs in the order written, each once.

    Raises:
        UserError: an item is not name:severity, a name is unknown (the message suggests the nearest
            known one), or a severity is outside 0 to 5.
    """
    pairs: dict[Condition, None] = {}
    for item in text.split(","):
        name, colon, level = (part.strip() for part in item.partition(":"))
        if not (name and colon and level):
            raise UserError(
                f"Corruption {item.strip()[:40]!r} is not name:severity; write for example "
                f"'fog:3,noise:1' or 'all:all', with a name of {KNOWN} and a severity of 0 to 5 "
                "or all."
            )
        if name != "all":
            check_corruption(name)
        if level != "all" and level not in {"0", "1", "2", "3", "4", "5"}:
            raise UserError(
                f"Severity {level[:40]!r} of corruption {name!r} is not known; give 0 (clean), 1, "
                "2, 3, 4, 5 or all."
            )
        names = CORRUPTIONS if name == "all" else (name,)
        levels = SEVERITIES if level == "all" else (int(level),)
        pairs.update(((n, s), None) for n in names for s in levels)
    return list(pairs)


def mean_by_corruption(scores: Mapping[Condition, float]) -> dict[str, float]:
    """Return the mean score of each corruption over its severities, in the order given."""
    found: dict[str, list[float]] = {}
    for (name, _), score in scores.items():
        found.setdefault(name, []).append(score)
    return {name: sum(values) / len(values) for name, values in found.items()}


def check_corruption(name: str) -> None:
    """Raise UserError for an unknown name, with the nearest known one."""
    if name in CORRUPTIONS:
        return
    near = difflib.get_close_matches(str(name)[:40].lower(), CORRUPTIONS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    raise UserError(
        f"Corruption {str(name)[:40]!r} is not known; {hint} names are {KNOWN}, each with a "
        "severity of 0 to 5."
    )
