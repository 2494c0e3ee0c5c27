"""CARIS and the encoders it shares with LAVT: published sizes and operations, weights and tokens
from files, what alignment is read from.
"""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer, GPT2Config

from aml.errors import UserError
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.models.decoders import caris as caris_decoder
from aml.models.encoders import bert, swin as swin_module
from aml.models.options import options
from aml.models.registry import build_model
from tests.aml.models.test_models import SENTENCES, TINY, VOCABULARY, inputs

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "left",
    "red",
    "cir",
    "##cle",
    "blue",
    "right",
    "square",
    "the",
    "of",
]


def tiny(**changes):
    torch.manual_seed(0)
    return build_model("caris", vocabulary=VOCABULARY, **TINY["caris"] | changes).eval()


def tiny_again(model):
    """Return a model as its checkpoint builds it, from its options and assets as JSON."""
    spec, assets = dict(model.spec), json.loads(json.dumps(model.assets))
    return build_model(spec.pop("name"), vocabulary=model.vocabulary, assets=assets, **spec)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A small BERT in the format of the hub, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(PIECES),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def big_bert():
    """Assets of bert-base-uncased's size with a tokenizer of eight words."""
    return {"bert": BertConfig().to_dict(), "tokenizer": bert.word_tokenizer(VOCABULARY).to_str()}


# ---- published sizes


@pytest.mark.parametrize(
    "size, window, count, channels",
    [
        ("swin_tiny", 7, 27_517_818, 96),
        ("swin_base", 7, 86_741_176, 128),
        ("swin_base", 12, 86_876_536, 128),
    ],
)
def test_parameters_of_swin(size, window, count, channels):
    with torch.device("meta"):
        swin = swin_module.Swin(size, window, 0.3, False)
    assert sum(p.numel() for p in swin.body.parameters()) == count
    assert swin.channels == [channels * 2**i for i in range(4)]


def test_parameters_shapes_and_operations_of_the_published_size():
    with torch.device("meta"):
        model = build_model("caris", vocabulary=VOCABULARY, assets=big_bert()).eval()
        x, tokens, mask = (
            torch.empty(1, 3, 448, 448),
            torch.zeros(1, 20, dtype=torch.int64),
            torch.ones(1, 20, dtype=torch.bool),
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            logits = model(x, tokens, mask)
        with FlopCounterMode(display=False) as early, torch.no_grad():
            features = model.features(x, tokens, mask, "encoder")
            joint = model.features(x, tokens, mask, "joint")
    count = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    # Swin-B with its four stage norms, BERT-base without pooler
    assert count == {
        "normalise": 0,
        "text": 108_891_648,
        "visual": 86_741_176 + 3_840,
        "prompts": 2_760_960,
        "decoder": 28_175_040,
    }
    assert logits.shape == (1, 448, 448)
    assert features.visual.shape == (1, 1024, 14, 14) and features.text.shape == (1, 20, 768)
    assert joint.visual.shape == (1, 1024, 28, 28) and joint.text.shape == (1, 20, 1024)
    giga = {
        name.removeprefix("Caris."): sum(flops.values()) / 2e9
        for name, flops in counter.get_flop_counts().items()
    }
    text = giga["Global"] - giga["visual"] - giga["decoder"] - giga["prompts"]
    assert (giga["visual"], giga["decoder"], text) == pytest.approx((61.7, 57.5, 2.1), abs=0.05)
    assert early.get_total_flops() / 2e9 < 2 * (61.8 + 2.2) + 1, (
        "alignment runs none of the decoder's six layers"
    )


def test_what_stage_1_adds_to_a_step_of_the_published_size():
    """A step is a forward and a backward of twice its FLOPs; stage 1 is one forward, at the
    preset's scale and depth.
    """
    with torch.device("meta"):
        model = build_model("caris", vocabulary=VOCABULARY, assets=big_bert()).eval()
        x, tokens, mask = (
            torch.empty(1, 3, 448, 448),
            torch.zeros(1, 20, dtype=torch.int64),
            torch.ones(1, 20, dtype=torch.bool),
        )

    def flops(source: str, size: int):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            seen = torch.empty(1, 3, size, size, device="meta")
            model(seen, tokens, mask) if source == "prediction" else model.features(
                seen, tokens, mask, source
            )
        return counter.get_total_flops()

    step = 3 * flops("prediction", 448)
    for name, most in (("calibrated", 1.06), ("paper", 1.19)):
        masker = Masker(preset(name), model=model, image_size=448)
        assert (
            1 + flops(masker.config.source, masker.stage1.shrink(model, x).shape[2]) / step <= most
        ), name


# ---- Swin ----------------------------------------------------------------------------------------


def test_swin_is_timms_where_whole_windows_fit(model):
    x = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    body = timm.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True,
        strict_img_size=False,
        always_partition=True,
        window_size=2,
        **swin_module.SWINS["swin_test"][1],
    ).eval()
    swin = tiny(window=2).visual
    body.load_state_dict(swin.body.state_dict())
    with torch.no_grad():
        maps = swin(x)
        assert [m.shape[1:] for m in maps] == [(16, 16, 8), (32, 8, 4), (64, 4, 2), (128, 2, 1)]
        for i, theirs in enumerate(body(x)[:3]):  # the last map, 2 x 1, holds no whole window
            assert torch.allclose(maps[i], swin.out(i, theirs), atol=1e-5)


