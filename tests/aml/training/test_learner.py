"""The loop: loss, schedule and groups by hand; the same training whatever it is cut into; what is
not finite is skipped.
"""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aml.data.batches import train_batches
from aml.errors import NonFinite
from aml.inference.visualize import draw_training_grid
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.masking.stage1.align import CALIBRATION_BATCHES
from aml.training import loop as epoch_loop
from aml.training.checkpoint import load_training, save_checkpoint
from aml.training.config import EvalConfig, OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.loop import probe_indices, train_epochs, vacuous_mask
from aml.training.losses import sample_losses
from aml.training.scoring import TrainSums

BATCH = 24
"""76 train refs: 3 steps an epoch."""
STEPS = 3
LR = 1e-3
CALIBRATED = {
    "source": "encoder",
    "score": "token_softmax",
    "projection": "identity",
    "scale": "auto",
}
TEACHER = {
    "stage1": "teacher",
    "teacher_decay": 0.5,
    "level": "words",
    "source": "joint",
    "score": "cosine",
}
ONCE = ("aml/cached", "words by a teacher")
"""Arms whose own state is saved alike at every place: one place is tried."""
ARMS = {
    "off": {"mode": "off"},
    "random": {"mode": "random"},
    "aml": {"tau": 0.4},
    "aml, auto scale": CALIBRATED,
    "aml/cached": {"stage1": "cached"},
    "words by a teacher": TEACHER,
}


def make_learner(model, *, aml=None, optim=None, wrap=None, seed=0, epochs=2, steps=STEPS, **train):
    masker = Masker(preset(**(aml or {})), model=model, image_size=64, seed=seed)
    train = TrainConfig(**{"epochs": epochs, "batch": BATCH, **train})
    return Learner(
        model,
        masker,
        optim=OptimConfig(**(optim or {})),
        train=train,
        steps=steps,
        seed=seed,
        wrap=wrap,
    )


def train(learner, items, config=EvalConfig(batch=16, probe=8)):  # noqa: B008 (frozen)
    """The metrics of each epoch, less what a clock or the system measures."""
    return [
        {k: v for k, v in r.metrics.items() if not k.startswith(("time/", "mem/"))}
        for r in train_epochs(learner, items["train"], items["val"], config)
    ]


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def trained(learner):
    """Return the weights, what the cache holds and the teacher's weights."""
    state = learner.masker.state_dict()
    teacher = {f"teacher.{name}": w.clone() for name, w in state.get("teacher", {}).items()}
    return weights(learner.model) | state.get("cache", {}) | teacher


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def distance(a, b):
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def one_step(learner, batch, epoch=0):
    sums = TrainSums("cpu")
    learner.wrapped.train()
    learner.step(batch, epoch, 0, sums)
    return sums


@pytest.fixture
def batch(items, make_model):
    return items["train"].batch(np.arange(BATCH), make_model())


# ---- one step ------------------------------------------------------------------------------------


def test_the_rate_of_a_step(make_model, batch):
    learner = make_learner(make_model(), optim={"lr": 0.01, "warmup": "1epochs"}, epochs=4)
    for epoch, index, factor in (
        (0, 0, 0.001),
        (0, 2, 0.001 + 0.999 * 2 / 3),
        (1, 0, 1),
        (2, 1, (5 / 9) ** 0.9),
    ):
        learner.step(batch, epoch, index, TrainSums("cpu"))
        assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * factor)


def gradients(learner, batch, epoch=0):
    """Return the gradients of one step, before clipping."""
    found = {}

    def keep(*_):
        found.update({n: p.grad.clone() for n, p in learner.model.named_parameters()})

    learner.optimizer.register_step_pre_hook(keep)
    one_step(learner, batch, epoch)
    return found


@pytest.mark.parametrize("clean", [0.0, 0.3])
def test_a_step_trains_the_clean_and_the_masked_image_at_their_weights(make_model, batch, clean):
    learner = make_learner(
        make_model(dropout=0.0),
        aml={"clean_weight": clean, "stage1_scale": 1.0},
        optim={"clip": None},
    )
    model, masker = learner.model, learner.masker
    x = model.normalise(batch.image)
    mask = masker(model, x, batch.tokens, batch.token_mask, epoch=0, item=batch.item)
    assert mask.hidden.any()
    loss = sum(
        w * sample_losses(model(image, batch.tokens, batch.token_mask), batch.mask, "ce").mean()
        for w, image in ((clean, x), (1 - clean, masker.hide(x, mask)))
        if w
    )
    expected = dict(
        zip(
            [n for n, _ in model.named_parameters()],
            torch.autograd.grad(loss, list(model.parameters())),
            strict=True,
        )
    )
    found = gradients(learner, batch)
    assert distance(found, expected) < 1e-6


