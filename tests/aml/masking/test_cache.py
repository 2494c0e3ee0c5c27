"""Alignment of an earlier epoch: what is kept of a pass, and which masks are made of it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aml.data.dataset import Items
from aml.errors import UserError
from aml.masking.config import preset
from aml.masking.diagnostics import MaskSums
from aml.masking.masker import Masker
from aml.masking.passes import MaskInputs
from aml.masking.selection import block_sums
from aml.masking.stage1.align import LEVELS, REACH, UNSEEN
from aml.masking.step import Step
from aml.training.config import OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.profile import make_learner_and_batch, step_flops
from aml.training.scoring import TrainSums

STEP = 2 * REACH / LEVELS
"""Log-odds between two bytes."""


class Bright(nn.Module):
    """Finds bright places likely, wherever they lie, whatever is said of them."""

    name, sources, fuses, image_multiple = "bright", ("prediction",), False, 8

    def normalise(self, image):
        return image.float() / 127.5 - 1

    def tokenise(self, sentences):
        return torch.ones(len(sentences), 4, dtype=torch.int64), torch.ones(len(sentences), 4) > 0

    def forward(self, x, tokens, token_mask):
        return 6 * F.avg_pool2d(x.mean(1), 4)


def masker_of(**settings):
    return Masker(
        preset(**{"block": 8, "stage1": "cached", **settings}), model=Bright(), image_size=64
    )


def inputs_of(batch, **changes):
    model = Bright()
    given = (model, model.normalise(batch.image), batch.tokens, batch.token_mask)
    known = {"valid": batch.valid, "ids": batch.ids, "view": batch.view} | changes
    return MaskInputs(*given, batch.item, batch.real, **known)


def learn(masker, batch, **changes):
    """Train on a batch in an epoch: keep what is predicted of it."""
    given = inputs_of(batch, **changes)
    logits = given.model(given.x, given.tokens, given.token_mask)
    masker.end_epoch([masker.predicted(logits, given, None)])


def odds(masker, batch, epoch=1):
    """Return log-odds and known blocks of the cached alignment, both (B, 8, 8)."""
    alignment = masker.decide(inputs_of(batch), epoch).alignment
    return alignment.map.logit(1e-6), alignment.known


def fresh_odds(batch):
    fresh = masker_of(stage1="fresh", stage1_scale=1.0)
    return fresh.decide(inputs_of(batch), 1).blocks.score.logit(1e-6)


@pytest.fixture
def batch(items):
    return items["train"].batch(np.arange(24), Bright())


def test_masks_of_the_cache_are_those_of_a_fresh_pass_with_the_same_weights(make_model, items):
    """They may differ in blocks alone whose log-odds lie within a byte's step of the threshold."""
    torch.manual_seed(0)
    model = make_model(dropout=0.0)
    with torch.no_grad():  # an untrained model's odds are all alike
        batch = items["train"].batch(np.arange(48), model)
        logits = model(model.normalise(batch.image), batch.tokens, batch.token_mask)
    middle, width = logits.mean((1, 2), keepdim=True), logits.flatten(1).std(1).mean()
    model.register_forward_hook(lambda m, _, out: (out - middle) * 2 / width)
    settings = {"tau": 0.4, "rho": 1.0, "stage1_scale": 1.0}
    masks = {}
    for kind in ("fresh", "cached"):
        learner = Learner(
            model,
            Masker(preset(stage1=kind, **settings), model=model, image_size=64),
            optim=OptimConfig(lr=1e-12, weight_decay=0.0),
            train=TrainConfig(batch=48, epochs=2),
            steps=1,
        )
        sums = TrainSums("cpu")
        learner.step(batch, 0, 0, sums)
        learner.masker.end_epoch(sums.predictions)
        step = Step(learner.masker, model, batch, 1, run=lambda one: None)
        masks[kind] = step.mask()
    score = masks["fresh"].blocks.score.flatten(1).logit(1e-6)
    cached = masks["cached"].blocks.score.flatten(1).logit(1e-6)
    assert (score.clamp(-REACH, REACH) - cached).abs().max() <= STEP / 2 + 1e-3
    hidden = masks["fresh"].hidden.flatten(1)
    differ = hidden != masks["cached"].hidden.flatten(1)
    threshold = score.masked_fill(~hidden, -torch.inf).amax(1, keepdim=True)
    assert ((score - threshold).abs()[differ] < 2 * STEP).all()
    assert hidden.float().mean() == pytest.approx(0.4, abs=0.01) and differ.float().mean() < 0.01


def test_what_is_not_predicted_yet_stays_clean_and_is_counted(batch):
    masker = masker_of(tau=0.5, rho=0.5, noise=0.2)
    assert not masker.decide(inputs_of(batch), 0).hidden.any()
    batch.valid[16:] = False  # padding teaches nothing
    learn(masker, batch)
    batch.valid[:] = True
    mask = masker.decide(inputs_of(batch), 1)
    hidden = mask.hidden.flatten(1).float().mean(1)
    assert (hidden[:16] > 0.2).all() and (hidden[16:] == 0).all()
    sums = MaskSums()
    sums.add(mask, batch.mask, batch.valid, masker.block)
    assert sums.means()["uninformative"] == pytest.approx(1 / 3)
    fresh = MaskSums()
    decided = masker_of(stage1="fresh", stage1_scale=1.0).decide(inputs_of(batch), 1)
    fresh.add(decided, batch.mask, torch.arange(24) < 16, masker.block)
    assert sums.means()["auroc"] == pytest.approx(fresh.means()["auroc"], abs=0.01)
    random = masker_of(mode="random", rate=0.3)
    assert random.cache is None and random.decide(inputs_of(batch), 0).hidden.any()


