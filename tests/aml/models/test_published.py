"""Published checkpoints: small files in their format and with their authors' names give the output
bits of the model they were made of.
"""

import itertools
import re
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from aml.errors import UserError
from aml.models.published import checkpoint as published, file, names
from aml.models.registry import build_model
from aml.training import checkpoint
from tests.aml.models.test_models import TINY, VOCABULARY, inputs

PAIR, LAYER = "{weight,bias}", "{key,query,value}"
BLOCKS = "layers.{0.blocks.0,1.blocks.0,1.blocks.1,2.blocks.0,3.blocks.0}"
BLOCK = [
    "attn.relative_position_bias_table",
    f"{{norm1,norm2,attn.qkv,attn.proj,mlp.fc1,mlp.fc2}}.{PAIR}",
]
SWIN = [
    f"patch_embed.{{proj,norm}}.{PAIR}",
    *(f"{BLOCKS}.{part}" for part in BLOCK),
    f"norm{{0,1,2,3}}.{PAIR}",
    "layers.{0,1,2}.downsample.{reduction.weight,norm.weight,norm.bias}",
]
BERT = [
    "embeddings.{word,position,token_type}_embeddings.weight",
    f"embeddings.LayerNorm.{PAIR}",
    f"encoder.layer.{{0,1}}.attention.self.{LAYER}.{PAIR}",
    f"encoder.layer.{{0,1}}.attention.output.{{dense,LayerNorm}}.{PAIR}",
    f"encoder.layer.{{0,1}}.intermediate.dense.{PAIR}",
    f"encoder.layer.{{0,1}}.output.{{dense,LayerNorm}}.{PAIR}",
]
DECODER = [
    f"input_convs.{{0,1,2}}.{{conv,gn}}.{PAIR}",
    "level_encoding.weight",
    f"{{lang_in_linear,lang_in_norm}}.{PAIR}",
    "vis_prompts.weight",
    "{lateral,output}_convs.0.{conv.weight,gn.weight,gn.bias}",
    f"{{mask_feature,lang_embed}}.{{0,2,4}}.{PAIR}",
    f"encoder.{{0,1}}.{{v2l_cross_attn,l2v_cross_attn,lang_self_attn}}.{{q,k,v,out}}_proj.{PAIR}",
    f"encoder.{{0,1}}.vis_self_attn.{{sampling_offsets,attention_weights,value_proj,output_proj}}.{PAIR}",
    f"encoder.{{0,1}}.{{vis,lang}}_mlp.{{fc1,fc2}}.{PAIR}",
    "encoder.{0,1}.gamma_{v2l,l2v}",
    f"encoder.{{0,1}}.{{v,l}}_norm{{1,2,3}}.{PAIR}",
]
CARIS = [
    *("backbone.vis_encoder." + name for name in SWIN),
    *("backbone.lang_encoder." + name for name in BERT),
    f"backbone.conditional_prompts.{{in,out}}_linears.{{0,1}}.{PAIR}",
    "backbone.conditional_prompts.lang_prompts.weight",
    f"backbone.conditional_prompts.lang_prompts_norm.{PAIR}",
    *("pixel_decoder." + name for name in DECODER),
]
FUSION = [
    "vis_project.0",
    "project_mm.0",
    *(f"image_lang_att.{part}.0" for part in ("f_key", "f_query", "f_value", "W")),
]
LAVT = [
    *("backbone." + name for name in SWIN),
    *("text_encoder." + name for name in BERT),
    *(f"backbone.layers.{{0,1,2,3}}.fusion.{name}.{PAIR}" for name in FUSION),
    "backbone.layers.{0,1,2}.res_gate.{0,2}.weight",
    "classifier.conv{1,2}_{4,3,2}.weight",
    "classifier.bn{1,2}_{4,3,2}.{weight,bias,running_mean,running_var}",
    f"classifier.conv1_1.{PAIR}",
]
"""Entries their scripts save for the sizes of TINY, beside those in `unused`."""


