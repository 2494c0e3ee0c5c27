"""Serve a page on this machine that segments what a sentence names in a picture.

GET /: the page, one file that loads nothing.
POST /segment?sentence=...: the body is a picture file. The answer is JSON with share, note, ms,
    encoded, overlay and probability, the last two data: URLs; or {"error": one sentence} with
    status 400, 413 or 415.
"""

import hashlib
import html
import io
import logging
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from aml.errors import UserError
from aml.inference import PREDICTION_COLOUR, Segmenter, draw_overlay
from orchestrator.evaluation.pages.html_page import png_url
from orchestrator.evaluation.prediction import check_sentence, open_picture, predict, to_grey

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"

MAX_BYTES = 20 * 2**20
"""Largest picture file that is accepted."""

MAX_PIXELS = 50_000_000
"""Largest picture that is decoded."""

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
    """Segment one picture at a time, and keep the encodings of the last pictures."""

    def __init__(self, segmenter: Segmenter):
        self.segmenter = segmenter
        self.lock = threading.Lock()
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
        with self.lock:
            key = hashlib.sha256(file).digest()
            encoding_s = 0.0
            if key not in self.cache:
                picture = open_picture(io.BytesIO(file), "what was sent", MAX_PIXELS)
                image = _reduce(picture)
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


def make_app(segmenter: Segmenter, name: str) -> Starlette:
    """Return the web application for a checkpoint called `name`.

    It refuses requests that name another host, as a page of another site would make them.
    """
    server = InferenceServer(segmenter)
    template = files("orchestrator.evaluation.pages").joinpath("demo.html").read_text("utf-8")
    page = template.replace("{{name}}", html.escape(name))

    async def index(request: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=SECURITY_HEADERS)

    async def segment(request: Request) -> JSONResponse:
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
        file = await _read_body(request)
        found = await run_in_threadpool(server.segment, file, text)
        return JSONResponse(found, headers=SECURITY_HEADERS)

    handlers: Mapping[type[Exception], Callable[[Request, Exception], Response]] = {
        UserError: _error_response,
        HTTPException: _error_response,
    }
    return Starlette(
        routes=[Route("/", index), Route("/segment", segment, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        exception_handlers=handlers,
    )


def serve_demo(checkpoint: Path, port: int, *, precision: str | None = None) -> int:
    """Serve the page on 127.0.0.1 until interrupted.

    Args:
        checkpoint: The checkpoint's folder.
        port: TCP port; 0 takes a free one.
        precision: None is that of training on a GPU, fp32 on a CPU.

    Returns:
        The command's exit code, 0.

    Raises:
        UserError: There is no checkpoint, or the port is taken.
    """
    import uvicorn

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Take the port before the checkpoint is loaded: a taken one is refused at once.
        try:
            listening.bind((HOST, port))
        except (OSError, OverflowError) as error:
            problem = getattr(error, "strerror", None) or error
            raise UserError(
                f"port {port} of {HOST} cannot be had ({problem}); give another --port"
            ) from None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        segmenter = Segmenter.load(checkpoint, device, precision)
        name = f"{segmenter.model.name}, {checkpoint.parent.name}/{checkpoint.name}"
        config = uvicorn.Config(make_app(segmenter, name), log_level="warning", access_log=False)
        logger.info(
            f"http://{HOST}:{listening.getsockname()[1]} shows the page; only this machine can "
            "open it. Ctrl-C ends it"
        )
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            logger.info("ended")
    return 0


def _error_response(request: Request, error: Exception) -> Response:
    """Return the JSON that tells the page why a request is refused."""
    if isinstance(error, HTTPException):
        headers = {**SECURITY_HEADERS, **(error.headers or {})}
        return JSONResponse({"error": error.detail}, error.status_code, headers=headers)
    return JSONResponse({"error": str(error)}, 400, headers=SECURITY_HEADERS)


async def _read_body(request: Request) -> bytes:
    """Return the request's body; refuse it as soon as more than MAX_BYTES have come.

    Starlette's own max_body_size would answer in plain text, which the page cannot show.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HTTPException(
                413, f"the picture file is larger than {MAX_BYTES >> 20} MiB; make it smaller"
            )
    return bytes(body)


def _reduce(image: np.ndarray) -> np.ndarray:
    """Return the image (H, W, 3) uint8, made smaller where a side is longer than MAX_SIDE."""
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(picture)
