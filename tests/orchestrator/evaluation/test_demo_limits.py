"""The page of `demo` answers whatever its clients do, and takes little for what it refuses."""

import contextlib
import http.client
import io
import json
import logging
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from PIL import Image, ImageFile

from aml.errors import UserError
from aml.masking import preset
from orchestrator.evaluation.pages import demo, http_limits, inference_server
from orchestrator.utils import listening_socket

UPLOAD = "/segment?sentence=the%20dog"
PICTURE = {"Content-Type": "image/png"}
ANSWER_S = 60
"""Seconds after which a test gives up."""


@pytest.fixture
def limits(monkeypatch):
    """Set limits that tests reach soon."""
    monkeypatch.setattr(demo, "MAX_UPLOADS", 2)
    monkeypatch.setattr(http_limits, "MAX_CONNECTIONS", 12)
    for name in ("HEAD_S", "BODY_S", "REFUSED_S"):
        monkeypatch.setattr(http_limits, name, 1.0)


@pytest.fixture
def port(limits, monkeypatch):
    """Return the port of a running server whose model answers at once."""
    monkeypatch.setattr(demo.InferenceServer, "segment", lambda *_: {"share": 0.5})
    masking = SimpleNamespace(config=preset())
    side = SimpleNamespace(name="small", masking=masking)
    server = http_limits.make_server(demo.make_app([side]))
    with listening_socket(demo.HOST, 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


def ask(port, method="GET", path="/", body=None):
    connection = http.client.HTTPConnection(demo.HOST, port, timeout=ANSWER_S)
    try:
        connection.request(method, path, body, PICTURE)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def opened(port, text):
    connection = socket.create_connection((demo.HOST, port), timeout=ANSWER_S)
    connection.sendall(text.encode())
    return connection


def begun_upload(port):
    head = f"POST {UPLOAD} HTTP/1.1\r\nHost: {demo.HOST}\r\nContent-Type: image/png\r\n"
    return opened(port, f"{head}Content-Length: 1000\r\n\r\nabc")


def test_the_page_answers_among_connections_that_never_end_their_request(port):
    slow = [opened(port, "GET / HTTP/1.1\r\n") for _ in range(3 * http_limits.MAX_CONNECTIONS)]
    for _ in range(3):
        assert ask(port)[0] == 200
    for connection in slow:
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b"", "it is closed and not answered"
        connection.close()


def test_a_body_that_does_not_come_is_answered(port):
    with begun_upload(port) as connection:
        reply = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b"did not come within 1 s; send it again" in reply


def test_an_upload_that_breaks_off_is_one_line_in_the_log(port, caplog):
    caplog.set_level(logging.INFO)
    begun_upload(port).close()
    deadline = time.monotonic() + ANSWER_S
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ask(port, "POST", UPLOAD, b"a picture")[0] == 200
    assert caplog.messages == ["the picture file was broken off after 3 bytes"]
    assert not caplog.records[0].exc_info


def test_more_uploads_than_fit_are_refused_in_a_sentence(port, monkeypatch):
    go_on = threading.Event()
    at_once, most = 0, 0

    def segment(*_):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        go_on.wait(ANSWER_S)
        at_once -= 1
        return {"share": 0.5}

    monkeypatch.setattr(demo.InferenceServer, "segment", segment)
    replies = []
    threads = [
        threading.Thread(target=lambda: replies.append(ask(port, "POST", UPLOAD, b"a picture")))
        for _ in range(demo.MAX_UPLOADS + 6)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + ANSWER_S
    while len(replies) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ask(port)[0] == 200, "the page answers meanwhile"
    refused = list(replies)
    go_on.set()
    for thread in threads:
        thread.join()
    assert [status for status, _ in refused] == 6 * [503]
    assert all("try again in a moment" in json.loads(body)["error"] for _, body in refused)
    assert [status for status, _ in replies[6:]] == demo.MAX_UPLOADS * [200]
    assert most == 1


def test_too_large_a_file_is_refused_before_it_comes(port):
    head = f"POST {UPLOAD} HTTP/1.1\r\nHost: {demo.HOST}\r\nContent-Type: image/png\r\n"
    with opened(port, f"{head}Content-Length: {demo.MAX_BYTES + 1}\r\n\r\n") as connection:
        assert connection.recv(2**16).startswith(b"HTTP/1.1 413 ")


def encoded(form, width, height):
    out = io.BytesIO()
    Image.new("L", (width, height), 90).save(out, form)
    return out.getvalue()


@pytest.mark.parametrize(("form", "width", "height"), [("PNG", 5000, 4000), ("JPEG", 9000, 6000)])
def test_a_picture_that_is_too_large_is_never_decoded(form, width, height, monkeypatch):
    file = encoded(form, width, height)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match=f"is {width} x {height} pixels, and .* are the most"):
        inference_server._open_reduced(file, demo.MAX_PIXELS)


def test_a_large_jpeg_file_is_decoded_at_a_part_of_its_size(monkeypatch):
    file = encoded("JPEG", 8000, 5000)
    sizes = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda self: sizes.append(self.size) or load(self)
    )
    image = inference_server._open_reduced(file, demo.MAX_PIXELS)
    assert image.shape == (800, inference_server.MAX_SIDE, 3)
    assert sizes[0] == (2000, 1250)
    assert (abs(image.astype(int) - 90) <= 1).all()
