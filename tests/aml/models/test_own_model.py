"""Models and masking methods outside the project: the guide's example, its checks, its refusals."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray.cloudpickle
import torch

from aml import own_classes
from aml.data.batches import steps_per_epoch
from aml.errors import UserError
from aml.inference.segmenter import Segmenter
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.models.base import find_class
from aml.models.contract import check
from aml.models.registry import build_model, make_options
from aml.training.checkpoint import load_model, save_checkpoint
from aml.training.config import EvalConfig, OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.loop import train_epochs
from orchestrator.cluster.jobs import check_command
from orchestrator.config.loader import from_dict
from orchestrator.config.validation import check_run, check_sweep

GUIDE = Path(__file__).parents[3] / "docs" / "own_model.md"

NAME = "my_model.py:MyModel"

METHOD = "my_masks.py:LeftHalf"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder outside the checkout with the guide's examples, as the current folder."""
    model, _, method = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.S)
    (tmp_path / "my_model.py").write_text(model)
    (tmp_path / "my_masks.py").write_text(method)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_classes, "_ALLOWED", set())
    monkeypatch.delenv(own_classes.ALLOWED_VARIABLE, raising=False)
    return tmp_path


def experiment(**changes):
    return from_dict(
        {
            "name": "own",
            "data": {"train": "shards", "size": 64},
            "model": {"name": NAME, "width": 16},
            **changes,
        }
    )


def trained(items, vocabulary, folder, **aml):
    """A learner of the guide's model after two epochs, its checkpoint in folder/best."""
    torch.manual_seed(0)
    model = build_model(NAME, vocabulary=vocabulary, width=16)
    masker = Masker(preset(**aml), model=model, image_size=64)
    learner = Learner(
        model,
        masker,
        optim=OptimConfig(lr=3e-3),
        train=TrainConfig(epochs=2, batch=16),
        steps=steps_per_epoch(len(items["train"]), 16),
    )
    results = list(train_epochs(learner, items["train"], items["val"], EvalConfig(probe=4)))
    about = {"image_size": 64, "fit": "square", "threshold": 0.5}
    save_checkpoint(folder / "best", model, about)
    return learner, [result.metrics for result in results]


def test_the_example_of_the_guide_keeps_the_interface(folder):
    assert check(NAME, width=16) == []
    assert check(find_class(NAME)) == []


def test_the_example_trains_and_is_evaluated_through_its_checkpoint(
    folder, items, make_model, monkeypatch
):
    vocabulary = make_model().vocabulary
    learner, (first, second) = trained(items, vocabulary, folder)
    assert second["train/loss"] < first["train/loss"] and second["aml/hidden"] > 0.1
    segmenter = Segmenter.load(folder / "best")
    picture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    assert segmenter.mask(picture, "the red circle").shape == (50, 40)
    again = segmenter.model
    assert again.spec == {"name": NAME, "width": 16, "max_words": 16}
    batch = items["val"].batch(np.arange(4), again)
    x = again.normalise(batch.image), batch.tokens, batch.token_mask
    with torch.no_grad():
        assert torch.equal(again(*x), learner.model.eval()(*x))


def test_a_checkpoint_runs_code_only_where_somebody_else_names_the_class(
    folder, items, make_model, monkeypatch
):
    trained(items, make_model().vocabulary, folder)
    own_classes._ALLOWED.clear()  # as in a process that has not trained it
    with pytest.raises(UserError, match=f"set AMLRIS_ALLOW_CLASSES={NAME}$"):
        load_model(folder / "best")
    monkeypatch.setenv("AMLRIS_ALLOW_CLASSES", f"other:Model, {NAME}")
    assert load_model(folder / "best")[0].name == "MyModel"
    monkeypatch.delenv("AMLRIS_ALLOW_CLASSES")
    check_run(experiment())
    assert load_model(folder / "best")[0].name == "MyModel"


