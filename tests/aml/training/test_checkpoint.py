"""Checkpoint folders: what comes back is what went in, and what is damaged is said."""

import json
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from aml.data.decode import fit_image, placement
from aml.errors import NotSaved, UserError
from aml.inference.segmenter import Segmenter, resize_to_original
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.training.checkpoint import (
    load_model,
    load_training,
    load_weights,
    read_checkpoint_config,
    save_checkpoint,
)
from aml.training.config import OptimConfig, TrainConfig
from aml.training.learner import Learner
from tests.conftest import SIZE
from tests.support.hearing import hear

INFO = {
    "image_size": SIZE,
    "fit": "square",
    "threshold": 0.4,
    "epoch": 3,
    "metrics": {"val/mIoU": 0.25},
}


def learner_of(model):
    masker = Masker(preset(), model=model, image_size=SIZE)
    return Learner(
        model, masker, optim=OptimConfig(), train=TrainConfig(epochs=2, batch=4), steps=1
    )


def trained(model, items, epochs=1):
    """A learner with an optimiser state; progress says `epochs`."""
    from aml.training.scoring import TrainSums

    learner = learner_of(model)
    learner.step(items["train"].batch(np.arange(4), model), 0, 0, TrainSums("cpu"))
    learner.progress.epoch = epochs
    return learner


def picture(height=50, width=70):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def damage(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(path):
    """One bit of the last quarter: a file of the same length that still reads."""
    content = bytearray(path.read_bytes())
    content[len(content) * 7 // 8] ^= 1
    path.write_bytes(content)


@pytest.fixture
def folder(make_model, tmp_path):
    save_checkpoint(tmp_path / "best", make_model(), INFO)
    return tmp_path / "best"


# ---- round trips ---------------------------------------------------------------------------------


def test_a_loaded_model_predicts_the_same_bits(make_model, folder):
    again, config = load_model(folder)
    segmenter, original = Segmenter.load(folder), make_model()
    expected = Segmenter(original, image_size=SIZE, threshold=0.4).segment(
        picture(), "left red circle"
    )
    assert not again.training and config["epoch"] == 3
    assert np.array_equal(segmenter.segment(picture(), "left red circle"), expected)
    assert not np.array_equal(segmenter.segment(picture(), "blue square"), expected)
    assert segmenter.threshold == 0.4 and np.array_equal(
        segmenter.mask(picture(), "left red circle"), expected >= 0.4
    )


def test_config_is_plain_json(folder, make_model):
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert (
        config
        == read_checkpoint_config(folder)
        == {"model": make_model().spec, "vocabulary": make_model().vocabulary, **INFO}
    )
    assert config["model"]["name"] == "small" and config["model"]["width"] == 32
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "digests.json",
        "model.safetensors",
    ]


def test_training_state_comes_back(make_model, items, tmp_path):
    learner = trained(make_model(), items)
    learner.progress.history.append({"epoch": 1, "val/mIoU": 0.1})
    learner.masker.log_scales.append(1.5)
    save_checkpoint(tmp_path / "last", learner.model, INFO, learner.state_dict())
    other = learner_of(make_model(seed=5))
    assert load_training(tmp_path / "last", other)
    assert vars(other.progress) == vars(learner.progress) and other.masker.log_scales == [1.5]
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            other.model.state_dict().values(), learner.model.state_dict().values(), strict=True
        )
    )
    a, b = (x.optimizer.state_dict()["state"] for x in (learner, other))
    assert a.keys() == b.keys() and all(torch.equal(a[k][n], b[k][n]) for k in a for n in a[k])


# ---- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hurt", [damage, alter])
@pytest.mark.parametrize("file", ["state.pt", "model.safetensors"])
def test_a_damaged_last_gives_way_to_the_one_before_and_says_so(
    make_model, items, tmp_path, file, hurt
):
    heard = hear([])
    last = tmp_path / "last"
    for epoch in (1, 2):
        learner = trained(make_model(seed=epoch), items, epoch)
        save_checkpoint(last, learner.model, INFO, learner.state_dict())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "last.previous"]
    hurt(last / file)
    resumed = learner_of(make_model(seed=9))
    assert load_training(last, resumed) and resumed.progress.epoch == 1
    (said,) = heard
    assert (
        f"checkpoint {last} (" in said
        and f"{file} is not as it was written" in said
        and "goes on from the one before, after epoch 1" in said
    )
    first = trained(make_model(seed=1), items)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            resumed.model.state_dict().values(), first.model.state_dict().values(), strict=True
        )
    )