def test_warm_up_trains_as_off(make_model, batch):
    found = []
    for aml in (
        {"mode": "off"},
        {"warmup_epochs": 1, "clean_weight": 0.5},
        {"mode": "random", "warmup_epochs": 1},
        {"mode": "random"},
    ):
        learner = make_learner(make_model(), aml=aml)
        torch.manual_seed(2)  # dropout
        found.append(gradients(learner, batch))
    assert equal(found[0], found[1]) and equal(found[0], found[2]) and not equal(found[0], found[3])


@pytest.mark.parametrize("aml", [{"mode": "off"}, {"mode": "random"}, {"clean_weight": 0.5}])
def test_micro_steps_make_the_same_update(make_model, batch, aml):
    updated = []
    for accumulate in (1, 4):
        learner = make_learner(
            make_model(dropout=0.0), aml=aml, accumulate=accumulate, optim={"lr": LR}
        )
        sums = one_step(learner, batch)
        updated.append((weights(learner.model), float(sums.loss), sums.masks.means()))
    (one, loss_one, masks_one), (four, loss_four, masks_four) = updated
    assert loss_one == pytest.approx(loss_four, abs=1e-6) and masks_one == pytest.approx(masks_four)
    assert distance(one, four) < 0.1 * LR, (
        "a tenth of Adam's first step, which is the rate whatever the gradient's size: it "
        "magnifies rounding"
    )


def test_gradients_of_micro_steps_add_up(make_model, batch):
    a, b = (
        gradients(make_learner(make_model(dropout=0.0), accumulate=n, optim={"clip": None}), batch)
        for n in (1, 4)
    )
    assert distance(a, b) < 1e-6


