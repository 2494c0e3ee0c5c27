"""Sentences about errors of workers, and the errors that a restart would meet again."""

from aml.errors import RunError, UserError
from orchestrator.utils.redaction import redact

NON_RETRYABLE = (RunError, UserError)
"""Errors that would happen again: a worker that raises one is not restarted."""


def failure(error: BaseException) -> str:
    """Return one sentence about an error, without secrets, for the ledger and the user."""
    cause = root_cause(error)
    if isinstance(cause, NON_RETRYABLE):
        return redact(cause)
    number = len(getattr(error, "worker_failures", ()))
    workers = ""
    if number == 1:
        workers = "a worker failed with "
    elif number > 1:
        workers = f"{number} workers failed, the first with "
    return redact(f"{workers}{type(cause).__name__}: {' '.join(str(cause).split())[:300]}")


def root_cause(error: BaseException) -> BaseException:
    """Return the error that a worker met, given the one that Ray Train raised for its worker group.

    Train's own message consists of tracebacks. Where several workers failed, a non-retryable error
    comes first, because the others may have failed only for its sake; otherwise the error of the
    lowest rank is returned. An error without worker failures is returned as it is.
    """
    failures = getattr(error, "worker_failures", {})
    causes = [getattr(failures[rank], "cause", None) or failures[rank] for rank in sorted(failures)]
    first = causes[0] if causes else error
    return next((cause for cause in causes if isinstance(cause, NON_RETRYABLE)), first)
