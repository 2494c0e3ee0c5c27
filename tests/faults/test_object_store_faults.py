"""Give a bucket up whose server accepts connections and never answers."""

import contextlib
import socket
import threading

import pytest

from aml.errors import UserError
from orchestrator.storage import filesystem
from tests.orchestrator.storage.test_object_store import KEYS

pytestmark = pytest.mark.fault  # each request waits until its time is up


def test_a_bucket_that_is_silent_is_soon_given_up_by_who_tries_again_anyway(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    heard.append(silent.accept())

        threading.Thread(target=listen, daemon=True).start()
        where = (
            f"s3://amlris/team?scheme=http&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        )
        with pytest.raises(UserError, match="cannot be reached"):
            filesystem.Filesystem(where, impatient=True).read("lease")
    assert len(heard) == 3
