"""Patches that the encoder does not read (aml.fill drop): what is computed, what it costs."""

import pytest
import torch

from aml.data.batches import train_batches
from aml.errors import UserError
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.masking.selection import blocks_to_pixels
from aml.models.registry import build_model
from aml.training.config import OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.profile import step_flops
from tests.aml.masking.test_modes import passes_of
from tests.aml.models.test_models import TINY

DROP = {"fill": "drop", "block": 16, "tau": 0.8, "rho": 0.5}


@pytest.fixture(scope="module")
def model(make_model):
    torch.manual_seed(0)
    sizes = {"width": 64, "layers": 6, "extract": [1, 3, 5], "dropout": 0.0}
    vocabulary = make_model().vocabulary
    return build_model("clipseg", vocabulary=vocabulary, **{**TINY["clipseg"], **sizes})


@pytest.fixture(scope="module")
def batch(items, model):
    return next(train_batches(items["train"], model, batch=4, seed=0, epoch=0))


def test_the_encoder_reads_the_visible_patches_alone(model, batch):
    """One picture at a time, without padding, layer by layer; other places of the maps are zero."""
    x = model.normalise(batch.image)
    blocks = torch.zeros(4, 4, 4, dtype=torch.bool)
    blocks[0, :2] = blocks[1, 1, 1:] = blocks[2] = True  # 8, 3, all and none of 16 are hidden
    maps = model.encode_visible(x, ~blocks_to_pixels(blocks, 16, 64, 64))
    network = model.clip.vision_model
    with torch.no_grad():
        for i in range(4):
            state = network.pre_layrnorm(network.embeddings(x[i : i + 1]))
            seen = torch.cat([torch.tensor([True]), ~blocks[i].flatten()])
            state, found = state[:, seen], []
            for layer in network.encoder.layers:
                state = layer(state, attention_mask=None)
                found.append(state)
            for at, one in zip(model.extract, maps[:-1], strict=True):
                patches = one[i].flatten(1).T
                assert torch.allclose(patches[seen[1:]], found[at][0, 1:], atol=1e-5)
                assert not patches[~seen[1:]].any()
            classes = torch.cat([found[at][0, 0] for at in model.extract])
            assert torch.allclose(maps[-1][i, :, 0, 0], classes, atol=1e-5)


def test_a_pass_carries_the_whole_image_and_what_of_it_is_read(model, batch):
    x = model.normalise(batch.image)
    for mode, passes in (("aml", 1), ("maskris", 2)):
        masker = Masker(preset(**DROP, mode=mode), model=model, image_size=64)
        *_, one = found = passes_of(masker, model, batch)
        assert len(found) == passes and one.drop and torch.equal(one.x, x)
        assert one.mask.hidden.any()
        assert torch.equal(one.visible, ~blocks_to_pixels(one.mask.hidden, 16, 64, 64))


def test_a_step_costs_less_than_one_on_the_clean_image(model, batch):
    def flops(**aml):
        masker = Masker(preset(**aml), model=model, image_size=64)
        learner = Learner(model, masker, optim=OptimConfig(), train=TrainConfig(batch=4), steps=1)
        return step_flops(learner, batch)

    off, blank = flops(mode="off"), {**DROP, "fill": "zero"}
    assert flops(mode="random", **blank) == off
    assert flops(mode="random", **DROP) < 0.95 * off
    assert flops(mode="aml", **DROP) < flops(mode="aml", **blank) - 0.05 * off


def test_refused(model, make_model):
    with pytest.raises(UserError, match="model small reads all of them; use fill zero or mean"):
        Masker(preset(**DROP), model=make_model(), image_size=64)
    with pytest.raises(UserError, match="blocks of 24 pixels, which cut the patches of 16 pixels"):
        Masker(preset(**{**DROP, "block": 24}), model=model, image_size=96)
    with pytest.raises(UserError, match="leaves the image whole; use fill zero"):
        preset(**DROP, level="feature")
    Masker(preset(**DROP, mode="off"), model=make_model(), image_size=64)  # it hides nothing