def test_maps_are_padded_before_windows_are_shifted(model):
    """Windows of 4 shifted by 2 on a 5 x 5 map padded to 8 x 8: rows and columns 0 and 1 see
    themselves, 2 to 4 each other and padding.

    timm pads after the shift: there 0 shares a window with 2 to 4.
    """
    block = model.visual.body["layers_1"].blocks[1]
    assert block.shift_size == (2, 2)
    y = torch.randn(1, 5, 5, 32, generator=torch.Generator().manual_seed(1))
    moved = y.clone()
    moved[:, 4, 4] = -moved[:, 4, 4]
    with torch.no_grad():
        changed = (
            swin_module.swin_block(block, moved) - swin_module.swin_block(block, y)
        ).abs().amax(3)[0] > 1e-6
        timms = (block(moved) - block(y)).abs().amax(3)[0] > 1e-6
    assert changed.tolist() == [[row > 1 and column > 1 for column in range(5)] for row in range(5)]
    assert timms[0, 0]


def original(body, **extra) -> dict:
    """A state as Swin's authors save it: halving layers at the end of a stage, index tables, a
    classifier.
    """
    state = {}
    for name, value in body.state_dict().items():
        stage, _, rest = name.partition(".")
        number = int(stage[-1]) if stage.startswith("layers") else None
        if rest.startswith("downsample"):
            number -= 1
        state[name if number is None else f"layers.{number}.{rest}"] = value
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
    return {
        "model": state
        | {
            "norm.weight": torch.ones(128),
            "head.weight": torch.ones(5, 128),
            "head.bias": torch.ones(5),
        }
        | extra
    }


def test_weights_of_swin_from_the_original_file(model, tmp_path):
    torch.save(original(model.visual.body), tmp_path / "swin.pth")
    torch.manual_seed(5)
    again = build_model(
        "caris", vocabulary=VOCABULARY, **TINY["caris"] | {"pretrained": str(tmp_path / "swin.pth")}
    )
    assert not torch.equal(again.decoder.background, model.decoder.background)
    for name, value in model.visual.body.state_dict().items():
        assert torch.equal(again.visual.body.state_dict()[name], value), name
    timms = timm.create_model(
        "swin_tiny_patch4_window7_224",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "swin.pth"), "num_classes": 5},
        features_only=True,
        window_size=4,
        always_partition=True,
        **swin_module.SWINS["swin_test"][1],
    )
    assert all(
        torch.equal(timms.state_dict()[name], value)
        for name, value in again.visual.body.state_dict().items()
    )
    torch.save(
        {n.replace("layers_", "layers."): v for n, v in model.visual.body.state_dict().items()},
        tmp_path / "timm.pth",
    )
    third = tiny(pretrained=str(tmp_path / "timm.pth"))
    assert torch.equal(
        third.visual.body["layers_2"].downsample.reduction.weight,
        model.visual.body["layers_2"].downsample.reduction.weight,
    )


