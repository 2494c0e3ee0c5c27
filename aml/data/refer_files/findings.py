"""Count what a reader of annotations found and what it left out."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Findings:
    """Counts what a reader of annotations found and left out."""

    files: list[str] = field(default_factory=list)
    """Names of the files that were read, in the data set's folder."""
    masks: Counter[str] = field(default_factory=Counter)
    """Refs by where their mask was found, "instances" or "refs"."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> how many, as "refs whose annotation is missing"."""

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as JSON holds them."""
        return {
            "files": self.files,
            "masks": dict(sorted(self.masks.items())),
            "left_out": {reason: n for reason, n in sorted(self.left_out.items()) if n},
        }
