"""Apply a checkpoint to pictures of one's own: with `predict`, and on the page of `demo`."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from aml.data import corrupt
from aml.errors import UserError
from aml.inference import segmenter as segmenter_module, visualize
from aml.models.registry import build_model
from aml.training import checkpoint
from orchestrator.evaluation import prediction
from orchestrator.evaluation.pages import demo, inference_server
from tests.support.hearing import hear

SIZE = 32
TEXT = "the red square"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a small untrained checkpoint whose predictions are neither empty nor full."""
    torch.manual_seed(1)
    model = build_model(
        "small", vocabulary=["the", "red", "square", "blue", "circle"], width=32, stem=16
    )
    with torch.no_grad():
        model.bias.zero_()
    out = tmp_path_factory.mktemp("checkpoint")
    checkpoint.save_checkpoint(
        out,
        model,
        {"image_size": SIZE, "fit": "square", "threshold": 0.5, "epoch": 0, "metrics": {}},
    )
    return out


@pytest.fixture(scope="module")
def segmenter(folder):
    return segmenter_module.Segmenter.load(folder)


def noise(seed=0, height=30, width=50):
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


def saved(path, seed=0, **more):
    Image.fromarray(noise(seed)).save(path, **more)
    return path


def opened(path):
    return np.asarray(Image.open(path))


# ---- predict


def test_one_picture_and_one_sentence_give_a_mask_of_the_pictures_size_upright(
    folder, segmenter, tmp_path
):
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation tag: turned by 90 degrees
    path = saved(tmp_path / "turned.jpg", exif=exif)
    said = hear([])
    out = {kind: tmp_path / f"{kind}.png" for kind in ("mask", "overlay", "probability")}
    prediction.predict_files(folder, path, [TEXT], out["mask"], out["overlay"], out["probability"])
    upright = np.asarray(Image.open(path).transpose(Image.Transpose.ROTATE_270))
    mask = opened(out["mask"]) == 255
    p = segmenter.segment(upright, TEXT)
    assert (
        mask.shape == (50, 30)
        and set(np.unique(opened(out["mask"]))) == {0, 255}
        and (mask == (p >= 0.5)).all()
    )
    assert abs(opened(out["probability"]) / 255 - p).max() <= 0.5 / 255 + 1e-6
    assert (
        opened(out["overlay"]) == visualize.draw_overlay(upright, mask, visualize.PREDICTION_COLOUR)
    ).all()
    assert (
        f"{mask.sum()} of 1500 pixels" in said[0]
        and re.search(r"\d ms: .*mask.png, .*overlay.png, .*probability.png", said[0])
        and len(said) == 1
    )


def test_a_picture_of_16_bits_is_refused_and_nothing_is_written(folder, tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((30, 50), 40_000, np.uint16)).save(path)
    with pytest.raises(UserError, match=r"deep\.png .* more than 8 bits a channel"):
        prediction.predict_files(folder, path, [TEXT], tmp_path / "mask.png")
    assert not (tmp_path / "mask.png").exists()


def test_a_folder_and_several_sentences_give_all_three_pictures_each_and_a_list(
    folder, segmenter, tmp_path, monkeypatch
):
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(("a.jpg", "b.PNG")):
        saved(tmp_path / "in" / name, seed)
    (tmp_path / "in" / "broken.png").write_text("no picture")
    (tmp_path / "in" / "notes.txt").write_text("no picture either")
    texts = [TEXT, "blue circle", "quxly"]
    said = hear([])
    encoded = []
    encode_image = segmenter_module.Segmenter.encode_image
    monkeypatch.setattr(
        segmenter_module.Segmenter,
        "encode_image",
        lambda self, image: encoded.append(image.shape) or encode_image(self, image),
    )
    prediction.predict_files(folder, tmp_path / "in", texts, tmp_path / "out")
    assert len(encoded) == 2, "a picture is encoded once for its sentences"
    lines = [
        json.loads(line)
        for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    ]
    assert [(x["image"], x["sentence"]) for x in lines] == [
        (name, text) for name in ("a.jpg", "b.PNG") for text in texts
    ]
    for line in lines:
        image = opened(tmp_path / "in" / line["image"])
        mask = opened(tmp_path / "out" / line["mask"]) == 255
        # One sentence is a batch of another shape, which may round otherwise and move a pixel at
        # the threshold.
        p = segmenter.segment(image, line["sentence"])
        assert (mask == (p >= 0.5))[abs(p - 0.5) > 1e-5].all()
        assert mask.sum() == line["pixels"]
        assert mask.size == line["of"]
        assert opened(tmp_path / "out" / line["overlay"]).shape == image.shape
        assert opened(tmp_path / "out" / line["probability"]).shape == mask.shape
        assert ("note" in line) == (line["sentence"] == "quxly")
    assert len(list((tmp_path / "out").iterdir())) == 3 * 6 + 1 + 1, "the list and the marker"
    assert any("left out" in text and "broken.png cannot be read" in text for text in said)
    assert re.search(r"2 picture\(s\), 3 sentence\(s\) each, \d+ ms a picture", said[-1])


