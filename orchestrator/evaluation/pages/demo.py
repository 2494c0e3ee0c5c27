"""Serve a page on this machine that segments what a sentence names in a picture.

GET /: the page, one file that loads nothing.
POST /segment?sentence=...: the body is a picture file. The answer is JSON with share, note, ms,
    encoded, overlay and probability, the last two data: URLs; or {"error": one sentence} with
    status 400, 408, 413, 415 or 503.
"""

import asyncio
import hashlib
import html
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
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

from aml.data import check_sentence
from aml.errors import UserError
from aml.inference import PREDICTION_COLOUR, Segmenter, draw_overlay
from aml.reading import decode_as, open_picture
from orchestrator.evaluation.pages import http_limits
from orchestrator.evaluation.pages.html_page import png_url
from orchestrator.evaluation.prediction import predict, to_grey
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

MAX_SIDE = 1280
"""Longer side in pixels that a picture is reduced to: as much as the page shows."""

CACHE_SIZE = 4
"""Number of pictures whose encoding is kept for the next sentence."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class InferenceServer:
    """Segment pictures, one after the other, and keep the encodings of the last ones."""

    def __init__(self, segmenter: Segmenter, max_pixels: int):
        self.segmenter = segmenter
        self.max_pixels = max_pixels
        self.cache: OrderedDict[bytes, tuple[np.ndarray, list[torch.Tensor]]] = OrderedDict()

    def segment(self, file: bytes, text: str) -> dict:
        """Return what the page shows for a picture and a sentence.

        Args:
            file: The bytes of a picture file.
            text: The sentence.

        Returns:
            share: share of the picture that the mask covers.
            note: a warning about the sentence, or nothing.
            ms: milliseconds that it took, the encoding of a new picture included.
            encoded: whether the picture was new.
            overlay, probability: PNG pictures as data: URLs.

        Raises:
            UserError: The file is no picture, or one too large, or the sentence holds no word.
        """
        check_sentence(text)
        key = hashlib.sha256(file).digest()
        encoding_s = 0.0
        if key not in self.cache:
            image = _open_reduced(file, self.max_pixels)
            start = time.perf_counter()
            self.cache[key] = image, self.segmenter.encode_image(image)
            encoding_s = time.perf_counter() - start
        self.cache.move_to_end(key)
        while len(self.cache) > CACHE_SIZE:
            self.cache.popitem(last=False)
        image, features = self.cache[key]
        start = time.perf_counter()
        (prediction,) = predict(self.segmenter, image, [text], features)
        decoding_s = time.perf_counter() - start
        return {
            "share": float(prediction.mask.mean()),
            "note": prediction.note,
            "ms": round(1e3 * (encoding_s + decoding_s), 1),
            "encoded": bool(encoding_s),
            "overlay": png_url(draw_overlay(image, prediction.mask, PREDICTION_COLOUR)),
            "probability": png_url(to_grey(prediction.probability)),
        }


class SegmentEndpoint:
    """Answer POST /segment: a bounded number of requests at once, one picture at a time."""

    def __init__(self, segmenter: Segmenter, max_pixels: int):
        self.server = InferenceServer(segmenter, max_pixels)
        self.under_way = 0
        self.turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; a refused one only when its body has been read."""
        request = Request(scope, receive)
        try:
            if self.under_way >= MAX_UPLOADS:
                raise HTTPException(
                    503,
                    f"{self.under_way} pictures are being worked on, as many as are taken at once; "
                    "try again in a moment",
                )
            self.under_way += 1
            try:
                await http_limits.send_in_pieces(await self._answer(request), send)
            finally:
                self.under_way -= 1
        except HTTPException as error:
            await http_limits.discard_body(request)
            await _error_response(request, error)(scope, receive, send)
        except (UserError, MemoryError, torch.OutOfMemoryError) as error:
            await _error_response(request, error)(scope, receive, send)
        except (ClientDisconnect, asyncio.CancelledError):
            pass  # nobody waits for an answer, or the server ends and cancels what is left

    async def _answer(self, request: Request) -> Response:
        text = request.query_params.get("sentence", "")
        if len(text) > MAX_LETTERS:
            raise HTTPException(
                400,
                f"the sentence has {len(text)} letters, and {MAX_LETTERS} are the most; make it "
                "shorter",
            )
        # A form of another site can send plain text here without asking, but no picture.
        if not request.headers.get("content-type", "").startswith("image/"):
            raise HTTPException(
                415,
                "the body is not declared as a picture; send a JPEG or PNG file with content type "
                "image/jpeg or image/png",
            )
        file = await http_limits.read_body(request, MAX_BYTES, "the picture file")
        async with self.turn:
            if await request.is_disconnected():
                raise ClientDisconnect
            found = await run_in_threadpool(self.server.segment, file, text)
        return JSONResponse(found, headers=SECURITY_HEADERS)


