"""Interruptions: the first SIGINT asks for an end after the epoch under way, the second ends at once. Who sends a SIGTERM (a cluster that takes
its machine back, a job that is stopped) soon sends SIGKILL: what runs is saved where it stands, and then it ends at once; so does a second one.

A handler only notes: it may have come in the middle of a print.
"""

import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager

INTERRUPTED = (
    "interrupted: the epoch under way is finished and saved first; once more stops at once"
)

TERMINATING = "asked to end: what is under way is saved where it stands, for which there are {:g} s; once more stops at once"


def on_interrupt(note: Callable[[], None]) -> None:
    """The next SIGINT calls note(); those after it go to the handler that is in place now. Nothing outside the main thread, which hears none."""
    if threading.current_thread() is not threading.main_thread():
        return
    then = _effective(signal.getsignal(signal.SIGINT))

    def handler(number, frame) -> None:
        signal.signal(signal.SIGINT, then)
        note()

    handler.then = then
    signal.signal(signal.SIGINT, handler)


def save_on_terminate(save: Callable[[], None], seconds: float) -> None:
    """The next SIGTERM calls save() in a thread and stops at once when that is over, or has taken so long; so does one that comes meanwhile.

    Not where what trained has ended by then (as_before).
    """
    if threading.current_thread() is not threading.main_thread():
        return

    asked, stopped = threading.Event(), threading.Event()

    def work() -> None:
        saving = threading.Thread(target=save, name="saving", daemon=True)
        saving.start()
        saving.join(seconds)
        if not stopped.is_set() and signal.getsignal(signal.SIGTERM) is handler:
            signal.pthread_kill(
                threading.main_thread().ident, signal.SIGTERM
            )  # to this thread, or its wait would go on

    def handler(number, frame) -> None:
        if asked.is_set():
            stopped.set()
            return stop_at_once(number, frame)
        asked.set()
        threading.Thread(target=work, name="ending", daemon=True).start()

    signal.signal(signal.SIGTERM, handler)


def stop_at_once(number, frame) -> None:
    """A handler: as the second interruption."""
    present = signal.getsignal(signal.SIGINT)
    then = getattr(present, "then", _effective(present))
    signal.signal(signal.SIGINT, then)
    then(signal.SIGINT, frame)


def _effective(handler):
    """A process that a script started in the background ignores SIGINT; one that means to end must not."""
    return handler if callable(handler) else signal.default_int_handler


@contextmanager
def restored_handlers():
    """The handlers are put back at the end: Ray Train leaves one behind, and with it its controller's process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
