"""Handlers of SIGINT and SIGTERM for commands that train.

The first SIGINT asks for an end after the epoch under way; the second ends the command at once.
Whoever sends SIGTERM (a cluster that takes its machine back, a job that is stopped) soon sends
SIGKILL: the training is saved where it stands, and then the command ends at once. A second SIGTERM
ends it at once, too, unless it comes with the first: `timeout` signals its command and then the
command's whole group, and so do batch systems.

A handler only takes note of the signal, because it may have interrupted a print.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED = (
    "interrupted: the epoch under way is finished and saved first; once more stops at once"
)

TERMINATING = (
    "asked to end: what is under way is saved where it stands, for which there are {:g} s; "
    "once more stops at once"
)

NOT_SAVED = (
    "{} did not answer within {:g} s: what it did since its last checkpoint, if anything, is lost; "
    "raise resources.grace_s where a step, a batch of validation or the start takes that long"
)

SAME_S = 2.0
"""Seconds within which further SIGTERMs count as the first."""

Handler = Callable[[int, FrameType | None], Any]


def on_interrupt(note: Callable[[], None]) -> None:
    """Call `note` at the next SIGINT; later ones go to the handler that is in place now.

    Outside the main thread, which alone handles signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    previous = _effective(signal.getsignal(signal.SIGINT))
    signal.signal(signal.SIGINT, _FirstInterrupt(note, previous))


class _FirstInterrupt:
    """The handler of `on_interrupt`, which knows the handler of the interruptions after it."""

    def __init__(self, note: Callable[[], None], previous: Handler) -> None:
        self.note = note
        self.previous = previous

    def __call__(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, self.previous)
        self.note()


def save_on_terminate(save: Callable[[], None], seconds: float) -> None:
    """At the next SIGTERM call `save` in a thread, then stop the command at once.

    The command stops when `save` returns, when the time is up, or at a second SIGTERM that comes
    SAME_S or more after the first. It is not stopped where the training has ended meanwhile, so
    that `restored_handlers` has removed the handler. Outside the main thread this does nothing.

    Args:
        save: has the trainings save their checkpoints.
        seconds: for which `save` is waited for.
    """
    if threading.current_thread() is not threading.main_thread():
        return

    main_thread = threading.get_ident()
    asked_at: list[float] = []
    ended = threading.Event()
    stopped = threading.Event()

    def save_and_stop() -> None:
        saving = threading.Thread(target=save, name="saving", daemon=True)
        saving.start()
        saving.join(seconds)
        if not stopped.is_set() and signal.getsignal(signal.SIGTERM) is handler:
            ended.set()
            # Sent to the main thread itself, which would otherwise go on waiting.
            signal.pthread_kill(main_thread, signal.SIGTERM)

    def handler(number: int, frame: FrameType | None) -> None:
        if asked_at:
            if ended.is_set() or time.monotonic() - asked_at[0] >= SAME_S:
                stopped.set()
                stop_at_once(number, frame)
            return
        asked_at.append(time.monotonic())
        threading.Thread(target=save_and_stop, name="ending", daemon=True).start()

    signal.signal(signal.SIGTERM, handler)


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """Handle a signal as the second interruption is handled: end the command at once."""
    current = signal.getsignal(signal.SIGINT)
    final = current.previous if isinstance(current, _FirstInterrupt) else _effective(current)
    signal.signal(signal.SIGINT, final)
    final(signal.SIGINT, frame)


def _effective(handler: Any) -> Handler:
    """Return the handler, or Python's default one where SIGINT is ignored.

    A process that a script started in the background ignores SIGINT; one that is to end must not.
    """
    return handler if callable(handler) else signal.default_int_handler


@contextmanager
def restored_handlers() -> Iterator[None]:
    """Put the handlers of SIGINT and SIGTERM back at the end of a `with` block.

    Ray Train leaves a handler of its own behind, and with it the process of its controller.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
