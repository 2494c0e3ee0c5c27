"""Compose of modern encoders, tiny and random, of the classes whose weights a recipe names."""

import re
from pathlib import Path

import pytest
import timm
import torch

from aml.data.batches import steps_per_epoch
from aml.errors import UserError
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.models.contract import check
from aml.models.encoders import backbone as backbone_module
from aml.models.encoders.backbone import picture_statistics, plan_backbone
from aml.models.encoders.bert import word_tokenizer
from aml.models.registry import build_model
from aml.training.config import EvalConfig, OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.loop import train_epochs
from orchestrator.config.loader import load
from orchestrator.config.validation import check_run
from tests.aml.models.test_compose import TINIEST, experiment
from tests.aml.models.test_models import SENTENCES, VOCABULARY, inputs
from tests.support import siglip_folder

ROOT = Path(__file__).parents[3]

UNHEARD = ("edgenext_xx_small", "mobilenetv4_conv_small_050"), "Ernie"
"""Two models of timm and one of transformers that nothing in this project names elsewhere."""


def text_folder(out, kind: str, **more):
    """Write a tiny random text encoder of transformers with a tokenizer of the vocabulary."""
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(VOCABULARY),
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    )
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 16} | more
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **sizes)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return str(out)


@pytest.fixture(scope="module")
def modernbert(tmp_path_factory):
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
    ids |= {"bos_token_id": 2, "eos_token_id": 3}
    return text_folder(tmp_path_factory.mktemp("text") / "modernbert", "ModernBert", **ids)


@pytest.fixture(scope="module", params=["Siglip", "Siglip2"])
def siglip(request, tmp_path_factory):
    """A folder as google/siglip2-base-patch16-512 is (type siglip), and one as a NaFlex one is."""
    return siglip_folder.write(
        tmp_path_factory.mktemp("siglip") / "folder", VOCABULARY, request.param
    )


def pair(folder, **changes):
    both = {"backbone": str(folder), "backbone_weights": "pretrained", "text": str(folder)}
    return TINIEST | both | changes


# ---- DINOv3 and ModernBERT


def test_dinov3_with_modernbert_keeps_the_interface(modernbert, monkeypatch):
    """The backbone is timm's class of that name, narrow and shallow."""
    name, create = "vit_base_patch16_dinov3.lvd1689m", timm.create_model
    assert plan_backbone(name).reductions == (16, 16, 16)
    mean, std = picture_statistics(name, "pretrained")
    assert (mean, std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    small = {"embed_dim": 32, "depth": 3, "num_heads": 2}
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **k, **small))
    for freeze in ([], ["text"]):
        changes = {"backbone": name, "text": modernbert, "freeze": freeze}
        assert check("compose", **TINIEST | changes) == []
    assert type(backbone_module._timm(name).model).__name__ == "Eva"


# ---- SigLIP 2


@pytest.mark.parametrize("freeze", [[], ["backbone", "text"]], ids=str)
def test_the_towers_of_siglip_keep_the_interface(siglip, freeze):
    assert check("compose", **pair(siglip, freeze=freeze)) == []
    check_run(experiment(**pair(siglip)))


def test_alignment_of_siglip_is_read_where_it_was_trained_to_compare(siglip):
    """A picture of one patch, and a sentence, lie where transformers' own model puts them."""
    from transformers import AutoModel, AutoTokenizer

    whole = AutoModel.from_pretrained(siglip).eval()
    model = build_model("compose", vocabulary=VOCABULARY, **pair(siglip)).eval()
    x, tokens, mask = inputs(model, 16, 16)
    features = model.features(x, tokens, mask, upto="joint")
    given = {"pixel_values": x}
    if whole.config.model_type == "siglip2":
        patches = x.permute(0, 2, 3, 1).flatten(1)[:, None]
        given = {"pixel_values": patches, "spatial_shapes": torch.ones(len(x), 2).long()}
        given["pixel_attention_mask"] = torch.ones(len(x), 1).long()
    else:
        given["interpolate_pos_encoding"] = True
    padded = AutoTokenizer.from_pretrained(siglip)(
        SENTENCES,
        padding="max_length",
        max_length=siglip_folder.CONTEXT,
        padding_side="right",
        return_tensors="pt",
    )
    with torch.no_grad():
        picture = whole.vision_model(**given).pooler_output
        sentence = whole.text_model(input_ids=padded.input_ids).pooler_output
    assert features.visual.shape[2:] == (1, 1)
    assert torch.allclose(features.visual[:, :, 0, 0], picture, atol=1e-4)
    assert torch.allclose(features.text[features.pooled], sentence, atol=1e-4)
    other = build_model("compose", vocabulary=VOCABULARY, **pair(siglip, text="words"))
    assert other.features(*inputs(other, 32, 32), upto="joint").visual.shape[1] == 32, "its own"


