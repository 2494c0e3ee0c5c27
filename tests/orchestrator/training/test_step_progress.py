"""What is said within an epoch: after ten seconds, every thirty, and at the end of its steps."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aml.data import steps_per_epoch
from aml.masking import Masker, preset
from aml.training import EvalConfig, Learner, OptimConfig, TrainConfig, TrainSums, train_epochs
from orchestrator.training import step_progress
from orchestrator.training.epochs import EpochListener
from tests.support.hearing import hear


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_steps_speed_and_loss_are_said_now_and_then(monkeypatch):
    now, sent = [100.0], []
    monkeypatch.setattr(step_progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    learner = SimpleNamespace(
        progress=SimpleNamespace(epoch=0),
        world=SimpleNamespace(size=2),
        config=SimpleNamespace(batch=16),
        steps=26,
    )
    reporter = step_progress.StepReporter(learner, sent.append)
    sums = TrainSums("cpu")
    for epoch, seconds in ((0, 4.0), (1, 0.1)):  # the second lasts less than ten seconds
        learner.progress.epoch = epoch
        sums.loss = torch.zeros(())
        for done in range(1, learner.steps + 1):
            now[0] += seconds
            sums.loss += 0.25  # this rank's half of each step's loss
            reporter(done, sums)
    # after 12 s at step 4, every 32 s at steps 12 and 20, and at the last
    assert [(s["epoch"], s["step"]) for s in sent] == [(1, 4), (1, 12), (1, 20), (1, 26)]
    assert {round(s["loss"], 6) for s in sent} == {0.5}
    assert [s["items_s"] for s in sent] == pytest.approx([4.0] * 4)
    line = step_progress.progress_line(sent[0], epochs=3)
    assert line == (
        "epoch 1/3  step 4/26  loss 0.5000  4 items/s  88 s left, 5 min of all epochs' steps"
    )
    assert "  validation follows, 3 min of" in step_progress.progress_line(sent[3], epochs=3)
    assert step_progress.progress_line(sent[3], epochs=1).endswith("  validation follows")


def test_a_validation_is_said_as_an_epoch_is(monkeypatch):
    now, sent = [0.0], []
    monkeypatch.setattr(step_progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    learner = SimpleNamespace(progress=SimpleNamespace(epoch=1))
    reporter = step_progress.StepReporter(learner, sent.append)
    for seconds in (1.0, 5.0):  # the first lasts less than ten seconds
        reporter.validate(0, 800)
        for done in range(100, 900, 100):
            now[0] += seconds
            reporter.validate(done, 800)
    assert [s["scored"] for s in sent] == [200, 800]
    line = step_progress.progress_line(sent[0], epochs=5)
    assert line == "epoch 2/5 validation  200 of 800 sentences  20 a second  30 s left"


def test_a_training_reports_its_steps(make_model, items, monkeypatch):
    monkeypatch.setattr(step_progress, "FIRST_S", 0.0)
    monkeypatch.setattr(step_progress, "AGAIN_S", 0.0)
    model = make_model()
    train = TrainConfig(epochs=1, batch=16)
    steps = steps_per_epoch(len(items["train"]), 16)
    learner = Learner(
        model,
        Masker(preset(mode="off"), model=model, image_size=64),
        optim=OptimConfig(),
        train=train,
        steps=steps,
        seed=0,
    )
    sent = []
    reporter = step_progress.StepReporter(learner, sent.append)
    (result,) = train_epochs(
        learner,
        items["train"],
        items["val"],
        EvalConfig(batch=16),
        on_step=reporter,
        on_validation=reporter.validate,
    )
    sent, scored = sent[: steps - 1], sent[steps - 1 :]
    assert [s["step"] for s in sent] == list(range(2, steps + 1))
    count = len(items["val"])
    assert [s["scored"] for s in scored] == [*range(16, count, 16), count]
    assert {(s["epoch"], s["sentences"]) for s in scored} == {(1, count)}
    assert sent[-1]["loss"] == pytest.approx(result.metrics["train/loss"], rel=1e-5)
    assert np.isfinite([s["items_s"] for s in sent]).all()


def test_the_driver_says_each_report_once(tmp_path, monkeypatch):
    found = {"epoch": 2, "step": 10, "steps": 20, "loss": 0.5, "items_s": 8.0, "seconds_a_step": 2}
    monkeypatch.setattr("orchestrator.cluster.placement_groups.progress_of", lambda name: found)
    said = hear([])
    run = SimpleNamespace(folder=tmp_path)
    experiment = SimpleNamespace(train=SimpleNamespace(epochs=4))
    listener = EpochListener(run, experiment, None, "train")
    for _ in range(2):
        listener.log_progress()
    assert len(said) == 1 and said[0].startswith("epoch 2/4  step 10/20  loss 0.5000  8 items/s")
    found = found | {"step": 12}
    listener.log_progress()
    listener.last_epoch = 2
    found = found | {"step": 14}
    listener.log_progress()
    assert len(said) == 2
    found = {"epoch": 3, "scored": 20, "sentences": 80, "sentences_s": 10.0}
    listener.log_progress()
    assert said[2].startswith("epoch 3/4 validation  20 of 80 sentences")
    monkeypatch.setattr("sys.stdout", Terminal())
    shown = []
    steps = {"epoch": 4, "step": 1, "steps": 2, "loss": 1.0, "items_s": 8.0, "seconds_a_step": 1}
    found = found | {"scored": 40}
    listener.log_progress()
    shown.append((listener._bar.what, listener._bar.done, listener._bar.total))
    found = steps
    listener.log_progress()
    shown.append((listener._bar.what, listener._bar.done, listener._bar.total))
    listener._close_bar()
    assert shown == [("epoch 3/4 validation", 40, 80), ("epoch 4/4", 1, 2)] and len(said) == 3
