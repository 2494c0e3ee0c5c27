"""A wait of more than a few seconds says what it waits for."""

import logging
import socket
import threading

import pytest

from aml.errors import Unreachable
from orchestrator.storage import Filesystem
from orchestrator.utils import announced_wait, exclusive_lock, waits


class EndsTheWait(logging.Handler):
    """Keep what is said, and end the wait at the first word."""

    def __init__(self, end):
        super().__init__()
        self.end = end
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())
        self.end()


@pytest.fixture
def heard(monkeypatch):
    """Return a function that calls `end` at the first word about a wait, and returns the words."""
    monkeypatch.setattr(waits, "AFTER_S", 0.05)
    monkeypatch.setattr(waits, "_last_said", {})
    monkeypatch.setattr(waits.progress_logger, "level", logging.INFO)
    handlers = []

    def listen(end):
        handlers.append(EndsTheWait(end))
        waits.progress_logger.addHandler(handlers[-1])
        return handlers[-1].said

    yield listen
    for handler in handlers:
        waits.progress_logger.removeHandler(handler)


def test_a_long_wait_is_said_once_and_a_repeated_one_not_again(heard):
    ended = threading.Event()
    said = heard(ended.set)
    with announced_wait("the tide"):
        assert ended.wait(60)
    with announced_wait("the tide"):
        threading.Event().wait(0.3)
    assert len(said) == 1 and said[0].startswith("waiting for the tide (")


def test_a_silent_bucket_is_named(heard, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    silent = socket.create_server(("127.0.0.1", 0))
    query = f"scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
    said = heard(silent.close)  # resets the connections that wait
    store = Filesystem(f"s3://bucket/shards?{query}", impatient=True)
    with pytest.raises(Unreachable):
        store.read("complete.json")
    assert said[0].startswith("waiting for s3://bucket/shards?")
    assert "to answer" in said[0]


def test_a_lock_that_another_holds_is_named(heard, tmp_path):
    held, free = threading.Event(), threading.Event()

    def hold():
        with exclusive_lock(tmp_path):
            held.set()
            free.wait(60)

    said = heard(free.set)
    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(60)
    with exclusive_lock(tmp_path):
        pass
    other.join()
    assert said[0].startswith(f"waiting for another process to release {tmp_path} (")