def test_tables_of_another_window_are_interpolated(model, tmp_path):
    torch.save(original(model.visual.body), tmp_path / "swin.pth")
    wider = (
        tiny(window=6, pretrained=str(tmp_path / "swin.pth")).visual.body["layers_0"].blocks[0].attn
    )
    table = model.visual.body["layers_0"].blocks[0].attn.relative_position_bias_table
    assert wider.relative_position_bias_table.shape == (11 * 11, 1)
    assert torch.allclose(
        wider.relative_position_bias_table.view(11, 11)[5, 5], table.view(7, 7)[3, 3]
    )
    assert (
        table.min() <= wider.relative_position_bias_table.min()
        and wider.relative_position_bias_table.max() <= table.max()
    )


def test_refused_weights_of_swin(model, tmp_path):
    path = tmp_path / "swin.pth"
    with pytest.raises(
        UserError, match=r"swin\.pth cannot be read \(FileNotFoundError\); give the \.pth"
    ):
        tiny(pretrained=str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"swin\.pth cannot be read"):
        tiny(pretrained=str(path))
    lacking = original(model.visual.body)
    del lacking["model"]["layers.1.downsample.norm.weight"]
    torch.save(lacking, path)
    with pytest.raises(
        UserError, match=r"hold no layers\.1\.downsample\.norm\.weight; set model\.backbone"
    ):
        tiny(pretrained=str(path))
    torch.save(original(model.visual.body, **{"patch_embed.norm.weight": torch.ones(96)}), path)
    with pytest.raises(
        UserError, match=r"patch_embed\.norm\.weight of shape \(96,\), but the model's is \(16,\)"
    ):
        tiny(pretrained=str(path))
    with pytest.raises(
        UserError, match=r"swin_test has no published weights; set model\.pretrained to false"
    ):
        tiny(pretrained=True)


def test_hub_weights_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with (
        torch.device("meta"),
        pytest.raises(
            UserError,
            match=r"swin_tiny_patch4_window7_224\.ms_in22k cannot be fetched .* model\.pretrained",
        ),
    ):
        tiny(backbone="swin_tiny", pretrained=True)
    with pytest.raises(
        UserError,
        match=r"model\.text 'nobody/no-bert': the configuration cannot be had .* a local folder",
    ):
        tiny(text="nobody/no-bert")


# ---- BERT ----------------------------------------------------------------------------------------


def test_a_bert_from_a_folder(bert_folder):
    model = tiny(text=str(bert_folder), text_width=768)
    weights = BertModel.from_pretrained(bert_folder).state_dict()
    for name, value in model.text.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert model.text.config.hidden_size == 32 and model.text.pooler is None
    assert model.mask_token == 4 and model.special_tokens == (0, 2, 3, 4)
    tokens, mask = model.tokenise(["Left red circle!", " ".join(["red"] * 30)])
    assert tokens[0].tolist() == [2, 5, 6, 7, 8, 1, 3] + [0] * 5 and mask.sum(1).tolist() == [7, 12]
    assert (
        tokens[0, :7].tolist()
        == AutoTokenizer.from_pretrained(bert_folder)("Left red circle!")["input_ids"]
    )
    assert tokens[1].tolist() == [2] + [6] * 11, (
        "cut like the published code does it, [SEP] and all"
    )
    with torch.no_grad():
        f = model.features(
            model.normalise(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)), tokens, mask, "encoder"
        )
    assert f.words.sum(1).tolist() == [5, 11] and f.pooled[:, 0].all()