def test_sentences_for_siglip_are_lower_case_whatever_the_folder_says(tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    made = siglip_folder.tokenizer(VOCABULARY)
    made.backend_tokenizer.normalizer = None
    plain = PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer,
        **{f"{n}_token": f"<{n}>" for n in ("pad", "eos", "bos", "unk", "mask")},
    )
    folder = siglip_folder.write(tmp_path / "gemma", VOCABULARY, tokens=plain)
    model = build_model("compose", vocabulary=VOCABULARY, **pair(folder))
    assert AutoTokenizer.from_pretrained(folder)("ZEBRA").input_ids[0] == plain.unk_token_id
    assert torch.equal(model.tokenise(["ZEBRA"])[0], model.tokenise(["zebra"])[0])
    assert len(set(model.tokenise(["zebra"])[0][0, :5].tolist())) == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone_weights": "package"}, "brings its own; give pretrained, or random"),
        ({"size": 72}, "needs a multiple of 16"),
        ({"backbone": "modernbert"}, "of type 'modernbert', but of transformers only siglip and"),
        ({"max_tokens": 25}, "which model.text .* cannot read; it has places for 24 tokens"),
    ],
)
def test_what_is_no_pair_of_siglip_is_refused(siglip, modernbert, changes, words):
    if changes.get("backbone") == "modernbert":
        changes = {"backbone": modernbert}
    with pytest.raises(UserError, match=words) as caught:
        check_run(experiment(**pair(siglip, **changes)))
        build_model("compose", vocabulary=VOCABULARY, **pair(siglip, **changes))
    assert "\n" not in str(caught.value)


# ---- recipes, and names that nobody named


@pytest.mark.parametrize("name", ["dinov3_modernbert_refcoco", "siglip2_refcoco"])
def test_a_recipe_has_sides_and_tokens_that_its_encoders_take(name):
    recipe = load(ROOT / "experiments" / f"{name}.yaml", [])
    assert recipe.data.size % 16 == 0 and recipe.data.size % recipe.aml.block == 0
    model = recipe.model
    if "siglip2" in name:
        assert model["backbone"] == model["text"] and model["max_tokens"] <= 64
        assert (recipe.aml.source, recipe.aml.score) == ("joint", "sentence")
        assert recipe.aml.projection == "identity", "the space needs none"
    else:
        assert plan_backbone(model["backbone"]).multiple == 16


def test_models_that_nobody_here_named_train_by_their_names_alone(tmp_path, items):
    backbones, text = UNHEARD
    named = re.compile("|".join([*backbones, f"{text}Model", f"[\"']{text.lower()}[\"']"]))
    files = [p for part in ("aml", "orchestrator") for p in (ROOT / part).rglob("*.py")]
    files += [*(ROOT / "docs").glob("*.md"), *(ROOT / "experiments").rglob("*.yaml")]
    assert len(files) > 100 and not [p for p in files if named.search(p.read_text("utf-8"))]
    folder = text_folder(tmp_path / "text", text)
    for backbone in backbones:
        torch.manual_seed(0)
        given = TINIEST | {"backbone": backbone, "text": folder, "freeze": []}
        model = build_model("compose", vocabulary=VOCABULARY, **given)
        learner = Learner(
            model,
            Masker(preset("calibrated"), model=model, image_size=64),
            optim=OptimConfig(lr=3e-3),
            train=TrainConfig(epochs=2, batch=16),
            steps=steps_per_epoch(len(items["train"]), 16),
        )
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        first, second = train_epochs(learner, items["train"], items["val"], EvalConfig(probe=0))
        assert second.metrics["train/loss"] < first.metrics["train/loss"]
        moved = {n.split(".")[0] for n, p in model.named_parameters() if not p.equal(before[n])}
        assert {"backbone", "text", "fusion"} <= moved
