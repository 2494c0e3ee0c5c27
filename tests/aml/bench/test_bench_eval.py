"""The bench of evaluation: its limit by hand, its parts against the models' own operations, its
last line.
"""

import json

import pytest
import torch

from aml.bench import __main__, evaluation
from aml.inference.segmenter import Segmenter
from aml.models.registry import build_model
from aml.training import profile
from tests.aml.models.test_models import TINY


def test_the_limit_by_hand():
    assert evaluation.limit(1.0, 0.0, 0.0, 7) == 7, (
        "nothing but the picture: once instead of seven times"
    )
    assert evaluation.limit(0.0, 1.0, 2.0, 7) == 1, "nothing of the picture"
    assert evaluation.limit(6.0, 1.0, 1.0, 3) == pytest.approx(3 * 8 / 12)
    assert evaluation.limit(5.0, 1.0, 2.0, 1) == 1


@pytest.mark.parametrize("name", ["small", "clipseg", "lavt"])
def test_both_ways_and_the_parts_run_what_they_say(name, capsys, monkeypatch):
    """The last line is JSON that agrees with itself; the calls of the encoder show that one way
    shares pictures and the other does not.
    """
    pictures = []
    encode = Segmenter.encode
    monkeypatch.setattr(
        Segmenter,
        "encode",
        lambda self, images: pictures.append(len(images)) or encode(self, images),
    )
    size = "64" if name != "lavt" else "32"
    options = [f"--option={key}={json.dumps(value)}" for key, value in TINY[name].items()]
    __main__.main(
        [
            "eval",
            "--model",
            name,
            "--image-size",
            size,
            "--batch",
            "2",
            "--sentences",
            "3",
            "--rounds",
            "2",
            "--device",
            "cpu",
            *options,
        ]
    )
    *text, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    # once: 2 pictures; each: 3 batches of 2; the encoder alone: 2
    once, each, alone = [2], [2, 2, 2], [2]
    rounds = 2 + evaluation.WARM
    assert (
        pictures
        == ([] if name == "lavt" else alone)
        + (once + each + ([] if name == "lavt" else alone)) * rounds
    )
    assert found["share_of_limit"] == pytest.approx(found["speedup"] / found["limit"], abs=1e-3)
    if name == "lavt":
        assert (
            found["limit"] == 1
            and found["visual_ms"] is None
            and "nothing of a picture can be shared" in text[0]
        )
    else:
        parts = [found[f"{part}_ms"] for part in ("visual", "text", "decode")]
        assert (
            min(parts[:2]) > 0
            and found["limit"] == pytest.approx(evaluation.limit(*parts, 3), rel=2e-2)
            and "limit n(V+T+D)" in text[1]
        )


def test_the_text_is_timed_without_the_picture(monkeypatch):
    torch.manual_seed(0)
    model = build_model("small", vocabulary=profile.VOCABULARY, **TINY["small"])
    segmenter = Segmenter(model, image_size=32)
    seen = segmenter.encode(torch.zeros(1, 32, 32, 3, dtype=torch.uint8).numpy())
    read, monkey = [], model.text.forward
    monkeypatch.setattr(
        model.text,
        "forward",
        lambda tokens, mask: read.append(tuple(tokens.shape)) or monkey(tokens, mask),
    )
    monkeypatch.setattr(model, "encode", lambda x: pytest.fail("the picture was encoded"))
    evaluation._read(segmenter, seen, ["word1 word2"])
    assert read == [(1, 3)], "the pooling token and two words, no padding"
