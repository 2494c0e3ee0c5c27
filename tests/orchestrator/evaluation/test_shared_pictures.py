"""Test the scoring of several checkpoints on the same corrupted pictures."""

from pathlib import Path

import numpy as np
import pytest

from aml.conditions import parse_corruptions
from aml.data.dataset import Items
from aml.data.decode import decode_row, rows_of_block
from aml.data.refer_counts import vocabulary
from aml.errors import UserError
from orchestrator.evaluation import command, robustness, samples, together
from tests.support.stores import save_model

CONDITIONS = parse_corruptions("fog:2,fog:4,occlusion:3")


@pytest.fixture(scope="module")
def checkpoints(data, tmp_path_factory):
    """Return the folders of two checkpoints that predict differently."""
    high = tmp_path_factory.mktemp("models") / "high"
    save_model(high, vocabulary(data.rows), threshold=0.6)
    return {"low": data.checkpoint, "high": high}


def evaluated_by_hand(checkpoint, store, out):
    request = command.EvaluationRequest(checkpoint, store, ["val"], out, corruptions=CONDITIONS)
    found = command.evaluate_checkpoint(request)
    return {"clean:0" if "/" not in key else key[4:]: scores for key, scores in found.items()}


def test_scores_are_those_of_an_evaluation_by_hand(checkpoints, data, tmp_path):
    found = together.score_conditions(checkpoints, data.store, "val", CONDITIONS, workers=1)
    assert list(found["low"]) == ["clean:0", "fog:2", "fog:4", "occlusion:3"]
    assert found == {
        name: evaluated_by_hand(folder, data.store, tmp_path / name)
        for name, folder in checkpoints.items()
    }
    assert found["low"] != found["high"]


def test_each_picture_is_corrupted_once_for_all_checkpoints(checkpoints, data, monkeypatch):
    seen = []
    corrupt = samples.corrupt

    def counted(image, name, severity, image_id):
        seen.append((image_id, name, severity))
        return corrupt(image, name, severity, image_id)

    monkeypatch.setattr(samples, "corrupt", counted)
    together.score_conditions(checkpoints, data.store, "val", CONDITIONS, workers=1)
    assert seen and len(seen) == len(set(seen))


def test_a_limit_takes_the_sentences_that_validation_takes(checkpoints, data, monkeypatch):
    read = [row | {"jpeg": Path(row["path"]).read_bytes()} for row in data.rows]
    blocks = [rows_of_block([decode_row(row, 32) for row in read])]
    val = Items(blocks, "val", size=32, unit="sentence", limit=5)
    wanted = {
        (val.ref(item)["ref_id"], item.sentence["sent_id"])
        for item in val.picks(np.arange(5), 0, 0)
    }
    chosen = []
    loader = samples.SampleLoader

    def watched(*arguments):
        chosen.append(arguments[-1])
        return loader(*arguments)

    monkeypatch.setattr(together, "SampleLoader", watched)
    found = together.score_conditions(checkpoints, data.store, "val", [], limit=5, workers=1)
    assert found["low"]["clean:0"]["n"] == 5 and chosen == [wanted]


def test_checkpoints_of_two_sizes_are_refused(checkpoints, data, tmp_path):
    other = save_model(tmp_path / "other", vocabulary(data.rows), size=64)
    with pytest.raises(UserError, match=r"2 different sizes \(32 px square, 64 px square\)"):
        together.score_conditions(
            checkpoints | {"other": other}, data.store, "val", CONDITIONS, workers=1
        )


def test_means_over_severities_and_corruptions():
    scores = {"clean:0": 0.5, "fog:1": 0.4, "fog:5": 0.2, "noise:3": 0.1}
    found = robustness.mean_over_severities({k: {"mIoU": v} for k, v in scores.items()})
    assert found == pytest.approx({"clean": 0.5, "fog": 0.3, "noise": 0.1, "mean": 0.2})
