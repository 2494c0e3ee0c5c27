"""A model of any two encoders: what fits and what is refused, the packages' real weights, the kept
sentences, a rebuild without packages or folders.
"""

import copy
import json
import pickle
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aml.data.batches import steps_per_epoch
from aml.errors import UserError
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.models.contract import check
from aml.models.encoders import packages
from aml.models.encoders.backbone import plan_backbone
from aml.models.encoders.sentences import SentenceCache
from aml.models.encoders.text import sentence_encoder
from aml.models.options import resolved
from aml.models.registry import build_model
from aml.training.checkpoint import load_model, save_checkpoint
from aml.training.config import EvalConfig, OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.loop import train_epochs
from aml.training.optimizer import parameter_groups
from orchestrator.config.loader import from_dict
from orchestrator.config.validation import check_run
from tests.aml.models.test_models import SENTENCES, TINY, VOCABULARY, inputs

ROOT = Path(__file__).parents[3]

TINIEST = TINY["compose"]

LITE = "tf_efficientnet_lite0"

OBVIOUS = {34: "zebra", 263: "elephant", 397: "pizza", 450: "pizza", 623: "teddy", 73: "moped"}
"""Pictures of coco128 -> a word of the ImageNet class of what fills them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT in Hugging Face format, of the vocabulary's words."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from aml.models.encoders.bert import word_tokenizer

    torch.manual_seed(1)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(VOCABULARY),
        **{f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")},
    )
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 16}
    out = tmp_path_factory.mktemp("bert") / "folder"
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """A tiny T5, whose tokenizer puts a token behind a sentence and none before it."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, T5Config, T5Model

    from aml.models.encoders.bert import word_tokenizer

    torch.manual_seed(1)
    words = word_tokenizer(VOCABULARY)
    end = ("[SEP]", words.token_to_id("[SEP]"))
    words.post_processor = TemplateProcessing(single="$A [SEP]", special_tokens=[end])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    sizes = {"d_model": 24, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    out = tmp_path_factory.mktemp("t5") / "folder"
    T5Model(T5Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def compose(**changes):
    torch.manual_seed(0)
    return build_model("compose", vocabulary=VOCABULARY, **TINIEST | changes)


def experiment(size=64, **model):
    return from_dict(
        {
            "name": "parts",
            "data": {"train": "shards", "size": size},
            "model": {"name": "compose", **TINIEST, **model},
        }
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "test_vit"},
        {"backbone": "test_resnet", "text": "folder"},
        {"text": "folder", "freeze": []},
        {"text": "ending"},
    ],
    ids=["a plain transformer", "frozen text", "trained text", "an end token alone"],
)
def test_parts_of_other_kinds_keep_the_interface(changes, folder, ending, tmp_path):
    folders = {"folder": str(folder), "ending": str(ending)}
    given = {k: folders[v] if k == "text" else v for k, v in changes.items()}
    assert check("compose", **TINIEST | given) == []
    model = compose(**given).eval()  # T5's embeddings stand under two names
    save_checkpoint(tmp_path / "one", model, {"image_size": 64, "fit": "square", "threshold": 0.5})
    x = inputs(model)
    assert torch.equal(load_model(tmp_path / "one")[0](*x), model(*x))