def test_a_method_of_ones_own_masks_as_it_says(folder, items, make_model):
    _, (_, second) = trained(items, make_model().vocabulary, folder, mode=METHOD)
    assert second["aml/hidden"] == pytest.approx(6 / 13, abs=0.05)
    assert preset(mode=METHOD).coordinates == (1.0, 0.5) and preset(mode=METHOD).arm == METHOD
    two = experiment(search={"arms": ["off", METHOD]})
    check_sweep(two)
    assert two.for_arm(METHOD, {}).aml.mode == METHOD


def test_options_are_checked_before_anything_starts(folder):
    check_run(experiment())
    for options, words in [
        ({"widht": 16}, rf"unknown key model\.widht with name {NAME}; did you mean model\.width\?"),
        ({"width": "wide"}, r"model\.width is 'wide'; it must be a whole number"),
        ({"width": 1.5}, r"model\.width is 1\.5"),
    ]:
        with pytest.raises(UserError, match=words):
            check_run(experiment(model={"name": NAME, **options}))
    with pytest.raises(UserError, match="model MyModel needs a multiple of 8"):
        check_run(experiment(data={"train": "shards", "size": 63}))
    with pytest.raises(UserError, match="aml.source joint is not offered by model MyModel"):
        check_run(experiment(aml={"source": "joint", "score": "cosine"}))


def test_options_may_be_a_pydantic_class(folder):
    text = (folder / "my_model.py").read_text()
    text = text.replace("@dataclass\nclass MyOptions:", "class MyOptions(BaseModel):")
    (folder / "my_model.py").write_text("from pydantic import BaseModel\n" + text)
    assert make_options(NAME, {"width": 8}).width == 8
    assert check(NAME, width=8) == []
    with pytest.raises(UserError, match=r"model\.width is 'wide': "):
        make_options(NAME, {"width": "wide"})
    with pytest.raises(UserError, match="unknown key model.wdth"):
        make_options(NAME, {"wdth": 8})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.py:MyModel", "there is no file .*nowhere.py; give its path"),
        ("no.such.module:MyModel", "there is no module no.such.module; install it"),
        ("my_model.py:MyModle", "has no MyModle; name a class that is there: MyModel"),
        ("my_model.py:MyOptions", "is not derived from aml.models.base.Model"),
        ("broken.py:MyModel", r"importing .*broken.py failed in line 2 with ZeroDivisionError"),
        ("empty.py:MyModel", "it holds no Model"),
    ],
)
def test_a_class_that_cannot_be_had_is_one_sentence(folder, name, words):
    (folder / "broken.py").write_text("x = 1\n1 / 0\n")
    (folder / "empty.py").write_text("")
    with pytest.raises(UserError, match=words):
        check_run(experiment(model={"name": name}))
    assert len(check(name)) == 1


@pytest.mark.parametrize(
    "lost, words",
    [
        ("decode", "has no decode; write"),
        ("encode", "has no encode; write"),
        ("features", "has no features; write"),
    ],
)
def test_a_class_without_a_method_is_refused_before_anything_starts(folder, lost, words):
    text = (folder / "my_model.py").read_text()
    (folder / "my_model.py").write_text(text.replace(f"    def {lost}(", f"    def other_{lost}("))
    with pytest.raises(UserError, match=words):
        check_run(experiment())


def test_a_masking_method_that_hides_nowhere_is_refused_before_anything_starts(folder):
    text = (folder / "my_masks.py").read_text()
    (folder / "my_masks.py").write_text(text.replace("def draw(", "def draws("))
    with pytest.raises(UserError, match="LeftHalf has neither draw nor train; write its draw"):
        check_run(experiment(aml={"mode": METHOD}))


def test_a_module_of_the_current_folder_is_found(folder):
    name = "my_model:MyModel"
    try:
        assert check(name, width=16) == []
        assert build_model(name, vocabulary=["red"]).spec["name"] == name
    finally:
        sys.modules.pop("my_model", None)
        sys.path.remove(str(folder))


