"""Limits on what clients of a small HTTP server may take of time, bytes and connections."""

import asyncio
import contextlib
import logging

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
"""Connections at once. At one more, the oldest that has not asked for anything is closed."""

MAX_HEAD_BYTES = 2**14
"""Bytes of a request's first line and headers."""

HEAD_S = 10.0
"""Seconds for a request's first line and headers, from the connection on."""

BODY_S = 30.0
"""Seconds for a request's body."""

CONNECTION_S = 300.0
"""Seconds that a connection lives, the answer and its reading by the client included."""

END_S = 2.0
"""Seconds that a request under way has when the server is ended."""

PIECE = 2**16
"""Bytes of an answer that are handed to the connection at a time."""

REFUSED_S = 10.0
"""Seconds for which the body of a refused request is read and thrown away.

A browser that is cut off while it sends does not show the answer.
"""


class LimitedConnection(H11Protocol):
    """Connection of one request, which has HEAD_S for its head and ends after CONNECTION_S."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for the connection and start its clocks."""
        super().connection_made(transport)
        self.began = self.loop.time()
        self.clocks = (
            self.loop.call_later(HEAD_S, self._end_without_head),
            self.loop.call_later(CONNECTION_S, transport.abort),
        )
        others = [one for one in self.connections if isinstance(one, LimitedConnection)]
        idle = [one for one in others if one.cycle is None and one is not self]
        if len(self.connections) > MAX_CONNECTIONS and idle:
            oldest = min(idle, key=lambda one: one.began)
            self.connections.discard(oldest)  # uvicorn counts them before the abort is through
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        super().connection_lost(exc)
        for clock in self.clocks:
            clock.cancel()

    def shutdown(self) -> None:
        """Close the connection at once when the server ends, whatever the client still does."""
        self.transport.abort()

    def _end_without_head(self) -> None:
        if self.cycle is None:
            self.transport.abort()


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server of an application that keeps the limits above."""
    config = uvicorn.Config(
        app,
        http=LimitedConnection,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        # One more than connections are admitted: uvicorn counts the one that asks.
        limit_concurrency=MAX_CONNECTIONS + 1,
        timeout_graceful_shutdown=int(END_S),
        headers=[("Connection", "close")],
    )
    return uvicorn.Server(config)


async def read_body(request: Request, most: int, what: str) -> bytes:
    """Return the body of a request.

    Args:
        request: The request.
        most: Bytes that are taken; a longer body is refused as soon as that is known.
        what: What the body is, for messages.

    Raises:
        HTTPException: 413, it is too long; 408, it did not come within BODY_S.
        ClientDisconnect: The client is gone.
    """
    pieces: list[bytes] = []
    size = 0
    too_long = HTTPException(413, f"{what} is larger than {most >> 20} MiB; make it smaller")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > most:
        raise too_long
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                size += len(piece)
                if size > most:
                    raise too_long
                pieces.append(piece)
    except TimeoutError:
        raise HTTPException(
            408, f"{what} did not come within {BODY_S:.0f} s; send it again"
        ) from None
    except ClientDisconnect:
        logger.info(f"{what} was broken off after {size} bytes")
        raise
    return b"".join(pieces)


async def discard_body(request: Request) -> None:
    """Read what is left of a refused request's body, for REFUSED_S."""
    # Starlette raises a RuntimeError where nothing is left.
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(REFUSED_S):
            async for _ in request.stream():
                pass


async def send_in_pieces(response: Response, send: Send) -> None:
    """Send a response as fast as the client reads it, so that it is not kept in memory after."""
    await send(
        {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        }
    )
    body = bytes(response.body)
    for start in range(0, len(body), PIECE):
        piece = body[start : start + PIECE]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
