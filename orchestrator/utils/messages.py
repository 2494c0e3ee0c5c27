"""Messages to a person: modules log them, the command line prints them."""

import logging

from orchestrator.utils.redaction import redact


class _Screen(logging.Handler):
    """Print each message on the standard output of the moment, secrets removed.

    A live table of rich stays below what is printed, since it redirects the standard output.
    """

    def emit(self, record: logging.LogRecord) -> None:
        print(redact(self.format(record)), flush=True)


def print_messages() -> None:
    """Print what this project's modules log, from level INFO. A second call changes nothing."""
    for name in ("aml", "orchestrator"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _Screen) for handler in logger.handlers):
            logger.addHandler(_Screen())
