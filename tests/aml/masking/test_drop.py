"""Patches that the encoder does not read (aml.fill drop): what is computed, what it costs."""

import pytest
import torch
from pydantic import ValidationError

from aml.data.batches import train_batches
from aml.errors import UserError
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.masking.selection import blocks_to_pixels
from aml.models.encoders.backbone import (
    build_backbone,
    plan_backbone,
    visible_patch_maps,
    visual_maps,
)
from aml.models.encoders.siglip import vision_tower
from aml.models.registry import build_model
from aml.training.checkpoint_config import CheckpointConfig
from aml.training.config import OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.profile import step_flops
from orchestrator.config.validation import check_run
from tests.aml.masking.test_modes import passes_of
from tests.aml.models.test_compose import experiment
from tests.aml.models.test_models import TINY, VOCABULARY
from tests.support import siglip_folder

DROP = {"fill": "drop", "block": 16, "tau": 0.8, "rho": 0.5}


SIZES = {
    "clipseg": {**TINY["clipseg"], "width": 64, "layers": 6, "extract": [1, 3, 5], "dropout": 0.0},
    "compose": TINY["compose"] | {"backbone": "vit_tiny_patch16_224"},
}

BLOCKS = torch.zeros(4, 4, 4, dtype=torch.bool)
BLOCKS[0, :2] = BLOCKS[1, 1, 1:] = BLOCKS[2] = True  # 8, 3, all and none of 16 are hidden
"""Hidden blocks of four images of 64 px, each a patch."""


@pytest.fixture(scope="module")
def make_vit(make_model):
    def make(name):
        torch.manual_seed(0)
        return build_model(name, vocabulary=make_model().vocabulary, **SIZES[name])

    return make


@pytest.fixture(scope="module")
def model(make_vit):
    return make_vit("clipseg")


@pytest.fixture(scope="module")
def batch(items, model):
    return next(train_batches(items["train"], model, batch=4, seed=0, epoch=0))


def test_the_encoder_reads_the_visible_patches_alone(model, batch):
    """One picture at a time, without padding, layer by layer; other places of the maps are zero."""
    x = model.normalise(batch.image)
    maps = model.encode_visible(x, ~blocks_to_pixels(BLOCKS, 16, 64, 64))
    network = model.clip.vision_model
    with torch.no_grad():
        for i in range(4):
            state = network.pre_layrnorm(network.embeddings(x[i : i + 1]))
            seen = torch.cat([torch.tensor([True]), ~BLOCKS[i].flatten()])
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


@pytest.mark.parametrize("backbone", ["test_vit", "test_vit2", "test_vit3"])
def test_a_backbone_of_timm_reads_the_visible_patches_alone(backbone):
    plan = plan_backbone(backbone)
    assert plan.drops
    torch.manual_seed(0)
    net = build_backbone(backbone, "random", plan, read=True).eval()
    vit, x = net.model, torch.randn(4, 3, 64, 64)
    prefix = vit.num_prefix_tokens
    with torch.no_grad():
        everything = visible_patch_maps(net, x, torch.ones(4, 64, 64, dtype=torch.bool))
        for whole, one in zip(visual_maps(net, x), everything, strict=True):
            assert torch.allclose(whole, one, atol=1e-5)
        maps = visible_patch_maps(net, x, ~blocks_to_pixels(BLOCKS, 16, 64, 64))
        assert not any(one[2].any() for one in maps), "an image of which nothing is seen"
        for i in (0, 1, 3):
            seen = ~BLOCKS[i].flatten()
            read = torch.cat([torch.ones(prefix, dtype=torch.bool), seen])
            state, found = vit.norm_pre(vit._pos_embed(vit.patch_embed(x[i : i + 1])))[:, read], []
            for block in vit.blocks:
                state = block(state)
                found.append(state[0, prefix:])
            for at, one in zip(net.out_indices, maps, strict=True):
                places = one[i].flatten(1).T
                assert torch.allclose(places[seen], found[at], atol=1e-5)
                assert not places[~seen].any()


