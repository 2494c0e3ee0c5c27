"""Show any value in a short text, for messages."""

import reprlib
from collections.abc import Set as AbstractSet
from typing import Any

LETTERS = 60
"""Letters of a text that are shown at most."""


class _Short(reprlib.Repr):
    """Show the first elements of the outer containers alone.

    A whole repr of a value from a file may be of any length, and take forever where lists share
    lists.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 4
        self.maxstring = self.maxother = LETTERS

    def repr_int(self, value: int, level: int) -> str:
        """Show an integer; Python refuses to print one of very many digits."""
        if value.bit_length() <= 64:
            return repr(value)
        return f"a whole number of about {round(value.bit_length() * 0.30103)} digits"

    def repr_bytes(self, value: bytes, level: int) -> str:
        """Show the first bytes."""
        return repr(value[:LETTERS]) + ("..." if len(value) > LETTERS else "")

    def repr_set(self, value: AbstractSet, level: int) -> str:
        """Show the size of a set alone, since its elements need not be sortable."""
        return f"a set of {len(value)}"

    def repr_frozenset(self, value: AbstractSet, level: int) -> str:
        """Show a frozenset as a set."""
        return self.repr_set(value, level)


_SHORT = _Short()


def describe(value: Any) -> str:
    """Return a text of at most some hundred letters that shows the value, as `repr` would."""
    return _SHORT.repr(value)