def expand(pattern: str) -> list[str]:
    parts = [p.split(",") for p in re.split(r"[{}]", pattern)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def make(name: str, seed: int = 0, **changes):
    """A model whose every parameter and statistic is away from its start."""
    torch.manual_seed(seed)
    model = build_model(name, vocabulary=VOCABULARY, **TINY[name] | changes).eval()
    with torch.no_grad():
        for value in (
            *model.parameters(),
            *(b for n, b in model.named_buffers() if "running" in n),
        ):
            value += 0.1 * torch.rand_like(value)
    return model


def unused(kind: str) -> dict:
    """Return the other tensors of the files, by their authors' names."""
    swin = "backbone." if kind == "LAVT" else "backbone.vis_encoder."
    more = {
        swin + "layers.0.blocks.0.attn.relative_position_index": torch.zeros(
            16, 16, dtype=torch.int64
        )
    }
    if kind == "LAVT":
        return more | {
            "backbone.layers.3.res_gate.0.weight": torch.ones(128, 128),
            "classifier.bn1_4.num_batches_tracked": torch.tensor(7),
        }
    mask_token = (
        {"backbone.vis_encoder.mask_token": torch.ones(1, 1, 16)} if kind == "MaskRIS" else {}
    )
    return more | mask_token | {"criterion.seg_criterion.weight": torch.tensor([0.9, 1.1])}


def authors(model, kind: str) -> dict:
    """The weights under the authors' names and in their shapes: 1 x 1 convolutions over a sequence,
    scales with leading ones.
    """
    state = {}
    for key, value in model.state_dict().items():
        if kind == "LAVT" and key.startswith("fusion.") and value.ndim == 2:
            value = value[..., None]
        state[names.NAME[model.name](key)] = value[None, None] if key.endswith("_scale") else value
    return state | unused(kind)


def write(path: Path, weights: dict, **entries) -> Path:
    """Write a file as torch.save does in the authors' training scripts."""
    layer = torch.nn.Linear(2, 2)
    layer(torch.ones(2)).sum().backward()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-4)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    rest = {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 3,
        "args": Namespace(lr=1e-4, swin_type="base"),
    }
    torch.save({"model": weights} | rest | entries, path)
    return path


def same(one, other) -> bool:
    with torch.no_grad():
        return torch.equal(one(*inputs(one)), other(*inputs(other)))


@pytest.mark.parametrize(
    "name, patterns, changes",
    [("caris", CARIS, {}), ("lavt", LAVT, {"norm": "batch_frozen"})],
    ids=["caris", "lavt"],
)
def test_names_are_the_authors(name, patterns, changes):
    ours = Counter(names.NAME[name](key) for key in make(name, **changes).state_dict())
    assert ours == Counter(itertools.chain.from_iterable(expand(p) for p in patterns))


@pytest.mark.parametrize("kind", ["CARIS", "MaskRIS"])
def test_caris_and_maskris(tmp_path, kind):
    model, other = make("caris"), make("caris", seed=1)
    assert not same(model, other)
    path = write(
        tmp_path / "model_best.pth",
        authors(model, kind),
        scaler={"scale": 65536.0, "growth_tracker": 5},
    )
    assert file.whose(file.read(path)) == kind
    published.load_published(other, path)
    assert same(model, other)


@pytest.mark.parametrize("under", ["model", "state_dict", "model_state_dict", ""])
def test_weights_may_lie_under_other_keys_or_be_the_whole_file(tmp_path, under):
    path = tmp_path / "x.pth"
    weights = {"module.a": torch.ones(2), "b": torch.zeros(1)}
    beside = {
        "best": np.float64(0.71),
        "epoch": np.int64(3),
        "ok": np.bool_(True),
        "path": Path("/x"),
        "args": Namespace(lr=np.float32(1)),
    }
    torch.save(beside | {under: weights} if under else weights, path)
    assert list(file.read(path)) == ["a", "b"]


