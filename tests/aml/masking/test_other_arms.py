"""OneRef's mask by the referred region, batches that are masked in part, tau as a curriculum, and
consistency between two masks: shares by counting, draws by hand, what each pass learns from.
"""

import pytest
import torch

from aml.draws import uniform
from aml.errors import UserError
from aml.masking.config import preset
from aml.masking.diagnostics import MaskSums
from aml.masking.masker import Masker
from aml.masking.passes import MaskInputs, whole_image
from aml.training.config import OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.losses import sample_losses, soft_losses
from aml.training.profile import step_flops
from tests.aml.masking.test_masking import inputs, mask_of, masker_of
from tests.aml.masking.test_modes import ENCODER, close, gradients, passes_of

BLIND = [{"mode": "random", "rate": 0.4}, {**ENCODER, "tau": 0.8, "rho": 0.5}]


def targets(n: int, top=20, bottom=36, left=30, right=33) -> torch.Tensor:
    """Return a target (n, 64, 64) that fills these pixels."""
    target = torch.zeros(n, 64, 64, dtype=torch.bool)
    target[:, top:bottom, left:right] = True
    return target


# ---- oneref


def drawn_region(target: torch.Tensor, margin: int) -> torch.Tensor:
    """Return the region that a draw sees of a target, blocks of 8 px, as (B, 8, 8) bool."""
    seen = []
    masker, model = masker_of(mode="oneref")
    masker.method.draw = lambda blocks: (
        seen.append(blocks.around_target(margin)) or (blocks.candidate, blocks.candidate)
    )
    mask_of(masker, model, n=len(target), target=target)
    return seen[0].view(-1, 8, 8)


def test_the_referred_region_is_the_targets_box_and_a_block_around_it():
    target = targets(3)
    target[1] = False
    target[1, 0, 0] = target[1, 9, 20] = True  # blocks (0, 0) and (1, 2)
    target[2] = False
    tight, wide = drawn_region(target, 0), drawn_region(target, 1)
    expected = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    expected[0, 0, 2:5, 3:5] = expected[1, 0, 1:6, 2:6] = True  # rows 20-35, columns 30-32
    expected[0, 1, 0:2, 0:3] = expected[1, 1, 0:3, 0:4] = True
    assert torch.equal(tight, expected[0]) and torch.equal(wide, expected[1])


@pytest.mark.parametrize("rate, outside", [(None, 0.35), (0.1, 0.1), (0.0, 0.0)])
def test_oneref_hides_three_quarters_of_the_region_and_less_of_the_rest(rate, outside):
    masker, model = masker_of(mode="oneref", rate=rate)
    target = targets(500)
    mask = mask_of(masker, model, target=target)
    region = drawn_region(target, 1)
    inside = mask.hidden[region].view(500, 20).sum(1)
    rest = mask.hidden[~region].view(500, 44).sum(1)
    assert (inside == 15).all(), "three quarters of 5 x 4 blocks"
    assert set((rest - int(outside * 44)).tolist()) <= {0, 1}, "floor(0.35 * 44 + u)"
    assert rest.double().mean() / 44 == pytest.approx(outside, abs=0.003)
    assert mask_of(masker, model).hidden.double().mean() == pytest.approx(outside, abs=0.003), (
        "a picture without a target has no region"
    )


def test_oneref_gives_the_target_away_and_the_diagnostics_say_so():
    """Visible blocks are no target: its AUROC is far below a half, where blind holes have one."""
    target, valid = targets(500), torch.ones(500, dtype=torch.bool)
    found = {}
    for mode in ("oneref", "random"):
        sums = MaskSums()
        masker, model = masker_of(mode=mode, **({"rate": 0.475} if mode == "random" else {}))
        sums.add(mask_of(masker, model, target=target), target, valid, 8)
        found[mode] = sums.means()
    assert found["oneref"]["hidden"] == pytest.approx((0.75 * 20 + 0.35 * 44) / 64, abs=0.002)
    assert found["oneref"]["hidden_target"] == pytest.approx(0.75, abs=0.02)
    assert found["oneref"]["lift"] > 1.5 and found["random"]["lift"] == pytest.approx(1, abs=0.05)
    assert found["oneref"]["mask_auroc"] < 0.4
    assert found["random"]["mask_auroc"] == pytest.approx(0.5, abs=0.03)


# ---- a share of the batch


@pytest.mark.parametrize("settings", [*BLIND, {"mode": "oneref"}], ids=str)
def test_a_part_of_the_batch_is_masked_and_the_rest_is_clean(settings):
    target = targets(500)
    whole = mask_of(*masker_of(**settings), target=target)
    masker, model = masker_of(**settings, batch_share=0.3)
    half = mask_of(masker, model, target=target)
    chosen = half.hidden.flatten(1).any(1)
    item = inputs(500)[3]
    assert torch.equal(chosen, uniform(0, 0, item, "masked")[:, 0] < 0.3)
    assert chosen.double().mean() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(half.hidden[chosen], whole.hidden[chosen]), "its own share is as it was"
    later = mask_of(masker, model, epoch=1, target=target).hidden.flatten(1).any(1)
    assert (later & chosen).double().mean() == pytest.approx(0.09, abs=0.04), "drawn anew"
    assert masker.config.share == preset(**{"block": 8, **settings}).share
    if settings.get("mode"):
        alone = masker(
            model, *(t[7:8] for t in inputs(500)[:3]), epoch=0, item=item[7:8], target=target[7:8]
        )
        assert torch.equal(alone.hidden, half.hidden[7:8]), "whoever else is in the batch"


