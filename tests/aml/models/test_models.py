"""One suite for every model: what the loop and masking expect of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aml.errors import UserError
from aml.inference.segmenter import Segmenter
from aml.models.base import find_class
from aml.models.contract import check
from aml.models.options import MODELS, options
from aml.models.registry import build_model
from aml.training.scoring import whole_image_logits

VOCABULARY = ["left", "red", "circle", "blue", "right", "square", "the", "of"]
SENTENCES = ["left red circle", "the blue square right of the circle", "square"]


WORDS = {"text": "words", "text_width": 32, "text_layers": 2, "text_heads": 2, "max_tokens": 12}
SWIN = {"backbone": "swin_test", "window": 4, "pretrained": False}
TINY = {
    "small": {},
    "compose": {
        "backbone": "test_efficientnet",
        "backbone_weights": "random",
        "text": "words",
        "width": 32,
        "stem": 16,
        "layers": 1,
        "heads": 2,
        "max_tokens": 12,
    },
    "caris": WORDS | SWIN | {"width": 32, "inner": 32, "heads": 2, "layers": 2},
    "lavt": WORDS | SWIN,
    "detris": {
        "text": "words",
        "text_width": 32,
        "text_layers": 2,
        "text_heads": 2,
        "pretrained": False,
        "size": 56,
        "vit_width": 32,
        "vit_depth": 4,
        "vit_heads": 2,
        "visual_adapter": 16,
        "text_adapter": 16,
        "width": 32,
        "layers": 1,
        "heads": 2,
        "feed": 32,
    },
    "clipseg": {
        "weights": "words",
        "dropout": 0.1,
        "width": 32,
        "layers": 4,
        "heads": 2,
        "size": 64,
        "text_width": 32,
        "text_layers": 2,
        "text_heads": 2,
        "projection": 24,
        "reduce": 16,
        "feed": 32,
        "extract": [0, 1, 2],
    },
    "sam3": {
        "weights": "words",
        "max_tokens": 12,
        "width": 32,
        "layers": 4,
        "heads": 2,
        "window": 2,
        "text_width": 32,
        "text_layers": 2,
        "text_heads": 2,
        "reduce": 32,
        "joint_layers": 2,
        "feed": 32,
    },
}
"""Options that make each model small enough for this suite."""

ROUNDING = 2e-5
"""Of the largest logit: how far logits may lie apart that were computed in batches of other shapes.
Matrix products of other shapes take other
kernels, which add the same terms in another order. A sum of n = 1,000 terms in float32 is then off
by about sqrt(n) 2^-24 = 2e-6, and 20 such
layers, each of them normalised, by sqrt(20) times that, 1e-5: twice that here. A word or a place
too much changes a thousand times more."""


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    torch.manual_seed(0)
    return build_model(name, vocabulary=VOCABULARY, **TINY[name]).eval()


def inputs(model, height=64, width=64, sentences=SENTENCES):
    """Normalised x, tokens, token_mask; sides are rounded up to what the model takes."""
    height, width = (
        -(-side // model.image_multiple) * model.image_multiple for side in (height, width)
    )
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(
        0, 256, (len(sentences), 3, height, width), generator=generator, dtype=torch.uint8
    )
    return model.normalise(image), *model.tokenise(sentences)


def test_a_picture_is_encoded_once_for_the_sentences_that_follow_one_another(model, monkeypatch):
    side = -(-64 // model.image_multiple) * model.image_multiple
    picture = torch.randint(
        0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    of = torch.tensor([0, 0, 1])
    tokens, token_mask = model.tokenise(SENTENCES)
    batch = SimpleNamespace(
        image=picture[of],
        dataset=torch.tensor([0, 0, 0]),
        image_id=torch.tensor([7, 7, 8]),
        tokens=tokens,
        token_mask=token_mask,
    )
    encoded = []
    if not model.fuses:
        encode = model.encode
        monkeypatch.setattr(
            model, "encode", lambda x: encoded.append(len(x)) or encode(x), raising=False
        )
    with torch.no_grad():
        logits = whole_image_logits(model, batch)
        batch.dataset = torch.tensor(
            [0, 1, 1]
        )  # the same number in another data set is another picture
        whole_image_logits(model, batch)
    assert encoded == ([] if model.fuses else [2, 3])
    with torch.no_grad():
        assert torch.allclose(
            logits, model(model.normalise(batch.image), tokens, token_mask), atol=1e-5
        )


def test_a_model_keeps_the_interface(name):
    """Check declarations, tokens, logits, features, gradients, rebuilding (aml.models.check)."""
    assert check(name, **TINY[name]) == []


def test_a_model_has_the_name_it_is_built_by(model, name):
    assert find_class(name).name == model.name == model.spec["name"] == name
    assert model.vocabulary == VOCABULARY


def test_unknown_words_are_one_token(model):
    tokens, _ = model.tokenise(["zebra", "giraffe"])
    assert torch.equal(tokens[0], tokens[1])


def test_features_run_no_deeper_than_they_need(model):
    """A parameter behind the source gets no gradient, and the encoder's picture does not depend on
    the words, unless they are fused into it.
    """
    x, tokens, mask = inputs(model)
    encoder = model.features(x, tokens, mask, upto="encoder")
    other = model.features(x, tokens[[1, 2, 0]], mask[[1, 2, 0]], upto="encoder")
    assert model.fuses or torch.equal(encoder.visual, other.visual)
    for source in ("encoder", "joint"):
        model.zero_grad()
        f = model.features(x, tokens, mask, upto=source)
        trained = [p for p in model.parameters() if p.requires_grad]
        total = f.visual.sum() + f.text.sum()
        if total.requires_grad:  # a source in front of which all is frozen has nothing to train
            total.backward()
            assert any(p.grad is not None for p in trained)
        assert sum(p.grad is not None for p in trained) < len(trained)
    model.zero_grad()


def test_dropout_only_in_training(model):
    x = inputs(model)
    with torch.no_grad():
        assert torch.equal(model(*x), model(*x))
        model.train()
        assert not torch.equal(model(*x), model(*x))
    model.eval()


def test_unknown_options_are_refused_with_the_nearest(name):
    with pytest.raises(
        UserError, match=r"unknown key model\.dropuot; did you mean model\.dropout\?"
    ):
        options(name, dropuot=0.1)
    with pytest.raises(
        UserError, match=rf"model\.name is '{name}l' \(did you mean {name}\?\); known: "
    ):
        build_model(name + "l", vocabulary=VOCABULARY)


# ---- the small model


def test_the_small_model_is_small():
    count = sum(p.numel() for p in build_model("small", vocabulary=VOCABULARY).parameters())
    assert 2e6 < count < 6e6


def test_features_of_the_small_model():
    small = build_model("small", vocabulary=VOCABULARY, width=32, stem=16, heads=2).eval()
    x, tokens, mask = inputs(small, 96, 64)
    with torch.no_grad():
        assert small.features(x, tokens, mask, "encoder").visual.shape == (3, 32, 6, 4)
        assert small.features(x, tokens, mask, "joint").visual.shape == (3, 32, 12, 8)
        assert small(x, tokens, mask).shape == (3, 24, 16)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"width": 100}, "must be multiples of 8"),
        ({"stem": 60}, "must be multiples of 8"),
        ({"heads": 5}, r"width of model\.heads 5"),
        ({"layers": 1}, r"whole number in \[2"),
        ({"blocks": 0}, r"model\.blocks is 0"),
        ({"dropout": 1.0}, r"number in \[0, 1\)"),
        ({"max_words": 0}, r"model\.max_words is 0"),
    ],
)
def test_refused_options_of_the_small_model(given, words):
    with pytest.raises(UserError, match=words):
        options("small", **given)


@pytest.mark.parametrize("fit", ["square", "letterbox"])
def test_a_picture_encoded_once_gives_each_sentence_the_mask_it_gets_alone(model, fit):
    """Sentences of unequal length, so that the padding of a batch is another than that of a
    sentence alone.
    """
    size = -(-48 // model.image_multiple) * model.image_multiple
    segmenter = Segmenter(model, image_size=size, fit=fit)
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    sentences, of = [*SENTENCES, "red", *SENTENCES], [0, 0, 0, 2, 1, 1, 1]
    together = torch.cat(list(segmenter.iter_logits(images, sentences, of, batch=3)))
    alone = torch.cat(
        [
            segmenter.logits(images[[k]], [sentence])
            for k, sentence in zip(of, sentences, strict=True)
        ]
    )
    tolerance, cut = (
        ROUNDING * alone.abs().max(),
        alone.median(),
    )  # an untrained model's logits may all be on one side of 0
    near = (
        alone - cut
    ).abs() <= tolerance  # what rounding may move over the cut: the median itself is a logit
    assert torch.allclose(together, alone, rtol=0, atol=tolerance)
    assert torch.equal((together > cut)[~near], (alone > cut)[~near]) and near.float().mean() < 0.01
    assert not torch.allclose(together[0], together[1], atol=1e-4), "the sentence is read"
    picture = np.random.default_rng(1).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    maps = segmenter.probabilities(picture, sentences, batch=2)
    assert maps.shape == (7, 30, 50) and all(
        np.allclose(m, segmenter.segment(picture, s), atol=max(1e-5, float(tolerance) / 4))
        for m, s in zip(maps, sentences, strict=True)
    ), "the sigmoid rises by a quarter at most"


def test_the_encoder_runs_once_a_picture_where_it_reads_no_words(model, monkeypatch):
    size = 2 * model.image_multiple
    segmenter, pictures = Segmenter(model, image_size=size), []
    name = "forward" if model.fuses else "encode"
    whole = getattr(model, name)
    monkeypatch.setattr(model, name, lambda x, *rest: pictures.append(len(x)) or whole(x, *rest))
    images = np.zeros((2, size, size, 3), np.uint8)
    list(segmenter.iter_logits(images, SENTENCES * 2, [0, 0, 0, 1, 1, 1], batch=64))
    assert pictures == [6 if model.fuses else 2]


def test_bf16_computes_in_bf16(model):
    segmenter = Segmenter(model, image_size=2 * model.image_multiple, precision="bf16")
    images = np.random.default_rng(0).integers(
        0, 256, (1, segmenter.image_size, segmenter.image_size, 3), dtype=np.uint8
    )
    exact = Segmenter(model, image_size=segmenter.image_size).logits(images, ["red circle"])
    half = segmenter.logits(images, ["red circle"])
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    assert (half - exact).abs().mean() < 0.1 * exact.abs().max()
    with pytest.raises(UserError, match="precision is 'bf61'; known: fp32"):
        Segmenter(model, image_size=64, precision="bf61")