@pytest.mark.parametrize("apart", [True, False], ids=["lavt", "lavt_one"])
def test_lavt(tmp_path, apart):
    model, other = make("lavt", norm="batch_frozen"), make("lavt", seed=1, norm="batch_frozen")
    weights = authors(model, "LAVT")
    bert = {
        name.removeprefix("text_encoder."): weights[name]
        for name in weights
        if name.startswith("text_encoder.")
    }
    bert["pooler.dense.weight"] = torch.ones(32, 32)
    if apart:
        weights = {
            name: value for name, value in weights.items() if not name.startswith("text_encoder.")
        }
    path = write(tmp_path / "refcoco.pth", weights, **({"bert_model": bert} if apart else {}))
    checkpoint.load_weights(other, path)
    assert same(model, other)


def test_each_is_for_its_own_model(tmp_path):
    path = write(tmp_path / "x.pth", authors(make("lavt", norm="batch_frozen"), "LAVT"))
    with pytest.raises(
        UserError,
        match=r"the LAVT weights .*x\.pth are for model lavt, not caris; set model\.name to lavt",
    ):
        published.load_published(make("caris"), path)
    with pytest.raises(
        UserError, match=r"were trained with batch normalisation; set model\.norm to batch_frozen"
    ):
        published.load_published(make("lavt"), path)
    with pytest.raises(UserError, match=r"are for model lavt, not small"):
        checkpoint.load_weights(
            build_model("small", vocabulary=VOCABULARY, width=32, stem=16, heads=2), path
        )


def test_what_does_not_fit_is_named(tmp_path):
    model = make("caris")
    weights = authors(model, "CARIS")
    path = write(tmp_path / "x.pth", weights)
    with pytest.raises(
        UserError,
        match=r"trained with windows of 4 places, but the model's have 6; set model\.window",
    ):
        published.convert(path, make("caris", window=6))
    with pytest.raises(
        UserError, match=r"hold no pixel_decoder\.encoder\.2\.gamma_v2l; use the sizes"
    ):
        published.convert(path, make("caris", layers=3))
    with pytest.raises(
        UserError,
        match=r"hold pixel_decoder\.encoder\.1\..* \(54 such\), which the model has no place for",
    ):
        published.convert(path, make("caris", layers=1))
    with pytest.raises(
        UserError,
        match=r"hold .*\.word_embeddings\.weight of shape \(13, 32\), but the model's is \(14",
    ):
        published.convert(
            path, build_model("caris", vocabulary=[*VOCABULARY, "zebra"], **TINY["caris"])
        )
    more = weights | {"aug.mix.weight": torch.ones(2), "aug.mix.bias": torch.ones(2)}
    with pytest.raises(
        UserError,
        match=r"hold aug\.mix\.bias \(2 such\), a part that CARIS as published does not have",
    ):
        published.convert(write(tmp_path / "more.pth", more), model)
    del weights["backbone.vis_encoder.layers.2.downsample.norm.bias"]
    with pytest.raises(
        UserError, match=r"hold no backbone\.vis_encoder\.layers\.2\.downsample\.norm\.bias"
    ):
        published.convert(write(path, weights), model)


class Foreign:
    """Any class a file might name."""


def test_nothing_but_plain_data_is_unpickled(tmp_path):
    path = write(tmp_path / "x.pth", authors(make("caris"), "CARIS"), more=Foreign())
    with pytest.raises(
        UserError,
        match=r"names .*test_published\.Foreign, .* nothing of it was run",
    ):
        file.read(path)


