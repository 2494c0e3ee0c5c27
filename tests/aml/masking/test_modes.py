"""Modes, levels and presets beyond hiding the worst blocks: what each pass is given, what it learns
from, what the released code did.
"""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from aml.errors import UserError
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.masking.passes import MaskInputs
from aml.masking.selection import block_sums, blocks_to_pixels
from aml.masking.stage1.align import frozen
from aml.masking.step import Step
from aml.masking.words import change_words
from aml.training.config import OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.losses import sample_losses, soft_losses
from aml.training.scoring import TrainSums

ENCODER = {"source": "encoder", "score": "cosine", "stage1_scale": 1.0}


def passes_of(masker, model, batch, epoch=0):
    """Return the passes of a step, answered by the model itself, without backward."""
    found = []

    def run(one):
        found.append(one)
        extras = {"upto": one.upto} if one.upto else {}
        with torch.no_grad():
            out = model(one.x, one.tokens, one.token_mask, **extras)
        return out if one.upto else (out, None)

    Step(masker, model, batch, epoch, run).train()
    return found


def gradients(model, batch, **aml):
    """Gradients of one step before the optimiser, without clipping."""
    masker = Masker(preset(**aml), model=model, image_size=64)
    learner = Learner(
        model, masker, optim=OptimConfig(), train=TrainConfig(batch=len(batch.item)), steps=1
    )
    learner._accumulate(batch, 0, TrainSums("cpu"), last=True)
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    learner.optimizer.zero_grad()
    return found


def close(a: dict, b: dict) -> bool:
    return all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


# ---- two_pass and maskris


def test_two_passes_without_dropout_are_one(make_model, batch):
    model = make_model(dropout=0.0).train()
    assert close(gradients(model, batch, mode="two_pass"), gradients(model, batch, mode="off"))
    wet = make_model(dropout=0.3).train()
    wet.load_state_dict(model.state_dict())
    assert not close(gradients(wet, batch, mode="two_pass"), gradients(model, batch, mode="off"))


def test_maskris_learns_its_own_first_prediction_on_a_masked_picture_and_sentence(
    make_model, batch
):
    model = make_model(dropout=0.0).train()
    masker = Masker(preset(mode="maskris"), model=model, image_size=64)
    first, second = passes_of(masker, model, batch)
    x = model.normalise(batch.image)
    assert (
        torch.equal(first.x, x) and torch.equal(first.tokens, batch.tokens) and first.soft is None
    )
    assert (first.weight, second.weight, first.last, second.last) == (0.5, 0.5, False, True)
    assert (
        torch.equal(second.soft, model(x, batch.tokens, batch.token_mask).sigmoid().detach())
        and not second.soft.requires_grad
    )
    hidden = second.mask.hidden.flatten(1).float()
    assert (hidden.mean(1) - 0.75).abs().max() <= 1 / hidden.shape[1], "floor(0.75 n + u) blocks"
    assert torch.equal(second.x, masker.hide(x, second.mask)) and not torch.equal(
        second.tokens, batch.tokens
    )
    by_hand = 0.5 * sample_losses(model(x, batch.tokens, batch.token_mask), batch.mask, "ce").mean()
    by_hand = (
        by_hand
        + 0.5 * soft_losses(model(second.x, second.tokens, second.token_mask), second.soft).mean()
    )
    by_hand.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    assert close(gradients(model, batch, mode="maskris"), expected)


def test_soft_loss_is_torchs_weighted_cross_entropy_against_probabilities():
    z, soft = torch.randn(3, 5, 7), torch.rand(3, 5, 7)
    pair, target = torch.stack([torch.zeros_like(z), z], 1), torch.stack([1 - soft, soft], 1)
    expected = (
        F.cross_entropy(pair, target, torch.tensor([0.9, 1.1]), reduction="none").flatten(1).mean(1)
    )
    assert torch.allclose(soft_losses(z, soft), expected, atol=1e-6)