@pytest.mark.parametrize(
    ("backbone", "reductions", "multiple"),
    [
        (LITE, (4, 8, 16, 32), 32),
        ("swin_tiny_patch4_window7_224", (4, 8, 16, 32), 32),
        ("vit_small_patch16_dinov3.lvd1689m", (16, 16, 16), 16),
        ("vit_so400m_patch14_siglip_gap_224.v2_webli", (14, 14, 14), 14),
    ],
)
def test_maps_of_a_backbone_are_known_before_it_is_built(backbone, reductions, multiple):
    plan = plan_backbone(backbone)
    assert (plan.reductions, plan.multiple) == (reductions, multiple)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "resnett18"}, r"'resnett18' is not a model of timm \(did you mean resnet18"),
        ({"backbone": "resnet18.none"}, "has a tag that timm does not know; of resnet18 it has"),
        ({"backbone": "hf-hub:someone/model"}, "is not a model of timm"),
        ({"backbone": "mixer_s16_224"}, "gives no maps of images of any size"),
        ({"size": 65}, "data.size is 65, but model compose needs a multiple of 32"),
        ({"backbone": "test_vit", "size": 72}, "needs a multiple of 16"),
        ({"backbone_weights": "nowhere.pth"}, "'nowhere.pth' is no file, and no folder with one"),
        ({"backbone_weights": "package"}, "no package holds weights of test_efficientnet; take"),
        ({"text": "./nowhere"}, "'./nowhere' is no folder; give one in Hugging Face format"),
        ({"text": "gpt"}, "is a gpt2, which is no text encoder; give one as BERT"),
        ({"text": "empty"}, "its configuration cannot be had"),
        ({"width": 36}, "must be multiples of 8"),
        ({"freeze": ["words"]}, r"model\.freeze is 'words'; known: backbone, text"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_starts(changes, words, tmp_path):
    (tmp_path / "gpt").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "gpt" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    if changes.get("text") in ("gpt", "empty"):
        changes = {"text": str(tmp_path / changes["text"])}
    with pytest.raises(UserError, match=words) as caught:
        check_run(experiment(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.pth", "package"])
def test_weights_are_called_what_the_option_of_the_model_is_called(name):
    """CARIS names the weights of a timm backbone by an option of another name."""
    given = experiment().replace(
        model=resolved({"name": "caris", "backbone": "convnext_tiny", "pretrained": name})
    )
    with pytest.raises(UserError, match=r"^model\.pretrained .*(true or false|other weights)$"):
        check_run(given)


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    gone = packages.TEXT._replace(module="no_such_package")
    monkeypatch.setattr("aml.models.encoders.text.TEXT", gone)
    with pytest.raises(UserError, match="not installed; install it with `pip install gt-all-mini"):
        check_run(experiment(text="package"))


def test_the_lines_that_install_packages_are_those_of_the_extra_and_of_development():
    wanted = {p.install for p in (packages.TEXT, *packages.BACKBONES.values())}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(project["optional-dependencies"]["photos"]) == wanted
    lines = (ROOT / "requirements-dev.txt").read_text("utf-8").splitlines()
    assert wanted <= {line.partition("#")[0].strip() for line in lines}


def test_more_tokens_than_a_text_encoder_reads_are_refused(folder):
    with pytest.raises(UserError, match="max_tokens is 17, which .* has places for 16"):
        compose(text=str(folder), max_tokens=17)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"conv_stem.weight": torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="cannot be had .*give weights of test_efficientnet under"):
        compose(backbone_weights=str(tmp_path))


# ---- what trains, and how


def test_pretrained_parts_train_at_the_encoders_rate_and_frozen_ones_not(folder, tmp_path):
    import timm

    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "model.pth")
    weights = {"backbone_weights": str(tmp_path), "text": str(folder)}
    optim = OptimConfig(lr=0.01, encoder_lr=0.1, weight_decay=0.05)
    for freeze, slow in (
        ([], {"backbone", "text"}),
        (["text"], {"backbone"}),
        (["backbone"], {"text"}),
    ):
        model = compose(**weights, freeze=freeze)
        rates = {
            id(p): group["lr"] for group in parameter_groups(model, optim) for p in group["params"]
        }
        for name, p in model.named_parameters():
            part = name.split(".")[0]
            assert rates.get(id(p)) == (
                None if part in freeze else pytest.approx(0.001 if part in slow else 0.01)
            ), name
    rates = {group["lr"] for group in parameter_groups(compose(), optim)}
    assert rates == {0.01}, "what starts from scratch learns at the full rate"


def test_training_changes_neither_statistics_nor_what_is_frozen(folder, tmp_path, items):
    """Statistics of batch normalisation are those of the file, in training as in evaluation."""
    import timm

    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "model.pth")
    model = compose(backbone_weights=str(tmp_path), text=str(folder))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    learner = Learner(
        model,
        Masker(preset(mode="maskris"), model=model, image_size=64),
        optim=OptimConfig(lr=3e-3),
        train=TrainConfig(epochs=2, batch=16),
        steps=steps_per_epoch(len(items["train"]), 16),
    )
    first, second = train_epochs(learner, items["train"], items["val"], EvalConfig(probe=4))
    assert second.metrics["train/loss"] < first.metrics["train/loss"]
    after = model.state_dict()
    same = {k for k in after if torch.equal(after[k], before[k])}
    assert {k for k in after if k.startswith("text.") or "running_" in k} <= same
    assert any("running_mean" in k for k in same) and "backbone.conv_stem.weight" not in same


# ---- kept sentences


def test_kept_sentences_change_no_bit(folder):
    model = compose(text=str(folder)).eval()
    x, tokens, mask = inputs(model)
    masked = torch.where(tokens == tokens[0, 3], model.mask_token, tokens)
    with torch.inference_mode():  # as a validation does, before training goes on
        kept = [model(x, t, mask) for t in (tokens, masked, tokens, masked)]
        assert len(model.text.cache.kept) == 5, "three sentences, two of which had the word"
        model.text.cache.clear()
        alone = torch.cat([model.text(tokens[i : i + 1], mask[i : i + 1]) for i in (2, 1, 0)])
        assert torch.equal(model.text(tokens, mask), alone.flip(0)), "whoever shares the batch"
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.text(tokens, mask), alone.flip(0))
    assert torch.equal(kept[0], kept[2]) and torch.equal(kept[1], kept[3])
    assert not torch.equal(kept[0], kept[1])
    model(x, tokens, mask).sum().backward()
    trained = compose(text=str(folder), freeze=[]).eval()
    trained.load_state_dict(model.state_dict())
    assert torch.allclose(trained(x, tokens, mask), model(x, tokens, mask), atol=1e-5)