def test_files_that_are_no_published_checkpoint(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match=r"x\.pth cannot be read"):
        file.read(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"x\.pth cannot be read .*; get the \.pth again"):
        file.read(path)
    for other in ([1, 2], {"state_dict": {}}, {"model": {"a": 1}}, {"epoch": 3}):
        torch.save(other, path)
        with pytest.raises(UserError, match=r"holds no weights: .* under 'model', 'state_dict', "):
            file.read(path)
    path.write_bytes(b"\n<!DOCTYPE html><html><body>Sign in</body></html>")
    with pytest.raises(UserError, match=r"x\.pth is a web page, not a checkpoint") as caught:
        file.read(path)
    assert "weights_only" not in str(caught.value)
    for place in ("model", "state_dict", None):
        weights = {"head.weight": torch.ones(2)}
        torch.save({place: weights} if place else weights, path)
        with pytest.raises(
            UserError,
            match=r"is no checkpoint of CARIS, MaskRIS, LAVT, .* pixel_decoder\.vis_prompts\."
            r".* looked for, and 'head\.weight' \(1 in all\) was found",
        ):
            published.load_published(make("caris"), path)


def test_a_file_may_be_what_training_starts_from(tmp_path, monkeypatch):
    from orchestrator.cli.options import initial_weights

    path = write(tmp_path / "x.pth", {"a": torch.ones(1)})
    monkeypatch.chdir(tmp_path)
    assert initial_weights("x.pth") == path and initial_weights(None) is None
    with pytest.raises(UserError, match="not a folder"):
        initial_weights("y.pth")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Return a folder with the tokenizer of the models that `make` makes."""
    from transformers import PreTrainedTokenizerFast

    from aml.models.encoders.bert import word_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    words = word_tokenizer(VOCABULARY)
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["CARIS", "MaskRIS", "LAVT"])
def test_the_file_alone_says_which_model_it_is(tmp_path, tokenizer, kind):
    """Sizes are read off shapes; the folder made of the file is a checkpoint like others."""
    from aml.inference import Segmenter
    from orchestrator.tracking import resolve

    changes = {"text_heads": 1} | ({"norm": "batch_frozen"} if kind == "LAVT" else {"inner": 64})
    model = make(file.MODEL_OF[kind], **changes)
    path = write(tmp_path / "best.pth", authors(model, kind))
    found, about = published.open_published(path, str(tokenizer))
    assert same(model, found.eval())
    side = 480 if kind == "LAVT" else 448
    assert about["image_size"] == side and about["arm"] == f"published {kind}"
    folder = resolve.find_checkpoint(path, tmp_path / "runs", tokenizer=str(tokenizer))
    made = (folder / "config.json").stat().st_mtime_ns
    for again in (None, str(tokenizer)):
        assert resolve.find_checkpoint(path, tmp_path / "runs", tokenizer=again) == folder
        assert (folder / "config.json").stat().st_mtime_ns == made, "made once"
    segmenter = Segmenter.load(folder)
    assert segmenter.image_size == side and same(model, segmenter.model)


def test_another_tokenizer_makes_the_folder_anew(tmp_path, tokenizer):
    """The same word is another token then, so the model reads another sentence."""
    from transformers import PreTrainedTokenizerFast

    from aml.inference import Segmenter
    from aml.models.encoders.bert import word_tokenizer
    from orchestrator.tracking import resolve

    path = write(tmp_path / "best.pth", authors(make("caris", text_heads=1, inner=64), "CARIS"))
    other = word_tokenizer(VOCABULARY[::-1])
    PreTrainedTokenizerFast(tokenizer_object=other).save_pretrained(tmp_path / "other")
    found = []
    for folder in (tokenizer, tmp_path / "other", None):
        name = None if folder is None else str(folder)
        kept = resolve.find_checkpoint(path, tmp_path / "runs", tokenizer=name)
        found.append(Segmenter.load(kept).model.tokenise(["left"])[0][0, 1].item())
    assert found[0] != found[1] == found[2] == other.token_to_id("left")


def test_without_a_tokenizer_it_says_what_to_give(tmp_path):
    path = write(tmp_path / "best.pth", authors(make("caris", text_heads=1), "CARIS"))
    with pytest.raises(UserError, match=r"holds no tokenizer, .* as --tokenizer"):
        published.open_published(path, str(tmp_path / "none"))