def test_changed_words(make_model):
    model, n = make_model(), 4000
    tokens, mask = model.tokenise(["the small red circle left of the big blue square"] * n)
    changed = change_words(model, tokens, mask, seed=0, epoch=0, item=torch.arange(n))
    words = mask.clone()
    words[:, 0] = False  # the pooling token
    assert torch.equal(changed[~words], tokens[~words]), "padding and special tokens stay"
    different = (changed != tokens) & words
    share = different.sum() / words.sum()
    assert share == pytest.approx(0.15 * 0.9, rel=0.05), "one in ten of the chosen is kept"
    masked = (changed == model.mask_token).sum() / words.sum()
    assert masked == pytest.approx(0.15 * 0.8, rel=0.05)
    others = Counter(changed[different & (changed != model.mask_token)].tolist())
    assert all(model.word_ids[0] <= t < model.word_ids[1] for t in others) and len(
        others
    ) > 0.5 * len(model.vocabulary)
    model.mask_token = None  # a tokenizer without one: a random word in its place
    assert (
        change_words(model, tokens, mask, 0, 0, torch.arange(n)) != tokens
    ).sum() >= 0.9 * different.sum()


# ---- levels --------------------------------------------------------------------------------------


def test_at_feature_level_the_encoder_sees_everything(make_model, batch):
    model = make_model(dropout=0.0)
    masker = Masker(preset(level="feature", tau=1.0, rho=0.5), model=model, image_size=64)
    (one,) = passes_of(masker, model, batch)
    assert torch.equal(one.x, model.normalise(batch.image))
    assert (
        torch.equal(one.visible, ~blocks_to_pixels(one.mask.hidden, masker.block, 64, 64))
        and not one.visible.all()
    )
    maps = model.encode(one.x)
    seen = [m * F.interpolate(one.visible[:, None].float(), m.shape[2:], mode="area") for m in maps]
    assert torch.allclose(
        model(one.x, one.tokens, one.token_mask, visible=one.visible),
        model.decode(seen, one.tokens, one.token_mask),
    )


def test_at_loss_level_hidden_pixels_teach_nothing(make_model, batch):
    model = make_model(dropout=0.0)
    masker = Masker(preset(level="loss", tau=1.0, rho=0.5), model=model, image_size=64)
    (one,) = passes_of(masker, model, batch)
    hidden = blocks_to_pixels(one.mask.hidden, masker.block, 64, 64)
    assert (
        torch.equal(one.x, model.normalise(batch.image))
        and one.visible is None
        and torch.equal(one.counted, ~hidden)
    )
    z = torch.randn(16, 64, 64)
    each = sample_losses(z, batch.mask, "ce", one.counted)
    for i in range(16):
        kept = one.counted[i]
        y = batch.mask[i][kept].long()
        expected = F.cross_entropy(
            torch.stack([torch.zeros_like(z[i][kept]), z[i][kept]], 1), y, torch.tensor([0.9, 1.1])
        )
        assert each[i] == pytest.approx(float(expected), abs=1e-5)
    assert sample_losses(z, batch.mask, "ce", torch.zeros_like(one.counted)).tolist() == [0] * 16


def test_bce_has_no_weights():
    z, y = torch.randn(2, 8, 8), torch.rand(2, 8, 8) < 0.3
    assert torch.allclose(
        sample_losses(z, y, "bce"),
        F.binary_cross_entropy_with_logits(z, y.float(), reduction="none").mean((1, 2)),
    )


# ---- the clean pass is stage 1


@pytest.mark.parametrize("source", ["encoder", "joint", "prediction"])
def test_a_clean_pass_that_is_trained_is_stage_1_as_well(make_model, batch, source):
    model = make_model(dropout=0.0).eval()
    score = {"score": "probability"} if source == "prediction" else {"score": "cosine"}
    masker = Masker(
        preset(source=source, clean_weight=0.4, stage1_scale=1.0, **score),
        model=model,
        image_size=64,
    )
    runs, encode = [], model.encode
    model.encode = lambda x: runs.append(1) or encode(x)
    clean, masked = passes_of(masker, model, batch)
    del model.encode
    assert len(runs) == 1 + 1, "one clean, one masked, none for stage 1"
    assert (clean.weight, masked.weight) == (0.4, 0.6) and clean.mask is None
    alone = masker.align(
        MaskInputs(model, clean.x, batch.tokens, batch.token_mask, batch.item, batch.real)
    )
    assert torch.allclose(masked.mask.alignment.map, alone.map, atol=1e-6)


