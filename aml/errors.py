"""Define the exceptions whose text is one sentence for a person."""


class _Told(Exception):
    """An error that a notebook shows as its text, without the calls that led to it."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython prints in place of a traceback."""
        return [f"error: {self}"]


class UserError(_Told, ValueError):
    """Wrong input.

    The text is one sentence: what came, what was wanted, what to do. The command line prints it
    and exits with 2.
    """


class Unreadable(UserError):
    """A file, or a value in one, is missing, damaged, too large or not what it should be."""


class Unreachable(UserError):
    """A store or server does not answer or refuses access; a later attempt may succeed."""

    kind = "away"


class RunError(_Told, RuntimeError):
    """A run cannot go on, and would fail again if it were started again unchanged.

    The text is one sentence: what happened, what to do.
    """

    kind = "error"
    """Kind of the failure in one word, for the ledger."""


class NonFinite(RunError):
    """Too many steps of an epoch had a loss or gradient that is not finite."""

    kind = "non-finite"


class NotSaved(RunError):
    """A file of the run could not be written: the disk is full or the quota is used up."""

    kind = "disk"


class OutOfMemory(RunError):
    """A training step or an evaluation did not fit into memory."""

    kind = "memory"
