"""Checkpoints whose files were altered: each is refused in one sentence that names the file."""

import json
import os
import shutil

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file

from aml.errors import UserError
from aml.models.registry import build_model
from aml.training.checkpoint import load_model, load_training, load_weights, save_checkpoint
from aml.training.checkpoint_config import read_checkpoint_config
from tests.aml.training.test_checkpoint import INFO, learner_of, trained
from tests.support.fuzzing import damaged, outcome, replaced

TINY = {"width": 8, "stem": 8, "heads": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint of a tiny model without digests, as whoever alters one may leave it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "best"
    model = build_model("small", vocabulary=["left", "red", "circle"], **TINY)
    save_checkpoint(folder, model, INFO)
    (folder / "digests.json").unlink()
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may alter."""
    shutil.copytree(whole, tmp_path / "best")
    return tmp_path / "best"


def refused(folder, *said):
    with pytest.raises(UserError) as caught:
        load_model(folder)
    text = str(caught.value)
    assert "\n" not in text and str(folder) in text
    for word in said:
        assert word in text, text


MISSING = object()

MODEL = {"name": "small", **TINY}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("threshold", v) for v in (5, -1, 0, 1, float("nan"), "0.5", None, True, MISSING)],
        *[("image_size", v) for v in (63, "64", 0, -64, 10**9, 64.0, 64.5, None, MISSING)],
        *[("fit", v) for v in ("nope", "", 5, None, MISSING)],
        *[("vocabulary", v) for v in (None, "left", [5], {}, MISSING)],
        *[("model", v) for v in (None, [], {}, {"name": [1]}, {"name": "nope"}, MISSING)],
        *[("model", MODEL | v) for v in ({"width": "8"}, {"nope": 1}, {"cls": 1}, {"width": 0})],
        *[("model", MODEL | v) for v in ({"vocabulary": 1}, {"dropout": float("nan")})],
        *[("precision", "fp64"), ("epoch", "x"), ("epoch", -1)],
    ],
)
def test_a_configuration_that_means_nothing_is_refused(folder, key, value):
    config = json.loads((folder / "config.json").read_text())
    config[key] = value
    if value is MISSING:
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "config.json", key)


def test_a_model_of_sizes_that_take_all_memory_is_not_built(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model"] |= {"width": 2**16, "layers": 1000}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "memory")


@pytest.mark.parametrize("content", ["null", "[]", "5", "", "{", "[" * 10**5, '{"a": 1, "a": 1}'])
def test_files_that_hold_no_mapping_are_refused(folder, content):
    for name in ("config.json", "assets.json", "digests.json"):
        copy = folder.with_name(name)
        shutil.copytree(folder, copy)
        (copy / name).write_text(content)
        refused(copy, name)


@pytest.mark.parametrize(
    "name", ["config.json", "assets.json", "digests.json", "model.safetensors"]
)
def test_what_is_no_regular_file_is_not_read(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, name)


def test_the_digests_cover_configuration_and_assets(make_model, tmp_path):
    model = make_model()
    model.assets = {"words": ["a"]}
    for name in ("config.json", "assets.json", "model.safetensors"):
        save_checkpoint(tmp_path / name, model, INFO)
        assert load_model(tmp_path / name)
        content = (tmp_path / name / name).read_text("latin-1")
        (tmp_path / name / name).write_text(content.replace("a", "b", 1), "latin-1")
        refused(tmp_path / name, f"{name} is not as it was written")


@pytest.mark.parametrize(
    "digests", [{}, {"model.safetensors": 5}, {"model.safetensors": "0" * 64, "/dev/zero": "0"}]
)
def test_digests_that_are_none_are_refused(folder, digests):
    (folder / "digests.json").write_text(json.dumps(digests))
    refused(folder)


def test_older_digests_of_weights_and_state_alone_will_do(make_model, tmp_path):
    folder = tmp_path / "best"
    save_checkpoint(folder, make_model(), INFO)
    digests = json.loads((folder / "digests.json").read_text())
    (folder / "digests.json").write_text(
        json.dumps({"model.safetensors": digests["model.safetensors"]})
    )
    config = json.loads((folder / "config.json").read_text()) | {"threshold": 0.3}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder)[1]["threshold"] == 0.3
    (folder / "config.json").write_text(json.dumps(config)[:-9])
    refused(folder, "config.json is not valid JSON")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.fill_(torch.nan), "NaN or infinity in"),
        (lambda t: t.index_fill_(0, torch.tensor([0]), -torch.inf), "NaN or infinity in"),
        (lambda t: t.to(torch.int32), "torch.int32"),
        (lambda t: t.half(), "torch.float16"),
        (lambda t: t[:-1], "does not fit this model"),
    ],
)
def test_weights_that_are_no_such_numbers_are_refused(folder, change, said):
    weights = load_file(folder / "model.safetensors")
    name = next(k for k in weights if weights[k].dim() and weights[k].is_floating_point())
    save_file(weights | {name: change(weights[name]).contiguous()}, folder / "model.safetensors")
    refused(folder, said, name, "model.safetensors")
    model = build_model("small", vocabulary=["left", "red", "circle"], **TINY)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=said):
        load_weights(model, folder)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_state_that_holds_no_training_is_passed_over(make_model, items, tmp_path):
    learner = trained(make_model(), items)
    for _ in range(2):
        save_checkpoint(tmp_path / "last", learner.model, INFO, learner.state_dict())
    torch.save([1], tmp_path / "last" / "state.pt")
    (tmp_path / "last" / "digests.json").unlink()
    said = []
    assert load_training(tmp_path / "last", learner_of(make_model(seed=9)), said.append)
    assert "holds no state of a training" in said[0] and "the one before" in said[0]


@pytest.mark.fuzz
@given(data=st.data())
def test_any_configuration_loads_or_is_refused_in_one_sentence(whole, data):
    folder = whole.with_name("altered")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    path = folder / "config.json"
    if data.draw(st.booleans()):
        config = data.draw(replaced(json.loads(path.read_text())))
        path.write_text(json.dumps(config, default=repr))
    else:
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = outcome(load_model, folder)
    if not isinstance(found, UserError):
        assert found[1] == read_checkpoint_config(folder)