def test_kept_sentences_go_where_they_must(folder):
    model = compose(text=str(folder)).eval()
    x, tokens, mask = inputs(model)
    before = model(x, tokens, mask)
    assert model.text.cache.bytes > 0 and not any("cache" in k for k in model.state_dict())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not copied.text.cache.kept and torch.equal(copied(x, tokens, mask), before)
    other = {
        k: v + 0.1 * torch.randn_like(v) if v.is_floating_point() else v
        for k, v in model.state_dict().items()
    }
    model.load_state_dict(other)
    again = compose(text=str(folder)).eval()
    again.load_state_dict(other)
    assert torch.equal(model(x, tokens, mask), again(x, tokens, mask)), "of the weights before"


def test_sentences_unused_for_longest_give_way(folder):
    encoder, _ = sentence_encoder(str(folder), 12, True, {})
    tokens, mask = encoder.tokens(["left", "red", "blue", "left circle"])
    size = encoder(tokens[:1], mask[:1])[0, :3].nbytes
    encoder.cache = SentenceCache(limit=2 * size)
    for i in (0, 1, 0, 2):
        encoder(tokens[i : i + 1], mask[i : i + 1])
    assert [np.frombuffer(key, np.int64)[1] for key in encoder.cache.kept] == [
        tokens[0, 1],
        tokens[2, 1],
    ]
    assert encoder.cache.bytes == 2 * size
    encoder(tokens, mask)  # a batch larger than what is kept
    assert encoder.cache.bytes <= 2 * size


# ---- the packages


@pytest.fixture(scope="module")
def photos():
    torch.manual_seed(0)
    return build_model("compose", vocabulary=VOCABULARY, width=32, stem=16, layers=1).eval()


def picture(real_data, number: int) -> torch.Tensor:
    """The middle 224 x 224 pixels of a picture whose shorter side is 256, uint8 (1, 3, H, W)."""
    with Image.open(next((real_data / "coco128").rglob(f"{number:012}.jpg"))) as file:
        image = file.convert("RGB")
    share = 256 / min(image.size)
    image = image.resize([round(side * share) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - 224) // 2 for side in image.size)
    pixels = np.array(image.crop((left, top, left + 224, top + 224)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def test_the_package_knows_what_is_in_real_pictures(photos, real_data):
    """The backbone's last map goes on through the classifier of the same file."""
    import timm
    from timm.data import ImageNetInfo

    path = packages.package_path(packages.BACKBONES[LITE], "backbone_weights")
    whole = timm.create_model(LITE).eval()
    given = torch.load(path, weights_only=True).values()
    whole.load_state_dict(dict(zip(whole.state_dict(), given, strict=True)))
    info, likely = ImageNetInfo(), []
    for number, word in OBVIOUS.items():
        x = photos.normalise(picture(real_data, number))
        with torch.no_grad():
            last = photos.encode(x)[-1]
            scores = whole.forward_head(whole.bn2(whole.conv_head(last)))
            same = torch.allclose(scores, whole(x), atol=1e-3)
            assert same, "the maps are those of the whole network"
        share, classes = scores.softmax(1)[0].topk(5)
        names = [info.index_to_description(int(index)) for index in classes]
        assert any(word in name for name in names), (number, word, names)
        likely.append(float(share[0]))
    # with padding on both sides alike, which these weights did not learn with, it is 0.51
    assert np.mean(likely) > 0.62


def test_the_package_reads_sentences(photos):
    """Sentences that mean the same lie nearer than others that share as many words."""

    def embedded(*sentences):
        tokens, mask = photos.tokenise(list(sentences))
        return torch.nn.functional.normalize(photos.text(tokens, mask)[:, 0], dim=1)

    for one, same, other in [
        ("the boy on the left", "the kid at the left side", "the pizza on the table"),
        ("a red car", "a red automobile", "a red apple"),
        ("man holding an umbrella", "a guy with an umbrella", "a dog holding a ball"),
    ]:
        a, b, c = embedded(one, same, other)
        assert a @ b > a @ c + 0.2, (one, float(a @ b), float(a @ c))
    tokens, mask = photos.tokenise(["the boy on the left"])
    words, pooled = photos.tokens.roles(tokens, mask)
    assert words.sum() == 5 and pooled[0, 0] and photos.mask_token == 103


def test_a_checkpoint_needs_no_package(photos, tmp_path, monkeypatch):
    """A model is rebuilt where neither package is, and where timm and the hub give nothing."""
    settings = {"image_size": 64, "fit": "square", "threshold": 0.5}
    save_checkpoint(tmp_path / "best", photos, settings)

    def away(*_, **__):
        raise AssertionError("a rebuild looks for nothing")

    monkeypatch.setattr("aml.models.encoders.backbone.package_path", away)
    monkeypatch.setattr("aml.models.encoders.text.package_path", away)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", away)
    monkeypatch.setattr("socket.socket.connect", away)
    again, _ = load_model(tmp_path / "best")
    x = inputs(photos, sentences=[*SENTENCES, "an unheard zebra"])
    with torch.no_grad():
        assert torch.equal(again.eval()(*x), photos(*x))
    assert again.image_multiple == 32
    assert torch.allclose(again.mean.flatten(), torch.full((3,), 127.0))