def test_a_bert_saved_in_half_precision_is_read_in_full(bert_folder, tmp_path):
    model, tokenizer = BertModel.from_pretrained(bert_folder), BertTokenizer
    model.half().save_pretrained(tmp_path)
    tokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    text = tiny(text=str(tmp_path)).text
    assert {p.dtype for p in text.parameters()} == {torch.float32}
    weights = model.state_dict()
    assert all(torch.equal(p, weights[name].float()) for name, p in text.named_parameters())
    fresh = dict(BertModel(model.config, add_pooling_layer=False).named_buffers())
    assert fresh and all(torch.equal(b, fresh[name]) for name, b in text.named_buffers())


def test_a_bert_that_lacks_weights_is_refused(bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"lacks 1 weights, first encoder\.layer\.1\.output\.dense\.bias"
    ):
        tiny(text=str(tmp_path))


def test_tokens_are_the_same_from_the_folder_and_from_the_checkpoint(bert_folder):
    model = tiny(text=str(bert_folder))
    again = tiny_again(model)
    odd = ["2nd circle", "Rèd CIRCLE", "左 red", "red-circle,left", "  red \t circle ", "🦒 left"]
    ids, mask = model.tokenise(odd)
    assert torch.equal(ids, again.tokenise(odd)[0])
    plain = AutoTokenizer.from_pretrained(bert_folder)
    for sentence, row, used in zip(odd, ids, mask, strict=True):
        assert row[used].tolist() == plain(sentence)["input_ids"]


def test_a_model_with_a_bert_is_rebuilt_without_its_folder(bert_folder, tmp_path):
    folder, weights = tmp_path / "bert", tmp_path / "swin.pth"
    shutil.copytree(bert_folder, folder)
    torch.save(original(tiny().visual.body), weights)
    model = tiny(text=str(folder), pretrained=str(weights))
    x = inputs(model)
    shutil.rmtree(folder)
    weights.unlink()
    assert str(tmp_path) not in json.dumps(model.assets)
    again = tiny_again(model).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(*inputs(again)), model(*x))


def test_refused_texts(bert_folder, tmp_path):
    with pytest.raises(
        UserError,
        match=r"model\.text 'no/such/folder': the configuration cannot be had .* a local folder",
    ):
        tiny(text="no/such/folder")
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a gpt2, which is no text encoder"):
        tiny(text=str(tmp_path))
    with pytest.raises(UserError, match=r"model\.max_tokens is 20, but .* reads 16 tokens at most"):
        tiny(text=str(bert_folder), max_tokens=20)


def test_the_dropout_option_is_berts(bert_folder):
    for text in ("words", str(bert_folder)):
        config = tiny(text=text, dropout=0.25).text.config
        assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.25
    still = tiny(dropout=0.0, drop_path=0.0).train()
    moving = tiny(dropout=0.0, drop_path=0.9).train()
    x = inputs(still)
    with torch.no_grad():
        assert torch.equal(still(*x), still(*x)) and not torch.equal(moving(*x), moving(*x))


# ---- CARIS ---------------------------------------------------------------------------------------


def test_the_text_reads_the_picture_through_the_prompts(model):
    x, tokens, mask = inputs(model)
    with torch.no_grad():
        one, other = (
            model.features(image, tokens, mask, "encoder").text for image in (x, x.flip(0))
        )
        assert not torch.allclose(one, other, atol=1e-5) and one.shape == (3, 12, 32)
        assert model.prompts(model.encode(x)[3]).shape == (3, 5, 32)


def test_joint_is_what_the_first_attention_multiplies(model):
    x = inputs(model, 64, 96)
    seen = {}
    attend = model.decoder.layers[0].words_read
    hooks = [
        getattr(attend, n).register_forward_hook(lambda m, i, out, n=n: seen.__setitem__(n, out))
        for n in ("query", "key")
    ]
    with torch.no_grad():
        model(*x)
        queries, keys = seen["query"], seen["key"]
        f = model.features(*x, "joint")
    for hook in hooks:
        hook.remove()
    assert (
        keys.shape[1] == 2 * 3 + 4 * 6 + 8 * 12
        and queries.shape[1] == 12 + caris_decoder.BACKGROUND_PROMPTS
    )
    assert torch.allclose(f.visual.flatten(2).mT, keys[:, 6:30], atol=1e-5)
    assert torch.allclose(f.text, queries[:, :12], atol=1e-5)


