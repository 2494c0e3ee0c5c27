"""Serve a page on this machine that shows what models find in a picture, and what training hides.

GET /: the page, one file that loads nothing.
POST /segment?sentence=...&corrupt=fog:3: the body is a picture file, corrupt may be left out. The
    answer is what `InferenceServer.segment` returns, as JSON.
GET /hide?picture=KEY&sentence=...&tau=0.4&rho=0.5&draw=0&corrupt=fog:3: what `InferenceServer.hide`
    returns for a picture that was sent, by the key that /segment gave it.

A refusal is {"error": one sentence} with status 400, 408, 410 (the picture is not kept any more),
413, 415 or 503.
"""

import asyncio
import html
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from pathlib import Path

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from aml.conditions import CLEAN, CORRUPTIONS, SEVERITIES, Condition, parse_corruptions
from aml.errors import UserError
from orchestrator.evaluation.pages import http_limits
from orchestrator.evaluation.pages.inference_server import InferenceServer, Side
from orchestrator.utils import listening_socket

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"

MAX_BYTES = 20 * 2**20
"""Largest picture file that is accepted."""

MAX_PIXELS = 50_000_000
"""Pixels of a picture at most, where nobody says otherwise.

Of formats other than JPEG it is a third: they are decoded whole, and WebP takes 16 bytes a pixel.
"""

MAX_UPLOADS = 4
"""Pictures that are uploaded, waited for and answered at once; another is answered 503.

Each is kept as it came, at most MAX_BYTES; one at a time is decoded.
"""

MAX_LETTERS = 300
"""Longest sentence that is accepted."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Endpoint:
    """Answers one address: a bounded number of requests at once, one of them computing."""

    def __init__(
        self, turns: "Turns", answer: Callable[[Request, asyncio.Lock], Awaitable[Response]]
    ) -> None:
        """Take what all addresses share, and how this one is answered, given whose turn it is."""
        self.turns = turns
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; a refused one only when its body has been read."""
        request = Request(scope, receive)
        turns = self.turns
        try:
            if turns.under_way >= MAX_UPLOADS:
                raise HTTPException(
                    503,
                    f"{turns.under_way} pictures are being worked on, as many as are taken at "
                    "once; try again in a moment",
                )
            turns.under_way += 1
            try:
                await http_limits.send_in_pieces(await self.answer(request, turns.lock), send)
            finally:
                turns.under_way -= 1
        except HTTPException as error:
            await http_limits.discard_body(request)
            await _error_response(request, error)(scope, receive, send)
        except (UserError, MemoryError, torch.OutOfMemoryError) as error:
            await _error_response(request, error)(scope, receive, send)
        except (ClientDisconnect, asyncio.CancelledError):
            pass  # nobody waits for an answer, or the server ends and cancels what is left


class Turns:
    """Counts the requests under way, and lets one of them compute at a time."""

    def __init__(self) -> None:
        self.under_way = 0
        self.lock = asyncio.Lock()


def _sentence(request: Request) -> str:
    """Return the sentence of a request; raise HTTPException where it is too long."""
    text = request.query_params.get("sentence", "")
    if len(text) > MAX_LETTERS:
        raise HTTPException(
            400,
            f"the sentence has {len(text)} letters, and {MAX_LETTERS} are the most; make it "
            "shorter",
        )
    return text


def _condition(request: Request) -> Condition:
    """Return the corruption that a request asks for; raise UserError for an unknown one."""
    text = request.query_params.get("corrupt", "")
    if not text:
        return CLEAN
    found = parse_corruptions(text)
    if len(found) > 1:
        raise UserError(f"{len(found)} corruptions were asked for, and one is shown; give one")
    return found[0] if found[0][1] else CLEAN


def _number(request: Request, name: str) -> float:
    """Return a number of a request; raise UserError where it is none."""
    text = request.query_params.get(name, "")
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{name} is {text[:40]!r}; give a number from 0 to 1") from None