def test_a_vision_tower_of_siglip_reads_the_visible_patches_alone(tmp_path):
    folder = siglip_folder.write(tmp_path / "folder", VOCABULARY)
    tower, _ = vision_tower(folder, "pretrained", {})
    x = torch.randn(4, 3, 64, 64)
    visible = ~blocks_to_pixels(BLOCKS, siglip_folder.PATCH, 64, 64)
    with torch.no_grad():
        whole, maps = tower.eval()(x), tower(x, visible)
        others = tower(torch.where(visible[:, None], x, x.flip(0)), visible)
    assert torch.allclose(maps[-1][3], whole[-1][3], atol=1e-5), "the last image is whole"
    for one, same in zip(maps, others, strict=True):
        assert torch.allclose(one, same, atol=1e-5), "hidden patches are read"
        assert not one.movedim(1, -1)[BLOCKS].any() and one.movedim(1, -1)[~BLOCKS].any()


def test_a_pass_carries_the_whole_image_and_what_of_it_is_read(model, batch):
    x = model.normalise(batch.image)
    for mode, passes in (("aml", 1), ("maskris", 2)):
        masker = Masker(preset(**DROP, mode=mode), model=model, image_size=64)
        *_, one = found = passes_of(masker, model, batch)
        assert len(found) == passes and one.drop and torch.equal(one.x, x)
        assert one.mask.hidden.any()
        assert torch.equal(one.visible, ~blocks_to_pixels(one.mask.hidden, 16, 64, 64))


@pytest.mark.parametrize("name", list(SIZES))
def test_a_step_costs_less_than_one_on_the_clean_image(name, make_vit, items):
    model = make_vit(name)
    batch = next(train_batches(items["train"], model, batch=4, seed=0, epoch=0))

    def flops(**aml):
        masker = Masker(preset(**aml), model=model, image_size=64)
        learner = Learner(model, masker, optim=OptimConfig(), train=TrainConfig(batch=4), steps=1)
        return step_flops(learner, batch)

    off, blank = flops(mode="off"), {**DROP, "fill": "zero"}
    assert flops(mode="random", **blank) == off
    assert flops(mode="random", **DROP) < 0.95 * off
    assert flops(mode="aml", **DROP) < flops(mode="aml", **blank) - 0.05 * off


def test_whether_a_model_of_parts_drops_is_known_before_it_is_built():
    def check(backbone):
        check_run(experiment(backbone=backbone).replace(aml=preset(**DROP)))

    check("test_vit")
    for backbone in ("test_efficientnet", "vit_small_patch16_dinov3.lvd1689m"):
        with pytest.raises(UserError, match="model compose reads all of them; use fill zero"):
            check(backbone)


def test_a_checkpoint_of_parts_has_the_side_that_its_parts_take():
    """A side of 80 px is a multiple of this backbone's 16 and not of the default one's 32."""
    spec = {"name": "compose"} | TINY["compose"] | {"backbone": "test_vit"}
    config = {"model": spec, "vocabulary": ["cat"], "image_size": 80}
    config |= {"fit": "square", "threshold": 0.5}
    assert CheckpointConfig.model_validate(config).image_size == 80
    with pytest.raises(ValidationError, match="needs a multiple of 32"):
        CheckpointConfig.model_validate(config | {"model": {"name": "lavt"}})


def test_refused(model, make_model):
    with pytest.raises(UserError, match="model small reads all of them; use fill zero or mean"):
        Masker(preset(**DROP), model=make_model(), image_size=64)
    with pytest.raises(UserError, match="blocks of 24 pixels, which cut the patches of 16 pixels"):
        Masker(preset(**{**DROP, "block": 24}), model=model, image_size=96)
    with pytest.raises(UserError, match="leaves the image whole; use fill zero"):
        preset(**DROP, level="feature")
    Masker(preset(**DROP, mode="off"), model=make_model(), image_size=64)  # it hides nothing