def test_maskris_leaves_the_words_of_a_clean_sample_alone(make_model, batch):
    model = make_model(dropout=0.0)
    masker = Masker(preset(mode="maskris", batch_share=0.5), model=model, image_size=64)
    _, second = passes_of(masker, model, batch)
    chosen = second.mask.hidden.flatten(1).any(1)
    changed = (second.tokens != batch.tokens).any(1)
    assert 0 < chosen.sum() < len(chosen) and (changed & chosen).any()
    assert not (changed & ~chosen).any()


# ---- a curriculum


def test_tau_rises_in_place_of_rho_and_hides_the_least_aligned_first():
    aml = {**ENCODER, "tau": 0.8, "rho": 0.5, "ramp_epochs": 4}
    hidden = {}
    for ramp in ("rho", "tau"):
        masker, model = masker_of(**aml, ramp=ramp)
        masks = [mask_of(masker, model, epoch=epoch) for epoch in range(5)]
        hidden[ramp] = [m.hidden.double().mean().item() for m in masks]
        for epoch, mask in enumerate(masks):
            weak = 0.8 if ramp == "rho" else 0.8 * min(1, (epoch + 1) / 4)
            count = mask.weak.flatten(1).sum(1)
            assert ((count - int(weak * 64 + 1e-9)) <= 1).all() and (count >= int(weak * 64)).all()
            rank = mask.blocks.score.flatten(1).argsort(1).argsort(1)[mask.hidden.flatten(1)]
            assert rank.max() < weak * 64 + 1
    assert hidden["rho"] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4], abs=0.003)
    assert hidden["tau"] == pytest.approx(hidden["rho"], abs=0.003), "as many, whatever rises"


# ---- consistency


def test_consistency_learns_half_from_the_prediction_under_the_other_mask(make_model, batch):
    model = make_model(dropout=0.0).train()
    settings = {"mode": "consistency", "rate": 0.3}
    masker = Masker(preset(**settings), model=model, image_size=64)
    first, second = passes_of(masker, model, batch)
    assert (first.weight, second.weight, first.last, second.last) == (0.5, 0.5, False, True)
    x = model.normalise(batch.image)
    for one in (first, second):
        assert torch.equal(one.x, masker.hide(x, one.mask)) and torch.equal(
            one.tokens, batch.tokens
        )
    logits = model(first.x, batch.tokens, batch.token_mask)
    soft = logits.sigmoid().detach()
    assert torch.equal(second.soft, soft) and first.soft is None
    again = model(second.x, batch.tokens, batch.token_mask)
    by_hand = 0.5 * sample_losses(logits, batch.mask, "ce").mean()
    by_hand = by_hand + 0.25 * sample_losses(again, batch.mask, "ce").mean()
    (by_hand + 0.25 * soft_losses(again, soft).mean()).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    assert close(gradients(model, batch, **settings), expected)


def test_the_two_masks_of_consistency_are_independent_and_equally_large():
    masker, model = masker_of(mode="consistency", rate=0.3)
    x, *words, item = inputs(500)
    given = MaskInputs(model, x, *words, item, whole_image(x))
    first, second = (masker.decide(given, 0, name=name).hidden.double() for name in ("", "second-"))
    assert first.mean() == pytest.approx(0.3, abs=0.003)
    assert second.mean() == pytest.approx(0.3, abs=0.003)
    assert (first * second).mean() == pytest.approx(0.09, abs=0.006)
    same = mask_of(*masker_of(mode="random", rate=0.3)).hidden.double()
    assert torch.equal(first, same), "the first is random's"


def test_what_a_step_costs(make_model, batch):
    def flops(**aml):
        model = make_model(dropout=0.0)
        masker = Masker(preset(**aml), model=model, image_size=64)
        train = TrainConfig(batch=len(batch.item))
        return step_flops(Learner(model, masker, optim=OptimConfig(), train=train, steps=1), batch)

    one = flops(mode="off")
    assert flops(mode="oneref") == one and flops(mode="random", batch_share=0.5) == one
    assert flops(mode="consistency") == flops(mode="two_pass") == 2 * one


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"mode": "consistency", "level": "loss"}, "use level image or feature"),
        ({"mode": "consistency", "rate": 0.001}, "less than one"),
        ({"batch_share": 0}, r"batch_share is 0; it must be a number in \(0, 1\]"),
        ({"ramp": "epochs"}, "known: rho, tau"),
    ],
)
def test_refused(settings, words):
    with pytest.raises(UserError, match=words):
        masker_of(**settings)