def _endpoints(server: InferenceServer) -> tuple[Endpoint, Endpoint]:
    """Return the endpoints of /segment and /hide."""

    async def segment(request: Request, lock: asyncio.Lock) -> Response:
        text = _sentence(request)
        # A form of another site can send plain text here without asking, but no picture.
        if not request.headers.get("content-type", "").startswith("image/"):
            raise HTTPException(
                415,
                "the body is not declared as a picture; send a JPEG or PNG file with content type "
                "image/jpeg or image/png",
            )
        condition = _condition(request)
        file = await http_limits.read_body(request, MAX_BYTES, "the picture file")
        async with lock:
            if await request.is_disconnected():
                raise ClientDisconnect
            found = await run_in_threadpool(server.segment, file, text, condition)
        return JSONResponse(found, headers=SECURITY_HEADERS)

    async def hide(request: Request, lock: asyncio.Lock) -> Response:
        text = _sentence(request)
        key = request.query_params.get("picture", "")
        tau, rho, draw = (_number(request, name) for name in ("tau", "rho", "draw"))
        if not 0 <= draw < 2**31:
            raise UserError(f"draw is {draw:g}; give a whole number from 0 to {2**31 - 1}")
        condition = _condition(request)
        async with lock:
            found = await run_in_threadpool(server.hide, key, text, condition, tau, rho, int(draw))
        if found is None:
            raise HTTPException(410, "the picture is not kept any more; send it again")
        return JSONResponse(found, headers=SECURITY_HEADERS)

    turns = Turns()
    return Endpoint(turns, segment), Endpoint(turns, hide)


def make_app(sides: list[Side], max_pixels: int = MAX_PIXELS) -> Starlette:
    """Return the web application for one checkpoint, or for two beside each other.

    It refuses requests that name another host, as a page of another site would make them, and
    pictures of more than `max_pixels` pixels.
    """
    page = _page(sides)
    segment, hide = _endpoints(InferenceServer(sides, max_pixels))

    async def index(request: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=SECURITY_HEADERS)

    handlers: Mapping[type[Exception], Callable[[Request, Exception], Response]] = {
        HTTPException: _error_response,
    }
    return Starlette(
        routes=[
            Route("/", index),
            Route("/segment", segment, methods=["POST"]),
            Route("/hide", hide, methods=["GET"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        exception_handlers=handlers,
    )


def _page(sides: list[Side]) -> str:
    """Return the page for some checkpoints."""
    tau, rho = sides[0].masking.config.coordinates
    kinds = "".join(f'<option value="{name}">{name.replace("_", " ")}' for name in CORRUPTIONS)
    about = [{"name": side.name, "shown": side.masking.config.arm} for side in sides]
    values = {
        "names": html.escape(" beside ".join(side.name for side in sides)),
        "max_bytes": str(MAX_BYTES),
        "max_letters": str(MAX_LETTERS),
        "severities": str(len(SEVERITIES)),
        "kinds": kinds,
        "tau": f"{tau:g}",
        "rho": f"{rho:g}",
        "sides": json.dumps(about).replace("<", "\\u003c"),
    }
    page = files("orchestrator.evaluation.pages").joinpath("demo.html").read_text("utf-8")
    for name, value in values.items():
        page = page.replace("{{" + name + "}}", value)
    return page


def serve_demo(
    checkpoints: list[Path],
    port: int,
    *,
    precision: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> int:
    """Serve the page on 127.0.0.1 until interrupted.

    Args:
        checkpoints: The checkpoint's folder, or two, which are shown beside each other.
        port: TCP port; 0 takes a free one.
        precision: None is that of training on a GPU, fp32 on a CPU.
        max_pixels: Height times width of a picture at most.

    Returns:
        The command's exit code, 0.

    Raises:
        UserError: There is no checkpoint, or the port is taken.
    """
    # Take the port before a checkpoint is loaded: a taken one is refused at once.
    with listening_socket(HOST, port) as listening:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        sides = [Side.load(folder, device, precision) for folder in checkpoints]
        logger.info(
            f"http://{HOST}:{listening.getsockname()[1]} shows the page; only this machine can "
            "open it. Ctrl-C ends it"
        )
        try:
            app = make_app(sides, max_pixels)
            http_limits.make_server(app).run(sockets=[listening])
        except KeyboardInterrupt:
            logger.info("ended")
    return 0


def _error_response(request: Request, error: Exception) -> Response:
    """Return the JSON that tells the page why a request is refused."""
    if isinstance(error, HTTPException):
        headers = {**SECURITY_HEADERS, **(error.headers or {})}
        return JSONResponse({"error": error.detail}, error.status_code, headers=headers)
    if isinstance(error, UserError):
        return JSONResponse({"error": str(error)}, 400, headers=SECURITY_HEADERS)
    problem = "there is no memory for the picture at the moment; send a smaller one, or try again"
    return JSONResponse({"error": problem}, 503, headers=SECURITY_HEADERS)