# ---- variants of what is hidden


def masks(make_model, batch, epoch=0, **aml):
    model = make_model()
    masker = Masker(preset(**aml), model=model, image_size=64)
    x = model.normalise(batch.image).repeat(16, 1, 1, 1)
    n = len(x)
    rest = {"real": batch.real.repeat(16, 1), "target": batch.mask.repeat(16, 1, 1)}
    tokens, token_mask = batch.tokens.repeat(16, 1), batch.token_mask.repeat(16, 1)
    mask = masker(model, x, tokens, token_mask, epoch=epoch, item=torch.arange(n), **rest)
    on_target = block_sums(rest["target"].float(), masker.block) > 0
    return mask.hidden.float(), on_target


def test_a_balanced_mask_hides_target_and_background_alike(make_model, batch):
    hidden, on_target = masks(make_model, batch, **ENCODER, tau=0.5, rho=0.6, balance_target=True)
    of_target, of_rest = hidden[on_target].mean(), hidden[~on_target].mean()
    assert of_target == pytest.approx(0.3, abs=0.04) and of_rest == pytest.approx(0.3, abs=0.01)


def test_noise_hides_more_blocks_blindly(make_model, batch):
    plain, _ = masks(make_model, batch, **ENCODER, tau=0.5, rho=0.4)
    noisy, _ = masks(make_model, batch, **ENCODER, tau=0.5, rho=0.4, noise=0.2)
    assert (noisy >= plain).all() and noisy.mean() == pytest.approx(1 - 0.8 * 0.8, abs=0.01)
    assert preset(tau=0.5, rho=0.4, noise=0.2).share == pytest.approx(0.36)


def test_the_share_ramps_up_and_ends(make_model, batch):
    aml = {**ENCODER, "tau": 1.0, "rho": 0.6, "warmup_epochs": 1, "ramp_epochs": 3, "last_epoch": 5}
    shares = [masks(make_model, batch, epoch=e, **aml)[0].mean().item() for e in range(7)]
    assert shares == pytest.approx([0, 0.2, 0.4, 0.6, 0.6, 0, 0], abs=0.01)


def test_either_end_of_the_alignment_can_be_hidden(make_model, batch):
    low, _ = masks(make_model, batch, **ENCODER, tau=0.5, rho=1.0)
    high, _ = masks(make_model, batch, **ENCODER, tau=0.5, rho=1.0, weak="highest")
    assert (low + high).mean() == pytest.approx(1.0, abs=0.01) and (low * high).mean() < 0.01
    spared, on_target = masks(
        make_model, batch, **ENCODER, tau=0.5, rho=1.0, weak="highest", protect_target=True
    )
    assert spared.sum() > 0 and spared[on_target].sum() == 0, "what is confusable, not the referent"


@pytest.mark.parametrize("clean_weight", [0.0, 0.4])
def test_a_mask_for_anothers_sentence_is_the_one_that_sentence_would_get_here(
    make_model, batch, clean_weight
):
    model = make_model(dropout=0.0).eval()
    before = replace(
        batch,
        tokens=torch.cat([batch.tokens[-1:], batch.tokens[:-1]]),
        token_mask=torch.cat([batch.token_mask[-1:], batch.token_mask[:-1]]),
    )
    other, own = (
        passes_of(
            Masker(preset(sentence=whose, clean_weight=clean_weight), model=model, image_size=64),
            model,
            given,
        )[-1]
        for whose, given in (("other", batch), ("own", before))
    )
    if (
        clean_weight == 0
    ):  # with it, one's own sentence is read at full size in the clean pass, another's at stage 1's
        assert torch.equal(other.mask.hidden, own.mask.hidden) and torch.equal(
            other.mask.alignment.map, own.mask.alignment.map
        )
    x = model.normalise(batch.image)
    alone = Masker(preset(stage1_scale=0.375), model=model, image_size=64).align(
        MaskInputs(model, x, before.tokens, before.token_mask, batch.item, batch.real)
    )
    assert torch.allclose(other.mask.alignment.map, alone.map, atol=1e-6)
    assert torch.equal(other.tokens, batch.tokens), "the model itself is given its own sentence"


