"""The exceptions whose text is one sentence for a person."""


class UserError(ValueError):
    """Wrong input. Its text is one sentence: what came, what was wanted, what to do. The command line prints it and exits with 2."""


class Unreachable(UserError):
    """What lies elsewhere does not answer, or gives nothing to who asks. Tried again later it may."""

    kind = "away"


class RunError(RuntimeError):
    """A run cannot go on, and would not if it were started again as it is. Its text is one sentence: what happened, what to do."""

    kind = "error"
    """In one word, for the ledger."""


class NonFinite(RunError):
    """Too many steps of an epoch had a loss or gradient that is not finite."""

    kind = "non-finite"


class NotSaved(RunError):
    """A file of the run could not be written: the disk is full, or over its quota."""

    kind = "disk"


class OutOfMemory(RunError):
    """A step or an evaluation did not fit."""

    kind = "memory"