def make_app(segmenter: Segmenter, name: str, max_pixels: int = MAX_PIXELS) -> Starlette:
    """Return the web application for a checkpoint called `name`.

    It refuses requests that name another host, as a page of another site would make them, and
    pictures of more than `max_pixels` pixels.
    """
    template = files("orchestrator.evaluation.pages").joinpath("demo.html").read_text("utf-8")
    page = template.replace("{{max_bytes}}", str(MAX_BYTES)).replace("{{name}}", html.escape(name))

    async def index(request: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=SECURITY_HEADERS)

    handlers: Mapping[type[Exception], Callable[[Request, Exception], Response]] = {
        HTTPException: _error_response,
    }
    return Starlette(
        routes=[
            Route("/", index),
            Route("/segment", SegmentEndpoint(segmenter, max_pixels), methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        exception_handlers=handlers,
    )


def serve_demo(
    checkpoint: Path, port: int, *, precision: str | None = None, max_pixels: int = MAX_PIXELS
) -> int:
    """Serve the page on 127.0.0.1 until interrupted.

    Args:
        checkpoint: The checkpoint's folder.
        port: TCP port; 0 takes a free one.
        precision: None is that of training on a GPU, fp32 on a CPU.
        max_pixels: Height times width of a picture at most.

    Returns:
        The command's exit code, 0.

    Raises:
        UserError: There is no checkpoint, or the port is taken.
    """
    # Take the port before the checkpoint is loaded: a taken one is refused at once.
    with listening_socket(HOST, port) as listening:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        segmenter = Segmenter.load(checkpoint, device, precision)
        name = f"{segmenter.model.name}, {checkpoint.parent.name}/{checkpoint.name}"
        logger.info(
            f"http://{HOST}:{listening.getsockname()[1]} shows the page; only this machine can "
            "open it. Ctrl-C ends it"
        )
        try:
            app = make_app(segmenter, name, max_pixels)
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


def _open_reduced(file: bytes, max_pixels: int) -> np.ndarray:
    """Read a picture as it is seen, made smaller where a side is longer than MAX_SIDE.

    Args:
        file: The bytes of a picture file.
        max_pixels: Height times width at most; a third of them where the format is not JPEG.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UserError: The file is no picture, or one too large.
    """
    picture = open_picture(file, "the picture", max_pixels)
    width, height = picture.size
    # A JPEG file is decoded at half, a quarter or an eighth of its size, down to MAX_SIDE.
    scale = MAX_SIDE / max(width, height)
    picture.draft(None, (int(scale * width), int(scale * height)))
    decoded = max(max_pixels // 3, (2 * MAX_SIDE) ** 2)
    if picture.width * picture.height > decoded:
        raise UserError(
            f"the picture is {width} x {height} pixels, and {decoded / 1e6:.1f} megapixels are the "
            f"most of a {picture.format} file; give a smaller one, a JPEG file or a larger "
            "--max-megapixels"
        )
    rgb = decode_as(picture, "the picture", upright=True)
    rgb.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(rgb)
