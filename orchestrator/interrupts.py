"""Interruptions: the first SIGINT asks for an end after the epoch under way, the second ends at once, and so does a SIGTERM: who sends one
(a cluster that takes its machine back, a job that is stopped) soon sends SIGKILL. What an earlier epoch saved is on disk either way.

A handler only notes: it may have come in the middle of a print.
"""

import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager

ASKED = "interrupted: the epoch under way is finished and saved first; once more stops at once"


def first(note: Callable[[], None]) -> None:
    """The next SIGINT calls note(); those after it go to the handler that is in place now. Nothing outside the main thread, which hears none."""
    if threading.current_thread() is not threading.main_thread():
        return
    then = _effective(signal.getsignal(signal.SIGINT))

    def handler(number, frame) -> None:
        signal.signal(signal.SIGINT, then)
        note()

    handler.then = then
    signal.signal(signal.SIGINT, handler)


def at_once(number, frame) -> None:
    """A handler: as the second interruption."""
    present = signal.getsignal(signal.SIGINT)
    then = getattr(present, "then", _effective(present))
    signal.signal(signal.SIGINT, then)
    then(signal.SIGINT, frame)


def _effective(handler):
    """A process that a script started in the background ignores SIGINT; one that means to end must not."""
    return handler if callable(handler) else signal.default_int_handler


@contextmanager
def as_before():
    """The handler of SIGINT is put back at the end: Ray Train leaves one behind, and with it its controller's process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