@pytest.mark.parametrize("aml", [{}, {"clean_weight": 0.5}])
def test_padding_changes_nothing(items, make_model, aml):
    found = []
    for pad_to in (None, BATCH):
        learner = make_learner(make_model(dropout=0.0), aml=aml, optim={"clip": None})
        padded = items["train"].batch(np.arange(17), learner.model, pad_to=pad_to)
        sums = TrainSums("cpu")
        before = {}
        learner.optimizer.register_step_pre_hook(
            lambda *_, to=before, m=learner.model: to.update(
                {n: p.grad.clone() for n, p in m.named_parameters()}
            )
        )
        learner.step(padded, 0, 0, sums)
        found.append((before, float(sums.loss), sums.masks.means()))
    (a, loss_a, masks_a), (b, loss_b, masks_b) = found
    assert (
        distance(a, b) < 1e-6
        and loss_a == pytest.approx(loss_b, abs=1e-6)
        and masks_a == pytest.approx(masks_b)
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(items, make_model, batch, precision):
    learner = make_learner(make_model(), precision=precision)
    before = weights(learner.model)
    first = [one_step(learner, batch) for _ in range(3)]
    assert all(s.loss.isfinite() for s in first) and sum(float(s.skipped) for s in first) < 3
    assert distance(before, weights(learner.model)) > 0 and all(
        v.isfinite().all() and v.dtype == torch.float32 for v in weights(learner.model).values()
    )
    assert 0 <= learner.evaluate([batch]).scores()["mIoU"] <= 1


# ---- what is not finite


def poison(model, calls, value=torch.nan):
    """The model's training forwards of these numbers give `value`."""
    count = iter(range(10**6))
    return model.register_forward_hook(
        lambda m, _, out: out * value if m.training and next(count) in calls else out
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(items, make_model, precision, value):
    learner = make_learner(make_model(), aml={"mode": "off"}, precision=precision, max_skipped=0.4)
    poison(learner.model, {1}, value)
    snapshots = []
    batches = train_batches(items["train"], learner.model, batch=BATCH, seed=0, epoch=0)
    metrics = learner.train_epoch(
        (snapshots.append(weights(learner.model)) or b for b in batches), 0
    )
    snapshots.append(weights(learner.model))
    assert metrics["train/skipped"] == 1
    assert (
        equal(snapshots[1], snapshots[2])
        and not equal(snapshots[0], snapshots[1])
        and not equal(snapshots[2], snapshots[3])
    )
    assert all(v.isfinite().all() for v in snapshots[3].values())
    assert 0.05 < metrics["train/loss"] < 2, "the mean over the steps that were made"


def test_too_many_of_them_stop_the_run_with_a_sentence(items, make_model):
    learner = make_learner(make_model(), aml={"mode": "off"})
    poison(learner.model, {0, 2})
    with pytest.raises(
        NonFinite,
        match=r"2 of 3 steps of epoch 1 had a non-finite loss or gradient; lower optim\.lr",
    ):
        train(learner, items)
    assert all(v.isfinite().all() for v in weights(learner.model).values())


# ---- whole runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_a_resumed_run_is_the_same_run(items, make_model, tmp_path, arm):
    straight = make_learner(make_model(), aml=ARMS[arm], epochs=4)
    expected = train(straight, items)

    interrupted = make_learner(make_model(), aml=ARMS[arm], epochs=4)
    results = train_epochs(interrupted, items["train"], items["val"], EvalConfig(batch=16, probe=8))
    for _ in range(2):
        next(results)
    save_checkpoint(tmp_path / "last", interrupted.model, {}, interrupted.state_dict())
    if arm == "aml, auto scale":
        assert 0 < len(interrupted.masker.log_scales) < CALIBRATION_BATCHES, (
            "saved in the middle of the calibration"
        )
    next(results)  # what the interrupted process did after its last save is lost

    torch.manual_seed(12345)
    resumed = make_learner(make_model(seed=99), aml=ARMS[arm], epochs=4)
    assert load_training(tmp_path / "last", resumed) and resumed.progress.epoch == 2
    assert train(resumed, items) == expected[2:]
    assert equal(weights(resumed.model), weights(straight.model))
    assert [m["epoch"] for m in resumed.progress.history] == [1, 2, 3, 4]


class Saver:
    """Saves the learner when it is asked for the so-manieth time in an epoch, and then stands for a
    machine that is lost.
    """

    every = 1

    def __init__(self, folder, epoch, time):
        self.folder, self.epoch, self.time, self.asked = folder, epoch, time, 0

    def due(self):
        self.asked += self.learner.progress.epoch == self.epoch
        return self.asked == self.time

    def save(self):
        save_checkpoint(self.folder, self.learner.model, {}, self.learner.state_dict())
        raise KeyboardInterrupt


PLACES = [(0, 1), (1, 2), (1, STEPS), (0, STEPS + 1)]
"""Epoch and step of a save: after the first step, a second one, all steps, and while validating."""


@pytest.mark.parametrize(
    "arm, epoch, time",
    [
        *[(arm, *place) for place in PLACES for arm in ARMS if arm not in ONCE],
        *[(arm, 1, 2) for arm in ONCE],
    ],
)
def test_a_run_saved_in_the_middle_of_an_epoch_is_the_same_run(
    items, make_model, tmp_path, arm, epoch, time
):
    straight = make_learner(make_model(dropout=0.1), aml=ARMS[arm], epochs=3)
    expected = train(straight, items)
    lost, keep = (
        make_learner(make_model(dropout=0.1), aml=ARMS[arm], epochs=3),
        Saver(tmp_path / "last", epoch, time),
    )
    keep.learner = lost
    with pytest.raises(KeyboardInterrupt):
        list(train_epochs(lost, items["train"], items["val"], EvalConfig(batch=16, probe=8), keep))
    torch.manual_seed(12345)
    resumed = make_learner(make_model(seed=99, dropout=0.1), aml=ARMS[arm], epochs=3)
    assert load_training(tmp_path / "last", resumed) and (
        resumed.progress.epoch,
        resumed.progress.step,
    ) == (epoch, min(time, STEPS))
    assert train(resumed, items) == expected[epoch:]
    assert equal(trained(resumed), trained(straight)) and resumed.progress.step == 0


class TwoRanks:
    """The first of two ranks, the other of which does as this one."""

    rank, size = 0, 2

    def sum(self, x):
        return x.mul_(2)

    def mean(self, x):
        return x

    def gather(self, mine):
        return [mine, mine]


@pytest.mark.parametrize(
    ("seconds", "asked"), [(0.01, [1]), (0.5, [1, 5]), (2.5, [1, 2, 3, 4, 5, 6])], ids=str
)
def test_ranks_ask_each_other_often_where_steps_are_slow(make_model, monkeypatch, seconds, asked):
    """Once in two seconds or so, at least every 16 steps."""
    from aml.training import learner as module

    learner, clock, places = make_learner(make_model(), steps=7), [0.0], []
    learner.world = TwoRanks()
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def step(batch, epoch, index, sums):
        clock[0] += seconds
        places.append(index + 1)

    class Asked:
        every, at = 16, []

        def due(self):
            self.at.append(places[-1])
            return False

    monkeypatch.setattr(learner, "step", step)
    monkeypatch.setattr(Asked, "at", [])
    learner.train_epoch(range(7), 0, Asked())
    assert Asked.at == [*asked, 7]


def test_a_rank_saves_between_the_batches_of_a_validation(items, make_model):
    learner, saved = make_learner(make_model()), []
    learner.world = TwoRanks()
    checkpointer = SimpleNamespace(due=lambda: True, save=lambda: saved.append(1))
    config = EvalConfig(batch=5, probe=0)
    epoch_loop._validate(learner, items["val"], config, probe_indices(30, 0), checkpointer)
    assert len(saved) == 3, "of 30 sentences a rank has 15, in batches of 5"


def test_a_reused_process_trains_as_a_fresh_one(items, make_model):
    alone = make_learner(make_model(seed=1), aml=ARMS["aml, auto scale"], seed=5)
    expected = train(alone, items)
    train(make_learner(make_model(seed=7), aml=ARMS["random"], seed=3, precision="bf16"), items)
    after = make_learner(make_model(seed=1), aml=ARMS["aml, auto scale"], seed=5)
    assert train(after, items) == expected and equal(weights(after.model), weights(alone.model))


def test_training_learns_and_reports(items, make_model):
    learner = make_learner(
        make_model(width=48), aml={"clean_weight": 0.5}, epochs=8, optim={"lr": 3e-3}
    )
    history = train(learner, items)
    assert history[-1]["train/loss"] < 0.9 * history[0]["train/loss"]
    assert [m["val/mIoU_best"] for m in history] == np.maximum.accumulate(
        [m["val/mIoU"] for m in history]
    ).tolist()
    last = history[-1]
    assert last["epoch"] == 8 and last["val/n"] == len(items["val"]) and last["train/skipped"] == 0
    masks = ("weak", "hidden", "hidden_target", "lift", "auroc", "mask_auroc", "uninformative")
    assert {f"aml/{m}" for m in masks} | {f"aml/probe_{m}" for m in masks} | {
        "aml/leak",
        "aml/scale",
        "optim/lr",
        "val/oIoU",
        "val/P0.5",
        "val/P0.9",
    } <= last.keys()
    assert last["aml/hidden"] == pytest.approx(0.25, abs=0.02) and last[
        "aml/weak"
    ] == pytest.approx(0.5, abs=0.03)
    assert all(isinstance(v, int | float) for v in last.values())


def test_what_off_and_random_report(items, make_model):
    off = train(make_learner(make_model(), aml={"mode": "off"}, epochs=1), items)[0]
    assert (
        off.get("aml/hidden", 0) == 0
        and "aml/lift" not in off
        and "aml/leak" not in off
        and "aml/probe_auroc" in off
    )
    random = train(
        make_learner(make_model(), aml={"mode": "random", "rate": 0.16}, epochs=1), items
    )[0]
    assert random["aml/hidden"] == pytest.approx(0.16, abs=0.02) and "aml/auroc" not in random
    assert {"aml/leak", "aml/probe_auroc", "aml/probe_lift"} <= random.keys()


def test_a_probe_and_pictures_do_not_touch_the_run(items, make_model):
    quiet, watched = make_learner(make_model()), make_learner(make_model())
    train(quiet, items, EvalConfig(batch=16, probe=0))
    for _ in train_epochs(watched, items["train"], items["val"], EvalConfig(batch=7, probe=20)):
        sheet = draw_training_grid(watched, items["val"], probe_indices(len(items["val"]), 3))
        assert sheet.size == (5 * 134 + 6, 20 + 3 * 154)
    assert equal(weights(quiet.model), weights(watched.model))


def test_vacuous_masks_are_said_once_with_their_numbers():
    config, first = (
        preset(tau=0.5, rho=0.5),
        {"epoch": 1, "aml/hidden": 0.97, "aml/weak": 1.0, "aml/scale": 1.0},
    )
    said = vacuous_mask(config, first)
    assert said.startswith(
        "aml/calibrated with tau 0.5 and rho 0.5 called 100.0% of the image weak and hid 97.0%, "
        "nearly the whole"
    )
    assert "almost nothing" in vacuous_mask(config, first | {"aml/hidden": 0.0})
    half = config.replace(batch_share=0.5)  # of the masked half nearly all is hidden
    assert "hid 97.0%, nearly the whole" in vacuous_mask(half, first | {"aml/hidden": 0.485})
    assert (
        vacuous_mask(config, first | {"epoch": 2})
        == vacuous_mask(config, first | {"aml/hidden": 0.25})
        == ""
    )
    assert (
        vacuous_mask(config, {"epoch": 1, "aml/hidden": 0.0, "aml/weak": 0.0}) == ""
    )  # no scale yet: still calibrating
    assert vacuous_mask(preset(mode="random"), first) == ""


EAGER = """
import sys
import torch
from aml.training.optimizer import EagerAdamW
def train(kind):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
    optimizer = kind(model.parameters(), lr=0.1, fused=True)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    return torch.cat([p.detach().flatten() for p in model.parameters()])
eager = train(EagerAdamW)
assert "torch._dynamo" not in sys.modules
assert torch.equal(eager, train(torch.optim.AdamW))
"""


def test_the_optimiser_is_torchs_own_without_the_import_of_its_compiler():
    subprocess.run([sys.executable, "-c", EAGER], check=True, cwd=Path(__file__).parents[3])