def test_predict_says_when_it_knows_no_word_and_refuses_bad_input(folder, tmp_path):
    said = hear([])
    picture = saved(tmp_path / "picture.png")
    prediction.predict_files(folder, picture, ["quxly zorb"], tmp_path / "mask.png")
    assert "no word of 'quxly zorb'" in said[1]
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_text("no picture")
    none = tmp_path / "none.png"
    for images, texts, more, says in (
        (picture, [" ?! "], {}, "holds no word"),
        (tmp_path / "absent.png", [TEXT], {}, "absent.png cannot be read .it is missing."),
        (tmp_path / "text.png", [TEXT], {}, "text.png cannot be read as a picture"),
        (tmp_path / "empty", [TEXT], {}, "holds no picture"),
        (tmp_path / "bad", [TEXT], {}, "x.png cannot be read"),
        (picture, [TEXT, "blue"], {"overlay": none}, "name one file each"),
        (picture, [TEXT, "blue"], {"out": picture}, "is a file, and a folder is wanted"),
    ):
        with pytest.raises(UserError, match=says) as error:
            prediction.predict_files(folder, images, texts, **{"out": none} | more)
        assert "\n" not in str(error.value)
    assert not none.exists()


# ---- demo


@pytest.fixture
def client(segmenter):
    return TestClient(
        demo.make_app([demo.Side(segmenter, "small, <run>/best")]), base_url="http://127.0.0.1"
    )


def sent(seed=0, form="PNG", **size):
    out = io.BytesIO()
    Image.fromarray(noise(seed, **size)).save(out, form)
    return out.getvalue()


def ask(client, body, sentence=TEXT, kind="image/png", **more):
    asked = {"sentence": sentence} | more
    return client.post("/segment", params=asked, content=body, headers={"Content-Type": kind})


def of_url(url):
    head, data = url.split(",", 1)
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_page_is_one_file_that_loads_nothing_and_names_the_checkpoint(client):
    reply = client.get("/")
    assert (
        reply.status_code == 200
        and "small, &lt;run&gt;/best" in reply.text
        and "{{" not in reply.text
    )
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert not re.search(r'(src|href)="|url\(|@import|https?://', reply.text)


def test_a_picture_and_a_sentence_give_overlay_and_probability(client, segmenter, monkeypatch):
    encoded = []
    encode_image = segmenter_module.Segmenter.encode_image
    monkeypatch.setattr(
        segmenter_module.Segmenter,
        "encode_image",
        lambda self, image: encoded.append(image.shape) or encode_image(self, image),
    )
    for text in (TEXT, "blue circle", "quxly"):
        reply = ask(client, sent(), text)
        (found,) = reply.json()["sides"]
        p = segmenter.segment(noise(), text)
        assert reply.status_code == 200 and found["share"] == (p >= 0.5).mean() and found["ms"] > 0
        assert (
            of_url(found["overlay"])
            == visualize.draw_overlay(noise(), p >= 0.5, visualize.PREDICTION_COLOUR)
        ).all()
        assert abs(of_url(found["probability"]) / 255 - p).max() <= 0.5 / 255 + 1e-6
        assert bool(found["note"]) == (text == "quxly")
        assert reply.json()["encoded"] == (text == TEXT) and reply.json()["seen"] is None
    assert len(encoded) == 4, "once by the page, three times here"
    (large,) = ask(client, sent(height=400, width=2 * inference_server.MAX_SIDE)).json()["sides"]
    assert of_url(large["overlay"]).shape == (200, inference_server.MAX_SIDE, 3)


def test_a_corrupted_picture_is_shown_and_asked_about(client, segmenter):
    found = ask(client, sent(), corrupt="noise:5").json()
    image = corrupt(noise(), "noise", 5, image_id=0)
    assert (of_url(found["seen"]) == image).all()
    p = segmenter.segment(image, TEXT)
    assert found["sides"][0]["share"] == (p >= 0.5).mean()
    assert ask(client, sent()).json()["picture"] == found["picture"]


