"""AFM, from scores to blocks: thresholds and shares by hand and by counting."""

import math

import numpy as np
import pytest
import torch

from aml.draws import uniform
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.masking.passes import MaskInputs, whole_image
from aml.masking.selection import (
    blocks_to_pixels,
    hide_pixels,
    select_blocks,
    select_pixels,
    weak_blocks,
)
from tests.aml.masking.test_masking import ENCODER, everything, inputs, mask_of, masker_of


def test_absolute_and_minmax_thresholds_by_hand():
    score, candidate = (
        torch.tensor([[0.2, 0.4, 0.6, 0.0]]),
        torch.tensor([[True, True, True, False]]),
    )
    for mode, tau, expected in (
        ("absolute", 0.4, [1, 0, 0, 0]),
        ("absolute", 0.41, [1, 1, 0, 0]),
        ("minmax", 0.6, [1, 1, 0, 0]),
        ("minmax", 0.4, [1, 0, 0, 0]),
    ):
        assert (
            weak_blocks(score, candidate, tau=tau, mode=mode, tie=None, u=None)[0].int().tolist()
            == expected
        )


@pytest.mark.parametrize(
    "n, tau, rho",
    [(49, 0.5, 0.4), (64, 0.3, 0.5), (196, 0.16, 1.0), (25, 1.0, 0.16), (10, 0.33, 0.77)],
)
def test_quantile_and_block_hide_exactly_floor_of_share_plus_u(n, tau, rho):
    items = torch.arange(4000)
    u = {name: uniform(0, 0, items, name) for name in ("weak-round", "select-round")}
    score, tie, order = (uniform(0, 0, items, name, n) for name in ("score", "tie", "order"))
    weak = weak_blocks(
        score, everything(4000, n), tau=tau, mode="quantile", tie=tie, u=u["weak-round"]
    )
    hidden = select_blocks(weak, rho=rho, order=order, u=u["select-round"])
    k = np.floor(np.float32(tau * n) + u["weak-round"][:, 0].numpy())
    assert np.array_equal(weak.sum(1), k)
    assert np.array_equal(
        hidden.sum(1),
        np.floor(np.float32(rho) * k.astype(np.float32) + u["select-round"][:, 0].numpy()),
    )
    assert (hidden & ~weak).sum() == 0
    lowest = score.masked_fill(~weak, 0).amax(1) <= score.masked_fill(weak, 1).amin(1)
    assert lowest.all(), "the weak are the lowest"
    shares = hidden.double().mean(1)
    assert shares.mean() == pytest.approx(tau * rho, abs=4 * float(shares.std()) / 4000**0.5 + 1e-9)


@pytest.mark.parametrize("size", [56, 64, 60])
@pytest.mark.parametrize("tau, rho", [(0.5, 0.4), (0.2, 1.0), (1.0, 0.2)])
def test_the_expected_hidden_share_is_tau_times_rho(size, tau, rho):
    masker, model = masker_of(size, tau=tau, rho=rho, stage1_scale=1.0)
    logits = torch.randn(3000, 8, 8, generator=torch.Generator().manual_seed(0))
    x, tokens, token_mask, item = torch.zeros(3000, 1, size, size), None, None, torch.arange(3000)
    hidden = (
        masker.decide(
            MaskInputs(model, x, tokens, token_mask, item, whole_image(x), logits=logits), 0
        )
        .hidden.flatten(1)
        .double()
    )
    assert hidden.shape[1] == math.ceil(size / 8) ** 2
    shares = hidden.mean(1)
    assert shares.mean() == pytest.approx(tau * rho, abs=4 * float(shares.std()) / 3000**0.5)


def test_equal_scores_are_taken_in_the_order_of_the_draw():
    items = torch.arange(4000)
    score = torch.tensor([0.1] + [0.5] * 9).expand(4000, 10)
    tie = uniform(0, 0, items, "tie", 10)
    weak = weak_blocks(
        score, everything(4000, 10), tau=0.4, mode="quantile", tie=tie, u=torch.zeros(4000, 1)
    )
    assert weak[:, 0].all()
    assert weak[:, 1:].double().mean(0).tolist() == pytest.approx([3 / 9] * 9, abs=0.04)
    third = tie[:, 1:].sort(1).values[:, 2:3]
    assert torch.equal(weak[:, 1:], tie[:, 1:] <= third)


def test_select_pixels_has_the_distribution_of_a_draw_per_pixel():
    counts, n = torch.tensor([0.0, 1.0, 3.0, 8.0, 16.0, 64.0]), 20000
    hidden = (
        select_pixels(
            counts.expand(n, 6), rho=0.25, order=uniform(0, 0, torch.arange(n), "select", 6)
        )
        .double()
        .mean(0)
    )
    rng = np.random.default_rng(0)
    brute = [(rng.random((n, int(c))) < 0.25).any(1).mean() for c in counts]
    assert hidden.tolist() == pytest.approx(brute, abs=0.02)
    assert hidden.tolist() == pytest.approx((1 - 0.75**counts).tolist(), abs=0.015)
    assert pytest.approx(0.99, abs=0.001) == 1 - 0.75**16


def test_the_paper_hides_everything():
    """Flat softmax under tau 0.4, then rho per pixel: all are weak, all have a drawn pixel."""
    masker, model = masker_of(
        **ENCODER,
        projection="gaussian",
        threshold_mode="absolute",
        tau=0.4,
        rho=0.25,
        selection="pixel",
    )
    model.table /= (
        100  # words barely apart, as real l2-normalised features are after the projection
    )
    masker = Masker(preset("paper", block=8), model=model, image_size=64)
    mask = mask_of(masker, model, 50)
    assert mask.weak.double().mean() > 0.95 and mask.hidden.double().mean() > 0.95


def test_pixel_selection_counts_the_weak_pixels_of_a_block():
    masker, model = masker_of(selection="pixel", threshold_mode="absolute", tau=0.5, rho=1.0)
    logits = torch.full((1, 8, 8), 4.0)
    logits[0, :4] = -4.0
    x, tokens, token_mask, item = inputs(1)
    given = MaskInputs(model, x, tokens, token_mask, item, whole_image(x), logits=logits)
    hidden = masker.decide(given, 0).hidden[0]
    assert hidden[:4].all() and not hidden[4:].any()


def test_hide_blanks_whole_blocks_and_cuts_those_at_the_border():
    x = torch.arange(300.0).view(1, 3, 10, 10)
    hidden = torch.zeros(1, 3, 3, dtype=torch.bool)
    hidden[0, 0, 1] = hidden[0, 2, 2] = True
    expected = x.clone()
    expected[:, :, 0:4, 4:8] = expected[:, :, 8:, 8:] = 0
    assert torch.equal(hide_pixels(x, hidden, 4), expected)
    assert blocks_to_pixels(hidden, 4, 10, 10).sum() == 16 + 4
    pixels = everything(1, 10, 10).clone()
    pixels[:, :5] = False
    mean = hide_pixels(x, hidden, 4, "mean", pixels)
    assert mean[0, :, 9, 9].tolist() == pytest.approx(x[0, :, 5:].mean((1, 2)).tolist())
    assert torch.equal(mean == x, expected == x)
    assert hide_pixels(x, hidden, 4, "mean")[0, :, 9, 9].tolist() == pytest.approx(
        x[0].mean((1, 2)).tolist()
    )
