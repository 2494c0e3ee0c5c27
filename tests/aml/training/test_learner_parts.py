"""Loss, schedule, groups and settings of a training, by hand."""

import pytest
import torch
import torch.nn.functional as F

from aml.errors import UserError
from aml.training.config import EvalConfig, OptimConfig, TrainConfig
from aml.training.loop import probe_indices
from aml.training.losses import sample_losses
from aml.training.optimizer import lr_factor, parameter_groups
from aml.training.scoring import segment_logits
from tests.aml.training.test_learner import make_learner


@pytest.mark.parametrize("size", [(32, 32), (8, 8)])
def test_loss_is_weighted_two_class_cross_entropy_of_each_sample(size):
    g = torch.Generator().manual_seed(0)
    logits, mask = 3 * torch.randn(5, 8, 8, generator=g), torch.rand(5, *size, generator=g) < 0.3
    mask[0] = False
    z = F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    pairs = torch.stack([torch.zeros_like(z), z], 1)
    weight = torch.tensor([0.9, 1.1])
    expected = [
        F.cross_entropy(p[None], m[None].long(), weight) for p, m in zip(pairs, mask, strict=True)
    ]
    assert torch.allclose(sample_losses(logits, mask, "ce"), torch.stack(expected), atol=1e-6)


def test_dice_by_hand():
    logits, mask = torch.zeros(1, 2, 2), torch.tensor([[[True, True], [True, False]]])
    dice = 1 - (2 * 1.5 + 1) / (2 + 3 + 1)
    assert float(
        sample_losses(logits, mask, "ce+dice") - sample_losses(logits, mask, "ce")
    ) == pytest.approx(dice)


def test_segment_thresholds_the_probability():
    logits = torch.logit(torch.tensor([[[0.2, 0.34], [0.36, 0.7]]]))
    assert segment_logits(logits, (2, 2)).tolist() == [[[False, False], [False, True]]]
    assert segment_logits(logits, (2, 2), 0.35).tolist() == [[[False, False], [True, True]]]
    assert segment_logits(torch.zeros(1, 1, 1), (1, 1)).all(), "at the threshold is in"
    assert segment_logits(logits, (8, 8)).shape == (1, 8, 8)


@pytest.mark.parametrize(
    "step, warmup, power, expected",
    [
        (0, 0, 0.9, 1),
        (50, 0, 0.9, 0.5**0.9),
        (99, 0, 1, 0.01),
        (100, 0, 0.9, 0),
        (0, 20, 0.9, 0.001),
        (10, 20, 0.9, 0.5005),
        (20, 20, 0.9, 1),
        (60, 20, 2, 0.25),
    ],
)
def test_schedule_by_hand(step, warmup, power, expected):
    assert lr_factor(step, 100, warmup, OptimConfig(power=power), steps=10) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    "step, expected",
    [(0, 0.001), (5, 0.5005), (10, 1), (349, 1), (350, 0.1), (549, 0.1), (550, 0.01), (649, 0.01)],
)
def test_step_schedule_by_hand(step, expected):
    optim = OptimConfig(schedule="steps", milestones=[35, 55], gamma=0.1)
    assert lr_factor(step, 650, 10, optim, steps=10) == pytest.approx(expected)


def test_parameter_groups(make_model):
    model = make_model()
    model.encoders = ("stage4", "stage8")
    groups = parameter_groups(model, OptimConfig(lr=0.01, encoder_lr=0.1, weight_decay=0.05))
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        decay = (
            0.0
            if p.ndim <= 1
            or name.startswith(("text.embed", "text.position"))
            or name.endswith(".scale")
            else 0.05
        )
        assert found[id(p)] == (
            pytest.approx(0.001 if name.startswith(("stage4", "stage8")) else 0.01),
            decay,
        ), name
    model.stage8.requires_grad_(False)
    frozen = {id(p) for p in model.stage8.parameters()}
    assert not frozen & {id(p) for g in parameter_groups(model, OptimConfig()) for p in g["params"]}


def test_probe_indices():
    assert probe_indices(100, 5).tolist() == [0, 25, 50, 74, 99]
    assert probe_indices(3, 8).tolist() == [0, 1, 2] and probe_indices(10, 0).tolist() == []


@pytest.mark.parametrize(
    "config, given, words",
    [
        (OptimConfig, {"lr": 0}, r"optim\.lr is 0; it must be a number"),
        (OptimConfig, {"clip": 0}, r"optim\.clip is 0"),
        (OptimConfig, {"warmup": "5 apples"}, "500steps or"),
        (OptimConfig, {"power": -1}, r"optim\.power is -1"),
        (
            OptimConfig,
            {"loss": "cee"},
            r"optim\.loss is 'cee' \(did you mean ce\?\); known: ce, bce, ce\+dice",
        ),
        (TrainConfig, {"epochs": 0}, r"a whole number in \[1, 100000\]"),
        (TrainConfig, {"precision": "fp8"}, r"known: fp32, bf16, fp16"),
        (TrainConfig, {"max_skipped": 2}, r"a number in \[0, 1\]"),
        (EvalConfig, {"batch": 0}, r"evaluate\.batch is 0"),
        (EvalConfig, {"threshold": 1.0}, r"a number in \(0, 1\)"),
    ],
)
def test_refused_settings(config, given, words):
    with pytest.raises(UserError, match=words):
        config(**given)


def test_a_batch_too_small_for_its_micro_steps_is_refused(make_model):
    with pytest.raises(
        UserError,
        match=r"train\.batch 4 is less than an item for each of 1 workers x 5 micro-steps",
    ):
        make_learner(make_model(), batch=4, accumulate=5)