READS_ALL = """    drops = True

    def encode_visible(self, x, visible):
        return self.encode(x)

"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("image_multiple = 8", "image_multiple = 0", "image_multiple is 0"),
        ("    def decode(", READS_ALL + "    def decode(", "encode_visible reads hidden patches"),
        ('"encoder", "prediction"', '"encoder",', "it must hold prediction"),
        ("(image.float() - 118) / 64", "image.float() / 255", "does not centre pictures"),
        ("tokens, tokens > 0", "tokens, tokens", "it must give int64 and bool"),
        ("* token_mask[..., None]", "", "depend on tokens in the padding"),
        ("+ self.bias", "+ self.bias * maps[0].mean()", "other samples of its batch"),
        ("+ self.bias", "", "1 parameters get no gradient, first bias"),
        ("self.ids.get(word, 2)", "2", "red and blue the same tokens"),
        ("nn.ReLU()", "nn.BatchNorm2d(options.width)", "batch normalisation"),
        ("token_mask & ~pooled, pooled", "token_mask, pooled", "one token a sentence that is no"),
        ("maps[0], self.words(tokens),", "x[:1], self.words(tokens),", "must be (B, D, h, w)"),
        ("return [self.visual(x)]", "return self.nothing", "AttributeError"),
        ("Options = MyOptions", "pass", "has no options; give its class an attribute Options"),
    ],
)
def test_what_a_model_lacks_is_named(folder, old, new, words):
    text = (folder / "my_model.py").read_text()
    assert old in text
    (folder / "my_model.py").write_text(text.replace(old, new))
    found = check(NAME, width=16)
    assert any(words in sentence for sentence in found), found


def test_a_model_that_forgets_a_part_is_not_rebuilt(folder):
    text = (folder / "my_model.py").read_text()
    text = text.replace("self.bias = ", "self.gain = float(torch.rand(()))\n        self.bias = ")
    (folder / "my_model.py").write_text(text.replace("+ self.bias", "* self.gain + self.bias"))
    (sentence,) = check(NAME, width=16)
    assert sentence.startswith("built again from its options and assets")


def test_a_model_travels_to_a_process_without_the_file(folder, tmp_path):
    """Ray sends a model to its tasks with cloudpickle."""
    model = build_model(NAME, vocabulary=["red"], width=8)
    (folder / "sent.pickle").write_bytes(ray.cloudpickle.dumps(model))
    (folder / "my_model.py").unlink()
    code = "import pickle; m = pickle.load(open('sent.pickle', 'rb')); print(m.tokenise(['red']))"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(GUIDE.parents[1])},
        capture_output=True,
        text=True,
    )
    assert "tensor([[1, 3, 0" in ran.stdout, ran.stderr
    assert pickle.loads(ray.cloudpickle.dumps(model)).spec == model.spec


def parse(name, rest):
    return {"config": rest[0], "overrides": rest[1:]}


def test_the_file_goes_along_with_a_job(folder, tmp_path_factory):
    (folder / "e.yaml").write_text("name: own\ndata: {train: shards}\n")
    (folder / "data").mkdir()
    (folder / "data" / "left.py").write_text("")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "other.py"
    elsewhere.write_text("")
    check_command(["train", "e.yaml", f"model.name={NAME}"], parse, folder)
    check_command(["train", "e.yaml", "model.name=installed.module:Model"], parse, folder)
    for name in (f"{elsewhere}:Model", "data/left.py:Model", f"{folder}/{NAME}", "gone.py:Model"):
        file = name.rpartition(":")[0]
        with pytest.raises(UserError, match=re.escape(f"{file} ")):
            check_command(["train", "e.yaml", f"model.name={name}"], parse, folder)
    with pytest.raises(UserError, match="left.py"):
        check_command(["train", "e.yaml", "aml.mode=data/left.py:Mask"], parse, folder)
    with pytest.raises(UserError, match="left.py"):
        arms = "search.arms=[off, data/left.py:Mask]"
        check_command(["sweep", "e.yaml", arms], parse, folder)
