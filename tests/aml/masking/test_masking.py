"""Masking: scores by hand, shares by counting, what the settings refuse, and that looking changes
nothing.
"""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aml.draws import uniform
from aml.masking.alignment import FLAT, patch_scores, similarity, solve_scale, token_entropy
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.masking.passes import MaskInputs, whole_image
from aml.masking.selection import weak_blocks
from aml.masking.stage1.align import CALIBRATION_BATCHES, frozen
from aml.masking.stage1.projections import Projections
from aml.models.base import Features

ENCODER = {"source": "encoder", "score": "token_softmax", "scale": 1.0, "stage1_scale": 1.0}


class Stub(nn.Module):
    """Patches are 8 px means of the image, tokens rows of a table: stage 1 with numbers a test can
    choose.
    """

    name, sources, image_multiple, fuses = "stub", ("encoder", "prediction"), 8, False

    def __init__(self, width=3, text_width=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("table", torch.randn(20, text_width, generator=generator))
        self.calls = 0

    def features(self, x, tokens, token_mask, upto, maps=None):
        self.calls += 1
        pooled = torch.zeros_like(token_mask)
        pooled[:, 0] = True
        return Features(F.avg_pool2d(x, 8), self.table[tokens], token_mask & ~pooled, pooled)

    def forward(self, x, tokens, token_mask):
        self.calls += 1
        return torch.einsum("bchw,bc->bhw", F.avg_pool2d(x, 8), self.table[tokens[:, 1]])


def inputs(n, size=64, words=4, length=6, seed=0):
    """Return x (n, 3, size, size), tokens, token_mask (a pooling token, words, padding), item."""
    g = torch.Generator().manual_seed(seed)
    x = F.interpolate(torch.randn(n, 3, size // 8, size // 8, generator=g), (size, size))
    tokens = torch.randint(1, 20, (n, length), generator=g)
    token_mask = (torch.arange(length) <= words).expand(n, length)
    return x, tokens * token_mask, token_mask, torch.randint(-(2**62), 2**62, (n,), generator=g)


def masker_of(size=64, model=None, seed=0, **settings):
    model = model or Stub()
    return Masker(
        preset(**{"block": 8, **settings}), model=model, image_size=size, seed=seed
    ), model


def mask_of(masker, model, n=500, epoch=0, size=64, **kwargs):
    x, tokens, token_mask, item = inputs(n, size)
    probe = kwargs.pop("probe", False)
    real = kwargs.pop("real", whole_image(x))
    given = MaskInputs(model, x, tokens, token_mask, item, real, **kwargs)
    return masker.decide(given, epoch, probe=probe)


def matrices(d_v, d_t, seed=0, **settings):
    return Projections(preset(**ENCODER, **settings), seed).of(
        torch.zeros(1, d_v, 1, 1), torch.zeros(1, 1, d_t)
    )[:2]


def everything(*shape):
    return torch.ones(*shape, dtype=torch.bool)


# ---- PMME ----------------------------------------------------------------------------------------


def test_similarity_by_hand():
    v, t = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    assert similarity(v, t, normalise=False).tolist() == [[[8, 3]]]
    assert similarity(v, t, scale=10.0).flatten().tolist() == pytest.approx([8, 6])
    w_i, w_t = (
        torch.tensor([[1.0, 1.0]]),
        torch.tensor([[2.0, 5.0]]),
    )  # after the norm: v' = 1.4, t' = 5 and 2
    assert similarity(v, t, w_i=w_i, w_t=w_t).flatten().tolist() == pytest.approx([7, 2.8])


@pytest.mark.parametrize(
    "projection, mean, sd", [("gaussian", 0.0, 2048**-0.5), ("shared", 1.0, (2 / 2048) ** 0.5)]
)
def test_independent_projections_destroy_inner_products_and_a_shared_one_keeps_them(
    projection, mean, sd
):
    v = F.normalize(torch.randn(2000, 1, 192, generator=torch.Generator().manual_seed(1)), dim=-1)
    w_i, w_t = matrices(192, 192, projection=projection, width=2048)
    products = similarity(
        v, v, w_i=w_i, w_t=w_t
    ).flatten()  # the same vector on both sides: 1 without projection
    assert products.mean() == pytest.approx(mean, abs=0.006)
    assert products.std() == pytest.approx(sd, rel=0.15)


def test_projections_are_seeded_and_outside_the_checkpoint():
    a, b, c = (matrices(8, 5, seed=s, projection="gaussian", width=16) for s in (3, 3, 4))
    assert a[0].shape == (16, 8) and a[1].shape == (16, 5)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not torch.equal(a[0], c[0])
    assert masker_of(**ENCODER, projection="gaussian")[0].state_dict() == {
        "log_scales": [],
        "projections": None,
    }


@pytest.mark.parametrize(
    "tokens, plain, projected",
    [(3, 0.354, 0.340), (5, 0.217, 0.205), (10, 0.111, 0.1035), (20, 0.0567, 0.0521)],
)
def test_the_papers_softmax_is_flat_so_every_patch_is_weak(tokens, plain, projected):
    """l2 norms and no temperature: the maximum over tokens is barely above 1 / tokens, with the
    paper's projections even less so.
    """
    g = torch.Generator().manual_seed(tokens)
    visual, text = torch.randn(50, 49, 192, generator=g), torch.randn(50, tokens, 192, generator=g)
    w_i, w_t = matrices(192, 192, projection="gaussian", width=2048)
    kept, real = everything(50, tokens), everything(50, 49)
    for s, expected in (
        (similarity(visual, text), plain),
        (similarity(visual, text, w_i=w_i, w_t=w_t), projected),
    ):
        a = patch_scores(s, "token_softmax", kept, kept, real)
        assert a.mean() == pytest.approx(expected, rel=0.01)
        assert (
            weak_blocks(a, real, tau=0.4, mode="absolute", tie=None, u=None).double().mean() > 0.98
        )
    assert a.max() < 0.4, "projected: every single patch"


def test_token_softmax_does_not_see_what_all_words_share():
    s = torch.randn(4, 10, 5)
    kept, real = everything(4, 5), everything(4, 10)
    shifted = patch_scores(s + 3 * torch.randn(4, 10, 1), "token_softmax", kept, kept, real)
    assert torch.allclose(shifted, patch_scores(s, "token_softmax", kept, kept, real), atol=1e-6)


S = torch.tensor(
    [[[0.0, 0.0], [math.log(2), math.log(4)], [math.log(2), 0.0]]]
)  # three patches, two tokens


@pytest.mark.parametrize(
    "score, kept, expected",
    [
        ("token_softmax", [1, 1], [1 / 2, 2 / 3, 2 / 3]),
        ("token_softmax", [1, 0], [1, 1, 1]),
        ("token_softmax", [0, 0], [0, 0, 0]),
        ("patch_softmax", [1, 1], [1 / 2, 1, 1]),
        ("patch_softmax", [0, 1], [1 / 4, 1, 1 / 4]),
        ("cosine", [1, 1], [0, 1, 0.5]),
        ("cosine", [1, 0], [0, 1, 1]),
        ("sentence", [1, 1], [0, 1, 0]),
    ],
)
def test_patch_scores_by_hand(score, kept, expected):
    kept, pooled = torch.tensor([kept], dtype=torch.bool), torch.tensor([[False, True]])
    assert patch_scores(S, score, kept, pooled, everything(1, 3))[0].tolist() == pytest.approx(
        expected
    )


@pytest.mark.parametrize("score", ["patch_softmax", "cosine", "sentence"])
def test_a_patch_outside_the_picture_sets_no_extreme(score):
    real = torch.tensor([[True, False, True]])
    kept = pooled = torch.tensor([[True, False]])
    assert patch_scores(S, score, kept, pooled, real)[0, [0, 2]].tolist() == pytest.approx(
        [0.5 if score == "patch_softmax" else 0, 1]
    )


@pytest.mark.parametrize("score", ["token_softmax", "cosine", "sentence"])
def test_rounding_is_no_alignment(score):
    """Similarities that differ by float noise only make a constant map."""
    s = 0.5 + 1e-7 * torch.rand(2, 30, 1).expand(2, 30, 3)
    a = patch_scores(
        s, score, everything(2, 3), torch.tensor([[True, False, False]] * 2), everything(2, 30)
    )
    assert float(a.max() - a.min()) < FLAT


def test_probability_is_the_sigmoid_of_the_foreground():
    masker, model = masker_of()
    logits = torch.tensor([[[0.0, math.log(3)], [-math.log(3), math.log(4)]]])
    x, tokens, token_mask, _ = inputs(1)
    item = torch.zeros(len(x), dtype=torch.int64)
    a = masker.align(MaskInputs(model, x, tokens, token_mask, item, whole_image(x), logits=logits))
    assert (
        a.map.flatten().tolist() == pytest.approx([0.5, 0.75, 0.25, 0.8])
        and a.informative.all()
        and model.calls == 0
    )


@pytest.mark.parametrize("mode", ["absolute", "minmax", "quantile"])
def test_a_one_word_sentence_is_uninformative_and_nothing_is_weak(mode):
    masker, model = masker_of(**ENCODER, threshold_mode=mode, tau=1.0, rho=1.0)
    x, tokens, token_mask, item = inputs(8, words=1)
    mask = masker(model, x, tokens, token_mask, epoch=0, item=item)
    assert torch.equal(mask.alignment.map, torch.ones(8, 8, 8))
    assert not mask.alignment.informative.any() and not mask.weak.any() and not mask.hidden.any()
    assert mask_of(masker, model, 8).hidden.any(), "with several words something is"


@pytest.mark.parametrize("tokens, n", [("all", 6), ("words", 4), ("words+pooled", 5)])
def test_which_tokens_take_part(tokens, n):
    masker, model = masker_of(**ENCODER, tokens=tokens)
    model.table.zero_()  # all tokens alike: every maximum is 1 / n
    assert torch.allclose(mask_of(masker, model, 3).alignment.map, torch.full((3, 8, 8), 1 / n))


# ---- the scale -----------------------------------------------------------------------------------


def test_solve_scale_by_hand():
    """Two tokens 0.1 apart: an entropy of half a bit needs log odds of 2.0907."""
    s, kept = torch.tensor([[[0.0, 0.1]]]), everything(1, 2)
    assert solve_scale(s, kept) == pytest.approx(20.907, rel=1e-3)


def test_solve_scale_halves_the_entropy_and_leaves_single_tokens_out():
    g = torch.Generator().manual_seed(0)
    s = torch.randn(16, 49, 10, generator=g) * 0.02
    kept = torch.arange(10) < torch.randint(1, 11, (16, 1), generator=g)
    kept[0] = torch.arange(10) < 1
    assert token_entropy(s * solve_scale(s, kept), kept) == pytest.approx(0.5, abs=1e-3)
    assert token_entropy(s, kept) == pytest.approx(
        float(token_entropy(s[kept.sum(1) > 1], kept[kept.sum(1) > 1]))
    )


def test_auto_scale_is_measured_once_then_fixed_and_saved():
    settings = {**ENCODER, "scale": "auto", "warmup_epochs": 1}
    masker, model = masker_of(**settings)
    mask_of(masker, model, 8, epoch=0)
    assert masker.log_scales == [], "warm-up measures nothing"
    expected = []
    for k in range(CALIBRATION_BATCHES):
        x, tokens, token_mask, item = inputs(8, seed=k)
        f = model.features(x, tokens, token_mask, "encoder")
        expected.append(solve_scale(similarity(f.visual.flatten(2).mT, f.text), f.words))
        hidden = masker(model, x, tokens, token_mask, epoch=1, item=item).hidden
        assert hidden.any() == (k == CALIBRATION_BATCHES - 1), (
            "nothing is hidden until the scale is known"
        )
    scale = masker.scale
    assert scale == pytest.approx(float(np.exp(np.mean(np.log(expected)))))
    mask_of(masker, model, 8, epoch=2)
    assert masker.scale == scale and not masker.calibrating
    resumed, _ = masker_of(**settings)
    resumed.load_state_dict(copy.deepcopy(masker.state_dict()))
    assert resumed.scale == scale and torch.equal(
        mask_of(resumed, model, 8, epoch=2).hidden, mask_of(masker, model, 8, epoch=2).hidden
    )


def test_a_probe_does_not_calibrate():
    masker, model = masker_of(**{**ENCODER, "scale": "auto"})
    mask_of(masker, model, 8, probe=True)
    assert masker.log_scales == [] and masker.calibrating


# ---- Masker --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["aml", "random"])
def test_blocks_of_letterbox_are_neither_counted_nor_hidden(mode):
    masker, model = masker_of(mode=mode, tau=0.5, rho=0.5)
    real = torch.tensor([[16, 0, 48, 64]]).expand(2000, 4)
    mask = mask_of(masker, model, 2000, real=real)
    border = torch.tensor([0, 1, 6, 7])
    assert (
        not mask.hidden[:, border].any()
        and not mask.weak[:, border].any()
        and (mask.blocks.real[:, border] == 0).all()
    )
    assert mask.hidden.sum((1, 2)).double().mean() == pytest.approx(0.25 * 32, abs=0.05)


def test_random_hides_at_its_rate_and_never_looks():
    masker, model = masker_of(mode="random", rate=0.2)
    mask = mask_of(masker, model, 2000)
    counts = mask.hidden.sum((1, 2))
    assert model.calls == 0 and mask.alignment is None
    u = uniform(0, 0, inputs(2000)[3], "select-round")[:, 0]
    assert torch.equal(counts, (0.2 * 64 + u).floor().long())
    assert counts.double().mean() == pytest.approx(12.8, abs=0.05)
    assert mask.hidden.double().mean(0).flatten().tolist() == pytest.approx([0.2] * 64, abs=0.05)
    assert mask_of(masker_of(mode="random", tau=0.4, rho=0.5)[0], model, 2000).hidden.equal(
        mask.hidden
    ), "the rate is tau * rho by default"


@pytest.mark.parametrize(
    "settings",
    [{}, {**ENCODER, "threshold_mode": "absolute", "tau": 0.6}, {**ENCODER, "scale": "auto"}],
)
def test_match_hides_as_many_as_aml_elsewhere(settings):
    settings = {"tau": 0.45, "rho": 0.33, **settings}
    (aml, model), (match, _) = (
        masker_of(**settings),
        masker_of(mode="random", rate="match", **settings),
    )
    for _ in range(
        CALIBRATION_BATCHES + 1
    ):  # the last one is past the calibration of an auto scale
        a, b = mask_of(aml, model, 80), mask_of(match, model, 80)
        assert torch.equal(a.hidden.sum((1, 2)), b.hidden.sum((1, 2)))
    assert a.hidden.any() and a.hidden.sum((1, 2)).unique().numel() > 1
    overlap = (a.hidden & b.hidden).sum() / a.hidden.sum()
    assert overlap == pytest.approx(float(a.hidden.double().mean()), abs=0.1), (
        "places are independent of alignment"
    )


@pytest.mark.parametrize(
    "mode, selection", [("aml", "block"), ("aml", "pixel"), ("random", "block")]
)
def test_protect_target(mode, selection):
    masker, model = masker_of(mode=mode, selection=selection, protect_target=True, tau=1.0, rho=0.9)
    target = torch.zeros(500, 64, 64, dtype=torch.bool)
    target[:, 20:30, 9] = True  # blocks (2, 1) and (3, 1)
    hidden = mask_of(masker, model, 500, target=target).hidden
    assert not hidden[:, 2:4, 1].any() and hidden[:, 2:4, 2].double().mean() > 0.8


def test_warm_up_and_off_neither_look_nor_hide():
    for settings, epoch in (({"warmup_epochs": 2}, 1), ({"mode": "off"}, 5)):
        masker, model = masker_of(**settings)
        mask = mask_of(masker, model, epoch=epoch)
        assert (
            not masker.active(epoch)
            and model.calls == 0
            and not mask.hidden.any()
            and mask.alignment is None
        )
    masker, model = masker_of(warmup_epochs=2)
    assert masker.active(2) and mask_of(masker, model, epoch=2).hidden.any()


def test_a_probe_looks_in_every_mode():
    for mode, hides in (("off", False), ("random", True), ("aml", True)):
        masker, model = masker_of(mode=mode, warmup_epochs=3)
        mask = mask_of(masker, model, probe=True)
        assert mask.alignment is not None and mask.hidden.any() == hides


def test_draws_depend_on_seed_and_epoch():
    (one, model), (two, _) = masker_of(mode="random"), masker_of(mode="random", seed=1)
    first = mask_of(one, model).hidden
    assert torch.equal(first, mask_of(one, model).hidden)
    assert not torch.equal(first, mask_of(one, model, epoch=1).hidden) and not torch.equal(
        first, mask_of(two, model).hidden
    )


SETTINGS = [
    {},
    {"mode": "random"},
    {**ENCODER},
    {**ENCODER, "score": "cosine", "stage1_scale": 0.5},
    {**ENCODER, "source": "joint", "selection": "pixel"},
]


CLOSE = 2e-6
"""Two alignments of this distance are tied but for rounding: in a batch of another shape matrix
products add in another order, which moves an
alignment of at most 1 by a few units of the last place (2^-24 = 6e-8), and the order of such a pair
with it."""


def decided(mask, i):
    """Return whether no alignment of sample i's weak blocks is tied with one of the others.

    Rounding then cannot choose between them.
    """
    weak, score = mask.weak[i], mask.blocks.score[i]
    return (
        mask.alignment is None
        or not weak.any()
        or weak.all()
        or score[~weak].min() - score[weak].max() > CLOSE
    )


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_sample_loses_the_same_blocks_in_any_batch(settings, items, make_model):
    model = make_model().eval()
    masker = Masker(preset(tau=0.5, rho=0.5, **settings), model=model, image_size=64)

    def mask(indices):
        b = items["train"].batch(np.array(indices), model)
        return masker(
            model,
            model.normalise(b.image),
            b.tokens,
            b.token_mask,
            epoch=3,
            item=b.item,
            real=b.real,
        )

    together = mask(list(range(12)))
    sure = {i for i in range(12) if decided(together, i)}
    assert len(sure) >= 9
    for part in ([5], [11, 3], [7, 2, 0, 9, 4, 1, 10]):
        found = mask(part)
        assert torch.allclose(
            found.blocks.score, together.blocks.score[part], rtol=0, atol=CLOSE / 2
        )
        assert all(
            torch.equal(found.hidden[k], together.hidden[i])
            for k, i in enumerate(part)
            if i in sure
        )


class Counting(nn.Module):
    """A buffer that moves with every training-mode forward, as BatchNorm's do, and a part its owner
    keeps in eval.
    """

    def __init__(self, model):
        super().__init__()
        self.inner, self.kept_in_eval = model, nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))
        self.name, self.sources, self.image_multiple = (
            model.name,
            model.sources,
            model.image_multiple,
        )

    def features(self, x, *args, **kwargs):
        self.seen += self.training
        return self.inner.features(x + self.kept_in_eval(torch.zeros_like(x)), *args, **kwargs)

    def forward(self, x, *args):
        self.seen += self.training
        return self.inner(x, *args)


@pytest.mark.parametrize(
    "settings",
    [{}, {**ENCODER}, {**ENCODER, "projection": "gaussian", "width": 64, "scale": "auto"}],
)
def test_stage_1_leaves_the_model_and_the_generator_as_they_were(settings, items, make_model):
    model = Counting(make_model(dropout=0.3)).train()
    model.kept_in_eval.eval()
    b = items["train"].batch(np.arange(4), model.inner)
    x = model.inner.normalise(b.image)
    model(x, b.tokens, b.token_mask).sum().backward()
    before = copy.deepcopy(model.state_dict())
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    flags, state = {name: m.training for name, m in model.named_modules()}, torch.get_rng_state()
    mask = Masker(preset(**settings), model=model, image_size=64)(
        model, x, b.tokens, b.token_mask, epoch=0, item=b.item
    )
    assert mask.alignment is not None and not mask.alignment.map.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        {name: m.training for name, m in model.named_modules()} == flags
        and flags["inner"]
        and not flags["kept_in_eval"]
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(
        torch.equal(p.grad, grads[name]) for name, p in model.named_parameters() if name in grads
    )
    assert torch.is_grad_enabled()


def test_frozen_gives_the_model_back_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    with pytest.raises(RuntimeError, match="stage 1"), frozen(model):
        assert not model[0].training
        raise RuntimeError("stage 1")
    assert model.training and model[0].training and torch.is_grad_enabled()


@pytest.mark.parametrize("settings", SETTINGS)
def test_inference_is_the_same_bits_with_masking_configured_or_not(settings, items, make_model):
    model = make_model().eval()
    b = items["val"].batch(np.arange(4), model)
    x = model.normalise(b.image)
    with torch.no_grad():
        alone = model(x, b.tokens, b.token_mask)
        masker = Masker(preset(**settings), model=model, image_size=64)
        masker(model, x, b.tokens, b.token_mask, epoch=0, item=b.item)
        assert torch.equal(model(x, b.tokens, b.token_mask), alone)