def test_where_both_are_damaged_nothing_is_loaded_and_it_is_said(make_model, items, tmp_path):
    heard = hear([])
    last = tmp_path / "last"
    for epoch in (1, 2):
        learner = trained(make_model(seed=epoch), items, epoch)
        save_checkpoint(last, learner.model, INFO, learner.state_dict())
    alter(last / "state.pt")
    damage(tmp_path / "last.previous" / "model.safetensors")
    resumed, untouched = learner_of(make_model(seed=9)), make_model(seed=9)
    assert (
        not load_training(last, resumed)
        and resumed.progress.epoch == 0
        and not resumed.optimizer.state_dict()["state"]
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            resumed.model.state_dict().values(), untouched.state_dict().values(), strict=True
        )
    )
    (said,) = heard
    assert (
        f"{last} (" in said
        and "last.previous (" in said
        and "it starts again from its first epoch" in said
    )


def test_a_damaged_best_gives_way_to_the_one_before_and_names_its_epoch(make_model, tmp_path):
    heard = hear([])
    for epoch in (3, 5):
        save_checkpoint(tmp_path / "best", make_model(seed=epoch), INFO | {"epoch": epoch})
    alter(tmp_path / "best" / "model.safetensors")
    model, config = load_model(tmp_path / "best")
    expected = make_model(seed=3).state_dict()
    assert config["epoch"] == 3 and all(
        torch.equal(v, expected[k]) for k, v in model.state_dict().items()
    )
    (said,) = heard
    assert "model.safetensors is not as it was written" in said and "best.previous, epoch 3" in said