def test_a_later_prediction_takes_the_place_of_an_earlier_one(batch):
    masker = masker_of()
    learn(masker, batch)
    before, _ = odds(masker, batch)
    brighter = items_like(batch, batch.image // 2 + 127)
    learn(masker, brighter.part(slice(0, 8)))
    after, known = odds(masker, batch)
    assert known.all() and torch.equal(before[8:], after[8:]) and (after[:8] > before[:8]).any()
    assert (after[:8] - fresh_odds(brighter)[:8]).abs().max() <= STEP / 2 + 1e-3


def items_like(batch, image):
    other = batch.part(slice(0, len(batch.item)))
    other.image = image
    return other


@pytest.mark.parametrize("augment", [["flip"], ["crop"], ["crop", "flip"]])
def test_a_map_follows_the_flips_and_crops_of_its_picture(blocks, augment):
    ramp = 60 + np.arange(64)[:, None] + 2 * np.arange(64)
    blocks = [b | {"image": np.broadcast_to(ramp[..., None], b["image"].shape)} for b in blocks]
    blocks = [b | {"image": b["image"].astype(np.uint8)} for b in blocks]
    items = Items(blocks, "train", size=64, augment=augment)
    masker = masker_of()
    first, second = (items.batch(np.arange(76), Bright(), seed=0, epoch=e) for e in (0, 1))
    assert not torch.equal(first.view, second.view)
    learn(masker, first)
    found, known = odds(masker, second)
    difference = (found - fresh_odds(second)).abs()
    if augment == ["flip"]:
        assert known.all() and difference.max() <= STEP / 2 + 1e-3
    else:
        assert 0.8 < known.float().mean() < 1.0, "what a crop cut away is not known"
        assert difference[known].mean() < 0.15
        second.view = None
        assert (odds(masker, second)[0] - fresh_odds(second)).abs()[known].mean() > 0.5
        seen = [(masker.cache.state_dict()["maps"][1:] != UNSEEN).float().mean()]
        learn(masker, items.batch(np.arange(76), Bright(), seed=0, epoch=1))
        seen.append((masker.cache.state_dict()["maps"][1:] != UNSEEN).float().mean())
        assert seen[0] + 0.05 < seen[1] < 1, "two crops show more than one"


def test_the_sentence_of_another_is_that_of_a_referent_of_the_same_picture(batch):
    masker = masker_of(sentence="other")
    n = len(batch.item)
    batch.image_id = torch.arange(n) // 3
    batch.image_id[21:] = torch.arange(90, 93)  # three pictures of one referent
    batch.ref_id = torch.arange(n)
    shade = torch.linspace(30, 220, n).round()[:, None, None, None]
    batch.image = (shade.expand(-1, 3, 64, 64) + torch.arange(64) % 2).to(torch.uint8)
    learn(masker, batch)
    own = fresh_odds(batch).mean((1, 2))
    taken = torch.zeros(n, n)
    for epoch in range(1, 61):
        found, known = odds(masker, batch, epoch)
        assert known[:21].all() and not known[21:].any(), "one referent alone would be told"
        nearest = (found.mean((1, 2))[:21, None] - own).abs().argmin(1)
        taken[torch.arange(21), nearest] += 1
    same = batch.image_id[:, None] == batch.image_id
    assert (taken[~same] == 0).all()
    assert (taken[:21][same[:21]] > 7).all(), "each of the three, its own included, about 20 times"


def test_a_cache_of_other_blocks_is_left_alone(batch):
    masker = masker_of()
    learn(masker, batch)
    same, other = masker_of(), masker_of(block=16)
    same.load_state_dict(masker.state_dict())
    other.load_state_dict(masker.state_dict())
    assert torch.equal(odds(same, batch)[0], odds(masker, batch)[0])
    assert not other.decide(inputs_of(batch), 1).alignment.known.any()
    older = {k: v for k, v in masker.state_dict().items() if k != "cache"}
    same.load_state_dict(older)  # of a checkpoint from before there was a cache
    assert masker_of(stage1="fresh").load_state_dict(masker.state_dict()) is None


def test_random_matches_the_amount_that_the_cache_would_hide(batch):
    settings = {"tau": 0.5, "rho": 0.5, "threshold_mode": "absolute"}
    aml, random = masker_of(**settings), masker_of(mode="random", rate="match", **settings)
    for masker in (aml, random):
        learn(masker, batch)
    a, b = (m.decide(inputs_of(batch), 1).hidden.flatten(1) for m in (aml, random))
    assert torch.equal(a.sum(1), b.sum(1)) and not torch.equal(a, b) and a.any()


def test_a_cached_step_costs_what_an_unmasked_one_does():
    flops = {}
    for name, settings in (("off", {"mode": "off"}), ("fresh", {}), ("cached", {"name": "cached"})):
        pair = make_learner_and_batch(preset(**settings), {"name": "small"}, batch=4, size=64)
        flops[name] = step_flops(*pair)
    assert flops["cached"] == flops["off"] < flops["fresh"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "encoder", "score": "cosine"}, "aml.source encoder"),
        ({"selection": "pixel"}, "aml.selection pixel.*or stage1 fresh"),
        ({"last_epoch": 1}, "nothing is hidden before epoch 2"),
    ],
)
def test_what_cannot_be_cached_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        masker_of(**settings)


def test_the_size_at_refcoco():
    cache = Masker(preset("cached"), model=Bright(), image_size=448).cache
    maps = cache.state_dict()["maps"]
    assert maps.shape == (1, 14, 14) and maps.element_size() * 14 * 14 * 42_404 < 8.4e6
    assert block_sums(torch.ones(1, 448, 448), 32).shape == (1, 14, 14)
