"""Say what a command waits for, where it waits longer than a few seconds."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.utils.progress import progress_logger

AFTER_S = 5.0
"""Seconds that a wait may last without a word."""

AGAIN_S = 30.0
"""Seconds between two messages about the same thing that is waited for."""

_last_said: dict[str, float] = {}
"""{what is waited for: `time.monotonic()` of the last message about it}, of this process."""


@contextmanager
def announced_wait(what: str) -> Iterator[None]:
    """Log what a `with` block waits for where it takes longer than AFTER_S, then every AGAIN_S.

    A block that is entered again and again, as with requests that are repeated, is spoken of no
    more often than one that lasts. Only the main thread speaks: nobody waits for the others.

    Args:
        what: completes the sentence "waiting for ...".
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_speak, args=(what, ended), name="wait", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _speak(what: str, ended: threading.Event) -> None:
    began = time.monotonic()
    pause_s = AFTER_S
    while not ended.wait(pause_s):
        now = time.monotonic()
        pause_s = _last_said.get(what, now - AGAIN_S) + AGAIN_S - now
        if pause_s <= 0:
            _last_said[what] = now
            progress_logger.info(f"waiting for {what} ({now - began:.0f} s so far)")
            pause_s = AGAIN_S