def test_a_disk_that_is_full_leaves_the_former_checkpoint_whole(make_model, items, tmp_path):
    """The limit on a file's size stands for the disk: writes of safetensors and torch stop in the
    middle.
    """
    learner = trained(make_model(), items)
    save_checkpoint(tmp_path / "last", learner.model, INFO, learner.state_dict())
    size = (tmp_path / "last" / "model.safetensors").stat().st_size
    wanted = (
        sum(f.stat().st_size for f in (tmp_path / "last").iterdir() if f.suffix != ".json") / 2**20
    )
    learner.progress.epoch = 2
    for limit in (size // 2, size + 4096):  # in the weights; in the training state
        with (
            file_size_limit(limit),
            pytest.raises(
                NotSaved,
                match=r"last could not be written \(.+\): it takes [\d.]+ MB, and \d+ MB are free",
            ) as said,
        ):
            save_checkpoint(tmp_path / "last", learner.model, INFO, learner.state_dict())
        assert "make room and give the same command again" in str(said.value)
        assert float(re.search(r"it takes ([\d.]+) MB", str(said.value))[1]) == pytest.approx(
            wanted, rel=0.05, abs=0.1
        )
        assert [p.name for p in tmp_path.iterdir()] == ["last"], (
            "no draft is left, which would fill the disk"
        )
    resumed = learner_of(make_model(seed=9))
    assert load_training(tmp_path / "last", resumed) and resumed.progress.epoch == 1
    save_checkpoint(tmp_path / "last", learner.model, INFO, learner.state_dict())
    assert load_training(tmp_path / "last", resumed) and resumed.progress.epoch == 2


@contextmanager
def file_size_limit(size):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_crash_between_the_two_renames_loses_nothing(make_model, items, tmp_path):
    learner = trained(make_model(), items)
    save_checkpoint(tmp_path / "last", learner.model, INFO, learner.state_dict())
    (tmp_path / "last").rename(tmp_path / "last.previous")
    resumed = learner_of(make_model(seed=9))
    assert load_training(tmp_path / "last", resumed) and resumed.progress.epoch == 1


def test_a_half_written_draft_is_never_read(make_model, items, tmp_path):
    draft = tmp_path / "last.amlris-draft"
    draft.mkdir()
    (draft / "state.pt").write_bytes(b"half")
    learner = trained(make_model(), items)
    assert not load_training(tmp_path / "last", learner)
    save_checkpoint(tmp_path / "last", learner.model, INFO, learner.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["last"] and load_training(
        tmp_path / "last", learner
    )


def test_nothing_there_is_not_an_error(make_model, tmp_path):
    learner = learner_of(make_model())
    assert load_training(tmp_path / "last", learner) is False and learner.progress.epoch == 0


def test_a_state_that_runs_code_is_not_run(make_model, tmp_path):
    import os
    import pickle

    class Touch:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'was-run'}",)

    learner = learner_of(make_model())
    save_checkpoint(tmp_path / "last", learner.model, INFO, learner.state_dict())
    (tmp_path / "last" / "state.pt").write_bytes(pickle.dumps({"payload": Touch()}, 2))
    (
        tmp_path / "last" / "digests.json"
    ).unlink()  # who can put a state there can put its digest there, too
    assert not load_training(tmp_path / "last", learner)
    assert not (tmp_path / "was-run").exists()


# ---- not a checkpoint


def test_not_a_checkpoint(tmp_path):
    for content in (None, "{", "\xff"):
        if content is not None:
            (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(UserError, match="is not a checkpoint folder"):
            Segmenter.load(tmp_path)


def test_damaged_and_missing_weights_are_named_where_there_is_no_other(folder):
    damage(folder / "model.safetensors")
    with pytest.raises(
        UserError, match=r"cannot be used \(model\.safetensors is not as it was written\); use an"
    ):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_model(folder)


@pytest.mark.parametrize("options", [{"stem": 24}, {"layers": 3}, {"blocks": 2}])
def test_weights_of_another_shape(make_model, folder, options):
    with pytest.raises(
        UserError, match=r"does not fit this model, first at [\w.]+ \(\d+ parameters\)"
    ):
        load_weights(make_model(**options), folder)


def test_another_vocabulary_does_not_fit(folder):
    config = json.loads((folder / "config.json").read_text())
    config["vocabulary"].append("zebra")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "digests.json").unlink()
    with pytest.raises(
        UserError,
        match=r"first at text\.embed\.weight \(1 parameters\); use the model and vocabulary",
    ):
        load_model(folder)


# ---- inference -----------------------------------------------------------------------------------


def test_probabilities_have_the_pictures_own_size(make_model):
    segmenter = Segmenter(make_model(), image_size=SIZE, fit="letterbox")
    for height, width in ((50, 70), (90, 31), (64, 64)):
        p = segmenter.segment(picture(height, width), "red circle")
        assert p.shape == (height, width) and p.dtype == np.float32 and 0 <= p.min() <= p.max() <= 1


@pytest.mark.parametrize("fit", ["square", "letterbox"])
def test_what_is_found_returns_to_where_it_was(fit):
    """A spot of the picture, fitted as the picture is, comes back to the same place."""
    height, width = 120, 200
    spot = np.zeros((height, width, 3), np.uint8)
    spot[30:60, 140:180] = 255
    small = torch.from_numpy(fit_image(spot, 100, fit)[..., 0].astype(np.float32))
    top, left, bottom, right = placement(height, width, 100, fit)
    assert (bottom - top, right - left) == ((100, 100) if fit == "square" else (60, 100))
    back = resize_to_original(small, (height, width), 100, fit).numpy() > 127
    assert back.shape == (height, width)
    assert (back & (spot[..., 0] > 0)).sum() / (back | (spot[..., 0] > 0)).sum() > 0.95


def test_the_folder_may_move(folder, tmp_path):
    before = Segmenter.load(folder).segment(picture(), "red circle")
    shutil.move(folder, tmp_path / "elsewhere")
    assert np.array_equal(
        Segmenter.load(tmp_path / "elsewhere").segment(picture(), "red circle"), before
    )
