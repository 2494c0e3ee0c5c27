"""An address at which nothing can be served is refused in one sentence."""

import socket

import pytest

from aml.errors import UserError
from orchestrator.utils import listening_socket


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("127.0.0.1", -1, "--port is -1; give one from 1 to 65535, or 0"),
        ("127.0.0.1", 70000, "--port is 70000; give one"),
        ("no..host", 0, "the host 'no..host' cannot be found"),
        ("a" * 300, 0, "cannot be found .*; give 127.0.0.1"),
        ("192.0.2.1", 0, "port 0 of 192.0.2.1 cannot be had .*; give another --port"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused(host, port, says):
    with pytest.raises(UserError, match=says) as refused, listening_socket(host, port):
        pass
    assert "\n" not in str(refused.value)


def test_a_port_is_taken_once():
    with listening_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert port > 0
        with (
            pytest.raises(UserError, match=f"port {port} of 127.0.0.1 cannot be had"),
            listening_socket("127.0.0.1", port),
        ):
            pass
    with listening_socket("127.0.0.1", port):
        assert socket.create_connection(("127.0.0.1", port), timeout=60).close() is None
