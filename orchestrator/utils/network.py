"""Addresses of this machine at which a command serves."""

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from aml.errors import UserError

MAX_PORT = 65535


@contextmanager
def listening_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Take an address of this machine, so that one that cannot be had is refused at once.

    Args:
        host: Name or address of a network interface of this machine.
        port: TCP port; 0 takes a free one.

    Yields:
        The socket; it is closed at the end.

    Raises:
        UserError: There is no such port or host, or the address is taken or not permitted.
    """
    if not 0 <= port <= MAX_PORT:
        raise UserError(
            f"--port is {port}; give one from 1 to {MAX_PORT}, or 0 for a port that is free"
        )
    try:
        # The idna codec of Python refuses odd names with a UnicodeError.
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        problem = getattr(error, "strerror", None) or "no valid name"
        raise UserError(
            f"the host {host!r} cannot be found ({problem}); give 127.0.0.1, or another address "
            "of this machine"
        ) from None
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(family, kind, protocol))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen()  # until then another process may take the address as well
        except OSError as error:
            raise UserError(
                f"port {port} of {host} cannot be had ({error.strerror}); give another --port, or "
                "0 for a port that is free"
            ) from None
        yield listening
