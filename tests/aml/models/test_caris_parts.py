"""CARIS out of a timm backbone and a text encoder of transformers, named and nothing more."""

import pytest
import torch

from aml.data.batches import eval_batches
from aml.data.dataset import Items
from aml.errors import UserError
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.models.contract import check
from aml.models.registry import build_model, find_class
from aml.training.checkpoint import load_model, save_checkpoint
from aml.training.config import EvalConfig, OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.loop import train_epochs
from orchestrator.config.loader import from_dict
from orchestrator.config.validation import check_run
from tests.aml.models.test_models import TINY, VOCABULARY, inputs
from tests.aml.models.test_modern_pairs import text_folder

PARTS = {key: TINY["caris"][key] for key in ("width", "inner", "heads", "layers", "max_tokens")}


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    out = tmp_path_factory.mktemp("text") / "roberta"
    return text_folder(out, "Roberta", max_position_embeddings=24, pad_token_id=0)


@pytest.fixture(scope="module")
def modernbert(tmp_path_factory):
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
    ids |= {"bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 24}
    return text_folder(tmp_path_factory.mktemp("text") / "modernbert", "ModernBert", **ids)


@pytest.mark.parametrize("text", ["roberta", "modernbert", "words"])
def test_a_timm_backbone_with_any_encoder_keeps_the_interface(text, request, tmp_path):
    own = TINY["caris"] | {"backbone": "test_convnext"}
    named = PARTS | {"backbone": "test_convnext", "pretrained": False}
    given = own if text == "words" else named | {"text": request.getfixturevalue(text)}
    assert check("caris", **given) == []
    torch.manual_seed(0)
    model = build_model("caris", vocabulary=VOCABULARY, **given).eval()
    save_checkpoint(tmp_path / "one", model, {"image_size": 64, "fit": "square", "threshold": 0.5})
    again, _ = load_model(tmp_path / "one")
    x = inputs(model)
    with torch.no_grad():
        assert torch.equal(again.eval()(*x), model(*x))


def test_the_text_encoder_reads_the_picture_and_not_the_padding(roberta):
    torch.manual_seed(0)
    given = PARTS | {"backbone": "test_convnext", "pretrained": False, "text": roberta}
    model = build_model("caris", vocabulary=VOCABULARY, **given).eval()
    x, tokens, mask = inputs(model)
    with torch.no_grad():
        read = model.features(x, tokens, mask, "encoder").text
        other = model.features(x.flip(0), tokens, mask, "encoder").text
        filled = torch.where(mask, tokens, torch.full_like(tokens, 7))
        padded = model.features(x, filled, mask, "encoder").text
    assert not torch.allclose(read, other, atol=1e-5)
    kept = mask[..., None].expand_as(read)
    assert torch.allclose(read[kept], padded[kept], atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "text", "sizes"),
    [
        ("pvt_v2_b0", "Electra", {"embedding_size": 16}),
        ("starnet_s050", "SqueezeBert", {"embedding_size": 24}),
    ],
    ids=["attention, narrow embeddings", "convolutions, a pooler that is always run"],
)
def test_a_pair_named_nowhere_else_trains_masked_and_is_evaluated_again(
    backbone, text, sizes, tmp_path, blocks
):
    torch.manual_seed(0)
    folder = text_folder(tmp_path / "text", text, max_position_embeddings=24, **sizes)
    given = PARTS | {"backbone": backbone, "pretrained": False, "text": folder}
    model = build_model("caris", vocabulary=VOCABULARY, **given)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train = Items(blocks, "train", size=64, limit=24)
    val = Items(blocks, "val", size=64, unit="sentence", limit=12)

    def learner(model):
        masker = Masker(preset("calibrated"), model=model, image_size=64)
        how = TrainConfig(epochs=2, batch=12)
        return Learner(model, masker, optim=OptimConfig(lr=3e-3), train=how, steps=2)

    trained = learner(model)
    first, second = train_epochs(trained, train, val, EvalConfig(probe=0))
    assert second.metrics["train/loss"] < first.metrics["train/loss"]
    assert second.metrics["aml/hidden"] > 0
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not p.equal(before[n])}
    assert moved == {"visual", "text", "prompts", "decoder"}
    save_checkpoint(tmp_path / "one", model, {"image_size": 64, "fit": "square", "threshold": 0.5})
    other = learner(load_model(tmp_path / "one")[0])
    scored = [one.evaluate(eval_batches(val, one.model, batch=12)) for one in (trained, other)]
    assert scored[0] == scored[1] and scored[0].n == len(val)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backbone": "test_vit"}, r"'test_vit' gives maps at 1/16.* as convnext_tiny, or model"),
        (
            {"backbone": "swin_bse"},
            r"'swin_bse' is not a model of .*mean swin_base\?",
        ),
        ({"text": "/nowhere/at-all"}, r"'/nowhere/at-all' is no folder"),
        ({"pretrained": "/nowhere/x.pth"}, r"'/nowhere/x.pth' is no file"),
    ],
)
def test_parts_that_cannot_be_taken_are_refused_before_anything_starts(given, said):
    model = {"name": "caris", "backbone": "test_convnext", "pretrained": False} | given
    experiment = from_dict({"name": "e", "data": {"train": "x", "size": 64}, "model": model})
    with pytest.raises(UserError, match=said):
        check_run(experiment)


def test_an_encoder_that_takes_no_vectors_is_refused(tmp_path):
    from tests.support import siglip_folder

    folder = siglip_folder.write(tmp_path / "siglip", VOCABULARY, "Siglip")
    with pytest.raises(UserError, match=r"caris needs both; take one as BERT"):
        build_model(
            "caris",
            vocabulary=VOCABULARY,
            **PARTS | {"backbone": "test_convnext", "pretrained": False, "text": str(folder)},
        )
    assert find_class("caris").image_multiple == 32
