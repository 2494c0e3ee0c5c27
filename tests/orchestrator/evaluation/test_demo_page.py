"""The page of `demo` in Chromium, with a real upload: what a person sees and may change."""

import json
import threading
import urllib.request

import pytest
import torch
from PIL import Image

from aml.inference.segmenter import Segmenter
from orchestrator.evaluation.pages import demo, http_limits, inference_server
from orchestrator.utils import listening_socket
from tests.support.browser import Browser

SENTENCE = "the red square"
BOXES = "document.querySelectorAll('.side:nth-child({}) rect.{}').length"
LOOKED = "/ms for/.test(document.getElementById('say').textContent)"
TEXT = "document.getElementById('sides').textContent"
WIDER = "document.documentElement.scrollWidth > window.innerWidth"
SHOWN = "[...document.images].every(one => one.complete && (!one.src || one.naturalWidth))"


@pytest.fixture
def browser(tmp_path):
    one = Browser(tmp_path / "profile")
    yield one
    one.close()


@pytest.fixture
def address(make_model):
    """Return the address of the page of two models, served as `demo A --beside B` does."""
    sides = []
    for seed, arm in ((0, "off"), (1, "aml/paper")):
        model = make_model(seed)
        torch.nn.init.zeros_(model.bias)
        sides.append(demo.Side(Segmenter(model, image_size=64), f"model {seed}", arm))
    server = http_limits.make_server(demo.make_app(sides))
    with listening_socket(demo.HOST, 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://{demo.HOST}:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_a_person_uploads_asks_and_turns_the_sliders(browser, address, scenes, tmp_path):
    picture = sorted((scenes / "images" / "train2014").iterdir())[0]
    browser.open(address, 390, dark=True)
    assert not browser.ask(WIDER)
    browser.upload("#file", picture)
    browser.wait("!document.getElementById('picture').hidden")
    browser.type("#sentence", SENTENCE)
    browser.wait(LOOKED)
    # calibrated calls a share tau of all blocks weak; 64 px have 13 x 13 blocks of 5 px
    half = browser.wait(BOXES.format(1, "hid"))
    assert half + browser.ask(BOXES.format(1, "weak")) in (84, 85)
    browser.set("#rho", "1")
    browser.wait(f"{BOXES.format(1, 'hid')} > {half} && !{BOXES.format(1, 'weak')}")
    browser.set("#tau", "0.2")
    browser.wait(f"[33, 34].includes({BOXES.format(1, 'hid')})")
    assert "Prediction: " in browser.ask(TEXT) and ", weak 1" in browser.ask(TEXT)
    browser.set("#tau", "0")
    browser.wait(f"!{BOXES.format(1, 'hid')}")
    assert "training refuses" in browser.ask(TEXT)
    clean = browser.ask("document.getElementById('picture').src")
    overlays = "[...document.querySelectorAll('.side img[alt*=dimmed]')].map(one => one.src)"
    before = browser.ask(overlays)
    as_json = json.dumps(json.dumps(before, separators=(",", ":")))
    assert clean.startswith("blob:") and len(set(before)) == 2, "each model has its own"
    browser.set("#kind", "noise")
    browser.wait("document.getElementById('picture').src.startsWith('data:')")
    browser.wait(f"JSON.stringify({overlays}) !== {as_json}")
    assert browser.ask("document.getElementById('seen').textContent") == "Picture, noise 3 of 5"
    for width, dark in ((390, True), (1280, False)):
        browser.resize(width, dark=dark)
        browser.wait(SHOWN)
        assert not browser.ask(WIDER)
    browser.set("#kind", "")
    browser.wait("document.getElementById('picture').src.startsWith('blob:')")
    assert browser.problems == []


def test_a_picture_that_is_not_kept_any_more_is_sent_again(browser, address, scenes, tmp_path):
    picture = sorted((scenes / "images" / "train2014").iterdir())[0]
    browser.open(address)
    browser.upload("#file", picture)
    browser.type("#sentence", SENTENCE)
    browser.wait(BOXES.format(1, "hid"))
    for number in range(inference_server.CACHE_SIZE):
        Image.new("RGB", (20, 20 + number)).save(tmp_path / "other.png")
        request = urllib.request.Request(  # noqa: S310 (this test's own server)
            f"{address}/segment?sentence=a",
            (tmp_path / "other.png").read_bytes(),
            {"Content-Type": "image/png"},
        )
        urllib.request.urlopen(request).close()  # noqa: S310 (the same)
    browser.set("#tau", "1")
    browser.wait(f"{BOXES.format(1, 'hid')} + {BOXES.format(1, 'weak')} === 169")