@pytest.mark.parametrize("name", ["caris", "lavt"])
@pytest.mark.parametrize(
    "settings",
    [
        {"source": "encoder", "score": "cosine", "projection": "gaussian"},
        {"source": "joint", "score": "cosine"},
        {},
    ],
    ids=["encoder", "joint", "prediction"],
)
def test_masks_are_drawn_from_every_source(name, settings):
    torch.manual_seed(0)
    model = build_model(name, vocabulary=VOCABULARY, **TINY[name])
    masker = Masker(
        preset("calibrated", tau=0.5, rho=1.0, scale=1.0, **settings),
        model=model,
        image_size=128,
        seed=0,
    )
    mask = masker(model, *inputs(model, 128, 128), epoch=0, item=torch.arange(3))
    assert mask.alignment.informative.all() and mask.hidden.float().mean().item() == pytest.approx(
        0.5, abs=0.02
    )


def test_places_and_first_sampling_points():
    places = caris_decoder.sine_places(2, 4, 8, "cpu")[0].view(2, 4, 8)
    assert places[0, 0].tolist() == pytest.approx(
        [0, -1, 0.0314, 0.9995, 1, 0, 0.0157, 0.9999], abs=1e-3
    )  # y: half of 2 pi, x: a quarter
    grid = caris_decoder.Grid([(1, 2), (2, 2)], "cpu")
    assert grid.centres[0, :, 0].tolist() == [
        [0.25, 0.5],
        [0.75, 0.5],
        [0.25, 0.25],
        [0.75, 0.25],
        [0.25, 0.75],
        [0.75, 0.75],
    ]
    offsets = caris_decoder.deformable(32, 4).sampling_offsets.bias.view(4, 3, 4, 2)
    assert torch.allclose(
        offsets[1, 0], torch.tensor([[0.0, 1], [0, 2], [0, 3], [0, 4]]), atol=1e-5
    )


def test_half_precision_is_close_to_full(model):
    x = inputs(model)
    with torch.no_grad():
        exact = model(*x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(*x)
    assert rough.dtype == torch.float32 and (rough - exact).abs().max() < 0.1 * exact.std() + 0.02


def test_one_graph_without_branches_on_data(model):
    x = inputs(model)
    whole = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(whole(*x), model(*x))


def test_what_is_not_decayed():
    model = tiny()
    assert {
        "decoder.background",
        "prompts.learned",
        "text.embeddings.word_embeddings.weight",
    } <= set(model.no_decay)
    assert (
        "decoder.level" not in model.no_decay
        and sum(n.endswith(swin_module.TABLE) for n in model.no_decay) == 5
    )


@pytest.mark.parametrize(
    "given, words",
    [
        ({"pretrained": 3}, "must be true, false or the path"),
        ({"pretrained": ""}, "must be true, false or the path"),
        ({"text": None}, r"model\.text is None; it must be text"),
        ({"window": 1}, r"model\.window is 1"),
        ({"max_tokens": 2}, r"model\.max_tokens is 2; it must be a whole number in \[3"),
        ({"text_layers": 0}, r"model\.text_layers is 0"),
        ({"text_width": 100}, r"multiple of model\.text_heads 12"),
        ({"dropout": 1.0}, r"model\.dropout is 1\.0; .* in \[0, 1\)"),
        ({"drop_path": -0.1}, r"model\.drop_path is -0\.1"),
        ({"width": 100}, r"model\.width 100 .* multiples of model\.heads 8"),
        ({"inner": 1020}, r"model\.inner 1020"),
        ({"width": 48}, "above 32, of 32 as well"),
        ({"layers": 0}, r"model\.layers is 0"),
    ],
)
def test_refused_options(given, words):
    with pytest.raises(UserError, match=words):
        options("caris", **given)


def test_sentences_of_the_suite_fit_the_words_tokenizer(model):
    tokens, mask = model.tokenise(SENTENCES)
    assert tokens[0].tolist() == [2, 5, 6, 7, 3] + [0] * 7 and mask[0].sum() == 5
