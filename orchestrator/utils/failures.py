"""Errors of workers in one sentence, and which of them no restart would mend."""

from aml.errors import RunError, UserError
from orchestrator.utils.redaction import redact

NON_RETRYABLE = (RunError, UserError)

"""What would happen again: no restart."""


def failure(error: BaseException) -> str:
    """An error in one sentence, for the ledger and the user."""
    error, workers = root_cause(error), getattr(error, "worker_failures", ())
    if isinstance(error, NON_RETRYABLE):
        return redact(error)
    ranks = (
        f"{len(workers)} workers failed, the first with "
        if len(workers) > 1
        else "a worker failed with "
        if workers
        else ""
    )
    return redact(f"{ranks}{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def root_cause(error: BaseException) -> BaseException:
    """Of Ray Train's failure, whose own text is tracebacks, what a worker met: one of FINAL before what the others then met for its sake."""
    workers = getattr(error, "worker_failures", {})
    met = [getattr(workers[rank], "cause", None) or workers[rank] for rank in sorted(workers)]
    return next((one for one in met if isinstance(one, NON_RETRYABLE)), met[0] if met else error)
