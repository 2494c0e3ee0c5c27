"""A page on this machine: a picture and a sentence in, the mask over the picture and the probability of each pixel out.

GET /                            the page, one file that loads nothing
POST /segment?sentence=...       body: a picture file -> JSON {share, note, ms, encoded, overlay, probability}, the last two data: URLs;
                                 or {"error": one sentence} with status 400, 413, 415
"""

import base64
import hashlib
import html
import io
import socket
import threading
import time
from collections import OrderedDict
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from aml.errors import UserError
from aml.inference import PREDICTION, Segmenter, draw_overlay, png
from orchestrator.evaluation.prediction import answer, grey, open_picture, sentence

HOST = "127.0.0.1"

MOST_BYTES, MOST_PIXELS, MOST_LETTERS = 20 * 2**20, 50_000_000, 300

SIDE = 1280

"""Longer side in pixels that a picture is brought down to: as much as the page shows."""

KEPT = 4

"""Pictures whose encoding is kept for the next sentence."""

POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Refused(Exception):
    """A request that is not taken: HTTP status, one sentence."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class InferenceServer:
    """Answers one question at a time and remembers the last pictures."""

    def __init__(self, segmenter: Segmenter):
        self.segmenter, self.turn, self.kept = segmenter, threading.Lock(), OrderedDict()

    def ask(self, file: bytes, text: str) -> dict:
        """What the page shows. UserError: no picture, one too large, a sentence without a word."""
        sentence(text)
        with self.turn:
            key, encoded = hashlib.sha256(file).digest(), 0.0
            if key not in self.kept:
                image, start = (
                    _small(open_picture(io.BytesIO(file), "what was sent", MOST_PIXELS)),
                    time.perf_counter(),
                )
                self.kept[key] = image, self.segmenter.see(image)
                encoded = time.perf_counter() - start
            self.kept.move_to_end(key)
            while len(self.kept) > KEPT:
                self.kept.popitem(last=False)
            image, seen = self.kept[key]
            start = time.perf_counter()
            (one,) = answer(self.segmenter, image, [text], seen)
            ms = 1e3 * (time.perf_counter() - start)
        return {
            "share": float(one.mask.mean()),
            "note": one.note,
            "ms": round(1e3 * encoded + ms, 1),
            "encoded": bool(encoded),
            "overlay": _url(draw_overlay(image, one.mask, PREDICTION)),
            "probability": _url(grey(one.probability)),
        }


def make_app(segmenter: Segmenter, name: str) -> Starlette:
    """The page for a checkpoint called `name`. Requests that name another host, as a page of another site would make them, are refused."""
    desk = InferenceServer(segmenter)
    page = (
        files("orchestrator.evaluation")
        .joinpath("demo.html")
        .read_text("utf-8")
        .replace("{{name}}", html.escape(name))
    )
    guard = {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }

    async def index(request: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=guard)

    async def segment(request: Request) -> JSONResponse:
        try:
            text = request.query_params.get("sentence", "")
            if len(text) > MOST_LETTERS:
                raise Refused(
                    400,
                    f"the sentence has {len(text)} letters, and {MOST_LETTERS} are the most; make it shorter",
                )
            # a form of another site could send plain text here unasked, but no picture
            if not request.headers.get("content-type", "").startswith("image/"):
                raise Refused(
                    415,
                    "the body is not declared as a picture; send a JPEG or PNG file with content type image/jpeg or image/png",
                )
            found, status = await run_in_threadpool(desk.ask, await _body(request), text), 200
        except UserError as error:
            found, status = {"error": str(error)}, 400
        except Refused as error:
            found, status = {"error": str(error)}, error.status
        return JSONResponse(found, status, headers=guard)

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return Starlette(
        routes=[Route("/", index), Route("/segment", segment, methods=["POST"])], middleware=[hosts]
    )


def serve_demo(checkpoint: Path, port: int, *, precision: str | None = None, say=print) -> int:
    """Serve the page on 127.0.0.1 until interrupted. UserError: no checkpoint there, a port that is taken."""
    import uvicorn

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port {port} of {HOST} cannot be had ({getattr(error, 'strerror', None) or error}); give another --port"
            ) from None
        segmenter = Segmenter.load(
            checkpoint, "cuda" if torch.cuda.is_available() else "cpu", precision
        )
        app = make_app(
            segmenter, f"{segmenter.model.name}, {checkpoint.parent.name}/{checkpoint.name}"
        )
        say(
            f"http://{HOST}:{listening.getsockname()[1]} shows the page; only this machine can open it. Ctrl-C ends it"
        )
        try:
            uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(
                sockets=[listening]
            )
        except KeyboardInterrupt:
            say("ended")
    return 0


async def _body(request: Request) -> bytes:
    """The body, refused as soon as it is too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise Refused(
                413, f"the picture file is larger than {MOST_BYTES >> 20} MiB; make it smaller"
            )
    return bytes(body)


def _small(image):
    """At most SIDE x SIDE.   (H, W, 3) uint8 -> (h, w, 3) uint8"""
    import numpy as np

    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def _url(picture) -> str:
    return "data:image/png;base64," + base64.b64encode(png(Image.fromarray(picture))).decode()
