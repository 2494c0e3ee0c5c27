"""Compare the baselines with numbers computed by hand.

They are objects without a model, models that do and do not read, and another referent's sentence.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from aml.data.dataset import Items
from aml.data.decode import decode_row, rows_of_block
from aml.errors import UserError
from orchestrator.data import shards
from orchestrator.evaluation import baselines, command
from tests.support.stores import hand_row

SIZE = 32


class Deaf(torch.nn.Module):
    """A model that predicts the left half, whatever the sentence; logits at input size."""

    vocabulary = ()
    fuses = True

    def tokenise(self, sentences):
        return torch.ones(len(sentences), 1, dtype=torch.int64), torch.ones(
            len(sentences), 1, dtype=torch.bool
        )

    def normalise(self, image):
        return image.float()

    def forward(self, x, tokens, token_mask):
        return (x.shape[3] / 2 - 0.5 - torch.arange(x.shape[3])).expand(len(x), x.shape[2], -1)


class Obedient(Deaf):
    """A model that predicts the half which the sentence names: token 1 left, 2 right."""

    def tokenise(self, sentences):
        return torch.tensor([[2 if "right" in s else 1] for s in sentences]), torch.ones(
            len(sentences), 1, dtype=torch.bool
        )

    def forward(self, x, tokens, token_mask):
        return super().forward(x, tokens, token_mask) * torch.where(tokens == 1, 1, -1)[:, :, None]


@pytest.fixture
def three_objects():
    """Return items on two pictures of 8 x 8 at network size.

    Picture 7 has three objects: 1 the left half (32 px), 2 the right half (32 px), 3 the top three
    rows (24 px), and refs to the first two. Picture 8 has one ref.
    """
    left, right, top = np.zeros((3, 8, 8), bool)
    left[:, :4] = right[:, 4:] = top[:3] = True
    rows = [
        hand_row([left, right, top], [(1, ["left a", "left b"]), (2, ["right"])], 7),
        hand_row([top, left], [(1, ["left"])], 8),
    ]
    return Items(
        [rows_of_block([decode_row(row, 8) for row in rows])], "val", size=8, unit="sentence"
    )


def run_baselines(monkeypatch, items, model):
    """Return score_baselines with `model` as the checkpoint's and as the untrained one."""
    config = {
        "image_size": 8,
        "fit": "square",
        "threshold": 0.5,
        "model": {"name": "small"},
        "vocabulary": [],
    }
    monkeypatch.setattr(baselines, "load_model", lambda folder, device: (model, config))
    monkeypatch.setattr(baselines, "build_model", lambda name, **given: model)
    return baselines.score_baselines(Path("any"), items, batch=2)


def test_object_baselines_by_hand(monkeypatch, three_objects):
    """Compare with I/U of each object, computed by hand.

    Referent left in picture 7: left 32/32, right 0/64, top 12/44. Referent right: the mirror
    image. Referent top in picture 8: top 24/24, left 12/44.
    """
    got = run_baselines(monkeypatch, three_objects, Deaf())
    half = (1 + 0 + 12 / 44) / 3
    top = (1 + 12 / 44) / 2
    i = 3 * (32 + 0 + 12) / 3 + (24 + 12) / 2
    u = 3 * (32 + 64 + 44) / 3 + (24 + 44) / 2
    assert (
        got["n"]
        == got["random_object"]["n"]
        == got["largest_object"]["n"]
        == got["champion"]["n"]
        == 4
    )
    assert got["random_object"]["mIoU"] == pytest.approx((3 * half + top) / 4)
    assert got["random_object"]["oIoU"] == pytest.approx(i / u)
    # The largest object is the left one (the first of two of 32 px) in picture 7, and in 8.
    assert got["largest_object"]["mIoU"] == pytest.approx((1 + 1 + 0 + 12 / 44) / 4)
    assert got["largest_object"]["oIoU"] == pytest.approx((32 + 32 + 0 + 12) / (32 + 32 + 64 + 44))


def test_a_model_that_does_not_read_scores_the_same_with_the_wrong_sentence(
    monkeypatch, three_objects
):
    got = run_baselines(monkeypatch, three_objects, Deaf())
    wrong = got["wrong_sentence"]
    assert wrong["n"] == 3, "picture 8 has one referent"
    assert (
        (wrong["mIoU"], wrong["oIoU"])
        == (wrong["champion_mIoU"], wrong["champion_oIoU"])
        == (pytest.approx(2 / 3), pytest.approx(64 / 128))
    )
    assert (
        got["champion"]["mIoU"] == pytest.approx((1 + 1 + 0 + 12 / 44) / 4)
        and got["untrained"] == got["champion"]
    )


def test_a_model_that_reads_fails_with_the_wrong_sentence(monkeypatch, three_objects):
    wrong = run_baselines(monkeypatch, three_objects, Obedient())["wrong_sentence"]
    assert (wrong["mIoU"], wrong["champion_mIoU"], wrong["n"]) == (0.0, 1.0, 3)


def test_without_a_second_referent_of_the_split_the_wrong_sentence_has_no_sentences(monkeypatch):
    row = hand_row([np.eye(8, dtype=bool), np.ones((8, 8), bool)], [(1, ["it"]), (2, ["all"])])
    row["refs"][1]["split"] = "train"
    items = Items([rows_of_block([decode_row(row, 8)])], "val", size=8, unit="sentence")
    assert run_baselines(monkeypatch, items, Deaf())["wrong_sentence"]["n"] == 0


def val_items(data, size):
    decoded = [
        decode_row(row, size)
        for row in shards.read_rows(data.store, shards.picture_places(data.store, ["val"]))
    ]
    return Items([rows_of_block(decoded)], "val", size=size, unit="sentence")


def test_baselines_of_a_checkpoint_agree_with_its_evaluation(data, tmp_path):
    items = val_items(data, SIZE)
    got = baselines.score_baselines(data.checkpoint, items, seed=0)
    request = command.EvaluationRequest(data.checkpoint, data.store, ["val"], out=tmp_path)
    whole = command.evaluate_checkpoint(request)["val"]
    # Batches of other shapes may round otherwise and move a pixel at the threshold, which changes
    # a sentence's IoU by about one in its union.
    assert got["champion"] == pytest.approx(
        {key: whole[key] for key in ("mIoU", "oIoU", "n")}, rel=0, abs=1e-3
    )
    assert got["untrained"] != got["champion"] and got == baselines.score_baselines(
        data.checkpoint, items, seed=0
    )
    with pytest.raises(UserError, match="was trained at 32 px"):
        baselines.score_baselines(data.checkpoint, val_items(data, 16))