# ---- what cannot mean anything


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"selection": "release"}, "compares pixels with a threshold"),
        (
            {"selection": "release", "threshold_mode": "absolute", "level": "loss"},
            "use threshold_mode absolute or minmax, and level image",
        ),
        ({"fill": "mean", "level": "feature"}, "leaves the image whole"),
        ({"projection": "gaussian"}, "no features to project"),
        (
            {"source": "encoder", "score": "cosine", "projection": "linear", "width": 8},
            "drop one of them",
        ),
        (
            {"source": "encoder", "score": "cosine", "projection": "learned", "sentence": "other"},
            "its own sentence",
        ),
        ({"protect_target": True, "balance_target": True}, "exclude each other"),
        ({"last_epoch": 2, "warmup_epochs": 2}, "leaves no masked epoch"),
        ({"ramp_epochs": -1}, r"a whole number in \[0"),
        ({"noise": 1.5}, r"number in \[0, 1\]"),
        ({"level": "images"}, r"did you mean image\?"),
        ({"weak": "high"}, "known: lowest, highest"),
    ],
)
def test_refused_together(settings, words):
    with pytest.raises(UserError, match=words):
        preset(**settings)


def test_refused_for_a_model(make_model):
    model = make_model()
    with pytest.raises(UserError, match="448 and 30 do not go together"):
        Masker(preset("release", block=30), model=model, image_size=448)
    model.fuses = True
    with pytest.raises(UserError, match="small reads them inside; use level image or loss"):
        Masker(preset(level="feature"), model=model, image_size=64)


# ---- compiled ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "aml", [{"mode": "off"}, {**ENCODER, "clean_weight": 0.5, "level": "feature"}], ids=str
)
def test_a_compiled_model_takes_the_same_step(make_model, batch, monkeypatch, aml):
    """torch.compile's capture of every kind of pass, run by its eager backend: no machine code is
    made here.
    """
    compiler, runs = torch.compile, []

    def captured(module):
        def backend(graph, examples):
            runs.append(graph)
            return graph.forward

        return compiler(module, backend=backend)

    monkeypatch.setattr(torch, "compile", captured)
    weights = []
    for compiled in (False, True):
        model = make_model(dropout=0.0, seed=2)
        learner = Learner(
            model,
            Masker(preset(**aml), model=model, image_size=64),
            optim=OptimConfig(),
            train=TrainConfig(batch=16, compile=compiled),
            steps=2,
        )
        for index in range(2):
            learner.step(batch, 0, index, TrainSums("cpu"))
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
    assert runs and close(*weights)


# ---- nothing stays behind at inference


@pytest.mark.parametrize(
    "aml",
    [
        {"mode": "off"},
        {"source": "encoder", "score": "cosine", "projection": "learned"},
        {"mode": "maskris"},
    ],
)
def test_inference_is_untouched(make_model, batch, aml):
    """A model trained under masking has the parameters, the graph and the output of one that never
    was.
    """
    plain, model = make_model(seed=1), make_model(seed=1)
    masker = Masker(preset(**aml), model=model, image_size=64)
    learner = Learner(
        model, masker, optim=OptimConfig(lr=1e-9), train=TrainConfig(batch=16), steps=1
    )
    learner.step(batch, 0, 0, TrainSums("cpu"))
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    x = (plain.normalise(batch.image[:1]), batch.tokens[:1], batch.token_mask[:1])
    with frozen(model), frozen(plain):
        assert torch.equal(model(*x), plain(*x))
        graphs = [torch.export.export(m.eval(), x).graph_module.code for m in (model, plain)]
    assert graphs[0] == graphs[1] and math.isfinite(float(learner.optimizer.param_groups[0]["lr"]))