def test_hidden_blocks_are_those_that_training_would_hide(client, segmenter):
    """32 px have 16 x 16 blocks of 2 px: tau calls a share of them weak, and rho hides of these."""
    asked = {"picture": ask(client, sent()).json()["picture"], "sentence": TEXT, "draw": 0}

    def hide(tau, rho, **changes):
        reply = client.get("/hide", params=asked | {"tau": tau, "rho": rho} | changes)
        return reply.json()["sides"][0] if reply.status_code == 200 else reply

    quarter = hide(0.25, 1)
    assert len(quarter["weak"]) == len(quarter["hidden"]) == 64
    assert quarter["hidden_share"] == 0.25 and quarter["arm"] == "aml/calibrated"
    half = hide(0.25, 0.5)
    assert half["weak"] == quarter["weak"] and len(half["hidden"]) == 32
    assert half["hidden"] != hide(0.25, 0.5, draw=1)["hidden"]
    # the weak blocks are those of the lowest alignment, which is the model's own probability
    masking = demo.Side(segmenter, "small").masking
    scores = masking.full_map(masking.align(noise(height=32, width=32), TEXT), (32, 32))
    means = np.sort(scores.reshape(16, 2, 16, 2).mean((1, 3)).ravel())
    asked["picture"] = ask(client, sent(height=32, width=32)).json()["picture"]
    weak = [
        scores[round(32 * top) : round(32 * bottom), round(32 * left) : round(32 * right)].mean()
        for left, top, right, bottom in hide(0.25, 1)["weak"]
    ]
    assert np.allclose(np.sort(weak), means[:64], atol=1e-6)
    assert "less than one" in hide(0, 1)["refused"] and hide(0, 1)["hidden"] == []
    assert hide(0.5, 0.5, picture="unknown").status_code == 410
    for wrong in ({"tau": "x"}, {"tau": 2}, {"draw": -1}, {"corrupt": "rain:1"}, {"sentence": "?"}):
        refused = hide(0.5, 0.5, **wrong) if "tau" not in wrong else hide(wrong["tau"], 0.5)
        assert refused.status_code == 400 and "\n" not in refused.json()["error"]


def test_a_letterboxed_picture_loses_blocks_of_its_own_area_alone():
    """A picture of 2:1 fills rows 8 to 24 of 32 px, which are 8 x 16 blocks of 2 px."""
    torch.manual_seed(1)
    model = build_model("small", vocabulary=["red"], width=32, stem=16)
    boxed = segmenter_module.Segmenter(model, image_size=SIZE, fit="letterbox")
    masking = demo.Side(boxed, "small").masking
    picture = noise(height=50, width=100)
    found = masking.hide(masking.align(picture, "red"), (50, 100), tau=1.0, rho=1.0)
    assert len(found.hidden) == 128 and found.hidden_share == 1.0
    assert sum((r - x) * (b - y) for x, y, r, b in found.hidden) == pytest.approx(1.0)


def test_the_page_remembers_a_few_pictures_only(segmenter):
    server = demo.InferenceServer([demo.Side(segmenter, "small")], demo.MAX_PIXELS)
    assert [server.segment(sent(k), TEXT)["encoded"] for k in (0, 1, 2, 3, 4, 4, 1, 0)] == [
        True
    ] * 5 + [
        False,
        False,
        True,
    ]
    assert len(server.seen) == len(server.pictures) == inference_server.CACHE_SIZE


def test_what_the_page_cannot_take_is_refused_in_one_sentence(client, segmenter):
    for body, sentence, kind, status, says in (
        (b"no picture", TEXT, "image/png", 400, "cannot be read as a picture"),
        (b"", TEXT, "image/png", 400, "cannot be read as a picture"),
        (sent(), "?!", "image/png", 400, "holds no word"),
        (sent(), "red " * 100, "image/png", 400, "300 are the most"),
        (sent(), TEXT, "text/plain", 415, "not declared as a picture"),
        (b"\0" * (demo.MAX_BYTES + 1), TEXT, "image/png", 413, "larger than 20 MiB"),
    ):
        reply = ask(client, body, sentence, kind)
        assert (
            reply.status_code == status
            and says in reply.json()["error"]
            and "\n" not in reply.json()["error"]
        )
    small = TestClient(
        demo.make_app([demo.Side(segmenter, "small")], 1000), base_url="http://127.0.0.1"
    )
    assert "is 50 x 30 pixels" in ask(small, sent()).json()["error"]
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/segment").status_code == 405
    two = ask(client, sent(), corrupt="fog:1,fog:2")
    assert two.status_code == 400 and "2 corruptions were asked for" in two.json()["error"]


def test_demo_serves_this_machine_alone_until_interrupted(folder, unused_port):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [
        sys.executable,
        "-m",
        "orchestrator",
        "demo",
        str(folder),
        "--port",
        str(unused_port),
    ]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert f"http://127.0.0.1:{unused_port} shows the page" in process.stdout.readline()
        deadline = time.monotonic() + 120
        while True:
            try:
                page = (
                    urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/", timeout=5)
                    .read()
                    .decode()
                )
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        assert "<title>amlris: small, " in page
        with pytest.raises(
            UserError, match=f"port {unused_port} of 127.0.0.1 cannot be had .*give another --port"
        ):
            demo.serve_demo([folder], unused_port)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0 and "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.wait()
