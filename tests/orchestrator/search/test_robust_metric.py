"""Test that a search trial scores its last epoch under corruption, as an evaluation would."""

from pathlib import Path

import pytest

from aml.data import decode_row, refer_counts, rows_of_block
from aml.training import loop as epoch_loop
from orchestrator.config.loader import from_dict
from orchestrator.data.block_choice import corrupted_windows
from orchestrator.data.decoded import ShardSelection
from orchestrator.evaluation.together import score_conditions
from orchestrator.training import loop
from tests.orchestrator.storage.test_survival import TREE

CONDITIONS = [("fog", 3), ("noise", 1), ("noise", 5)]


NUMBERS = ("train/loss", "val/mIoU", "robust/fog", "robust/noise", "robust/mIoU")


@pytest.fixture
def train(data, tmp_path):
    """Return a function that trains two epochs on the stored scenes, scored under corruption."""
    more = {
        "model": {"name": "small", "width": 32, "stem": 16},
        "optim": {"lr": 1e-5},  # the masks stay as they are, neither empty nor full
        "train": {"epochs": 2, "batch": 8},
        "evaluate": {"probe": 0, "batch": 2},
    }
    experiment = from_dict(TREE | more)
    decoded = [decode_row(row | {"jpeg": Path(row["path"]).read_bytes()}, 64) for row in data.rows]
    val = [ShardSelection(data.store, frozenset({"val"}), {})]
    windows = corrupted_windows(val, 64, "square", CONDITIONS)
    sources = {condition: window.open for condition, window in windows.items()}

    def run(name, **more):
        heard = []
        folder = tmp_path / name
        words = refer_counts.vocabulary(data.rows)
        begin = data.checkpoint
        context = loop.RunContext(corrupted=sources, init_checkpoint=begin, **more)
        blocks = [rows_of_block(decoded)]
        loop.run_training(experiment, lambda: blocks, words, folder, heard.append, context)
        return heard, folder / "last"

    return run


def test_the_last_epoch_is_scored_as_an_evaluation_of_its_checkpoint_is(train, data):
    (first, last), checkpoint = train("run")
    assert not any(key.startswith("robust/") for key in first)
    found = score_conditions({"t": checkpoint}, data.store, "val", CONDITIONS, limit=4, workers=1)
    scores = {key: score["mIoU"] for key, score in found["t"].items()}
    assert len(set(scores.values())) == 4 and min(scores.values()) > 1e-3
    noise = (scores["noise:1"] + scores["noise:5"]) / 2
    assert last["robust/fog"] == pytest.approx(scores["fog:3"], abs=1e-6)
    assert last["robust/noise"] == pytest.approx(noise, abs=1e-6)
    assert last["robust/mIoU"] == pytest.approx((scores["fog:3"] + noise) / 2, abs=1e-6)
    assert last["val/mIoU"] == pytest.approx(scores["clean:0"], abs=1e-6)
    assert last["time/robust_s"] > 0
    assert last["time/epoch_s"] == pytest.approx(last["time/train_s"] + last["time/val_s"])


def test_a_trial_that_is_saved_and_lost_while_it_is_scored_scores_alike(train, monkeypatch):
    (_, straight), _ = train("straight")
    asked = []
    scored = epoch_loop.robust_metrics

    def scoring(*arguments):
        asked.append("asked to end")
        return scored(*arguments)

    def lost():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(epoch_loop, "robust_metrics", scoring)
        train("cut", should_checkpoint=lambda: "".join(asked), on_checkpoint=lost)
    (again,), _ = train("cut")
    assert again["epoch"] == 2 and [again[n] for n in NUMBERS] == [straight[n] for n in NUMBERS]
