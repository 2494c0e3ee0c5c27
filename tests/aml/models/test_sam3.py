"""SAM 3: published sizes, transformers' own outputs, what trains, files and names."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from aml.errors import UserError
from aml.models.base import find_class
from aml.models.contract import check
from aml.models.options import Sam3Options, options
from aml.models.registry import build_model
from aml.models.sam3 import random_config
from tests.aml.models.test_models import SENTENCES, TINY, VOCABULARY, inputs
from tests.support import clip_folder

SIDE = 56
"""Side of a picture of 4 x 4 patches, two windows a side."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SAM 3 with its tokenizer, made for pictures of SIDE."""
    from transformers import Sam3Model

    tokenizer = clip_folder.tokenizer()
    config = random_config(Sam3Options(**TINY["sam3"]), len(tokenizer))
    config.image_size = SIDE
    out = tmp_path_factory.mktemp("sam3") / "folder"
    torch.manual_seed(1)
    clip_folder.shake(Sam3Model(config)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def read(folder):
    torch.manual_seed(0)
    return build_model("sam3", vocabulary=VOCABULARY, weights=str(folder), max_tokens=24).eval()


def count(module, trained=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def test_published_sizes_and_cost():
    """Count what the configuration that transformers ships for facebook/sam3 holds."""
    from transformers import Sam3Config

    published, ours = (
        json.loads(config.to_json_string(use_diff=False))
        for config in (Sam3Config(), random_config(Sam3Options(), 49408))
    )
    differ = {"image_size", "projection_dim", "pad_token_id", "bos_token_id", "eos_token_id"}
    for part in ("vision_config", "text_config", "detr_encoder_config", "mask_decoder_config"):
        a, b = (c[part].get("backbone_config", c[part]) for c in (ours, published))
        assert {k for k in b if a[k] != b[k]} <= differ
    assets = {"config": published, "tokenizer": clip_folder.pieces()}
    with torch.device("meta"):
        model = build_model("sam3", vocabulary=VOCABULARY, assets=assets).eval()
        tokens, mask = (t.to("meta") for t in model.tokenise(SENTENCES[:1]))
        x = torch.empty(1, 3, 1008, 1008)
        with FlopCounterMode(display=False) as encoding:
            maps = model.encode(x)
        with FlopCounterMode(display=False) as decoding:
            logits = model.decode(maps, tokens, mask)
    assert (count(model.vision), count(model.text)) == (453_186_304, 352_937_984)
    assert count(model, trained=True) == 11_180_033
    assert logits.shape == (1, 288, 288) and tokens.shape == (1, 32)
    assert encoding.get_total_flops() / 2 == pytest.approx(2806e9, rel=0.01)
    assert decoding.get_total_flops() / 2 == pytest.approx(199.6e9, rel=0.01)


@pytest.mark.parametrize("prefix", ["", "detector_model."], ids=["sam3", "sam3_video"])
def test_the_outputs_of_transformers(folder, tmp_path, prefix):
    """Also from the files of facebook/sam3, whose configuration is the video model's."""
    from transformers import AutoTokenizer, Sam3Model

    place = folder
    if prefix:
        place = tmp_path / "video"
        shutil.copytree(folder, place)
        weights = load_file(place / "model.safetensors")
        weights = {prefix + name: t for name, t in weights.items()}
        weights["tracker_model.some.weight"] = torch.zeros(2)
        save_file(weights, place / "model.safetensors", {"format": "pt"})
        inner = json.loads((folder / "config.json").read_text())
        (place / "config.json").write_text(
            json.dumps({"model_type": "sam3_video", "detector_config": inner})
        )
    model, tokenizer = read(place), AutoTokenizer.from_pretrained(folder)
    theirs = Sam3Model.from_pretrained(folder).eval()
    x, tokens, mask = inputs(model, SIDE, SIDE)
    given = tokenizer(
        SENTENCES, padding="max_length", max_length=24, truncation=True, return_tensors="pt"
    )
    assert torch.equal(given.input_ids[mask], tokens[mask])
    with torch.no_grad():
        expected = theirs(**given, pixel_values=x).semantic_seg[:, 0]
        assert torch.allclose(model(x, tokens, mask), expected, atol=1e-4 * expected.std())
    assert expected.std(0).mean() > 1e-3 * expected.std(), "the sentence is read"


def test_the_joint_source_is_what_the_first_layer_multiplies(folder):
    model = read(folder)
    x, tokens, mask = inputs(model, SIDE, 2 * SIDE)
    seen = {}
    first = model.joint.layers[0].cross_attn
    for name in ("q_proj", "k_proj"):
        getattr(first, name).register_forward_hook(
            lambda _, __, out, name=name: seen.setdefault(name, []).append(out)
        )
    with torch.no_grad():
        model(x, tokens, mask)
        joint, encoder = (model.features(x, tokens, mask, at) for at in ("joint", "encoder"))
    assert torch.equal(joint.visual.flatten(2).mT, seen["q_proj"][0])
    assert torch.equal(joint.text, seen["k_proj"][0])
    assert joint.visual.shape == encoder.visual.shape == (3, 32, 4, 8)
    assert not torch.equal(joint.visual, encoder.visual)


@pytest.mark.parametrize("how", ["frozen", "trained"])
def test_what_trains(how):
    model = build_model("sam3", vocabulary=VOCABULARY, **TINY["sam3"], vision=how, text="frozen")
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    behind = {"text_projection", "joint", "prompt_norm", "prompt_attention", "pixels", "semantic"}
    assert trained == behind | ({"vision"} if how == "trained" else set())
    assert model.encoders == (("vision.",) if how == "trained" else ())
    model.train()
    assert model.vision.training == (how == "trained")
    assert model.joint.training and not any(m.training for m in model.text.modules())
    assert check("sam3", **TINY["sam3"], vision=how, text="trained") == []


def test_the_decoder_alone_learns_which_side_a_sentence_means():
    torch.manual_seed(0)
    model = build_model("sam3", vocabulary=VOCABULARY, **TINY["sam3"] | {"dropout": 0.0}).train()
    image = torch.full((2, 3, SIDE, SIDE), 40, dtype=torch.uint8)
    image[:, :, 14:42] = 220
    truth = torch.zeros(2, 16, 16)
    truth[0, 4:12, :8] = truth[1, 4:12, 8:] = 1
    x, words = model.normalise(image), model.tokenise(["left square", "right square"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(40):
        logits = model(x, *words)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, truth).backward()
        optimizer.step()
    found = logits > 0
    overlap = (found & (truth > 0)).sum((1, 2)) / (found | (truth > 0)).sum((1, 2))
    assert overlap.min() > 0.8


def test_lora_trains_matrices_beside_frozen_encoders_and_is_in_the_checkpoint():
    pytest.importorskip("peft", reason="peft is not installed (the extra lora)")
    given = TINY["sam3"] | {"vision": "lora", "text": "lora", "lora_rank": 2}
    torch.manual_seed(0)
    plain = build_model("sam3", vocabulary=VOCABULARY, **TINY["sam3"]).eval()
    torch.manual_seed(0)
    model = build_model("sam3", vocabulary=VOCABULARY, **given).eval()
    x = inputs(model)
    with torch.no_grad():
        assert torch.equal(model(*x), plain(*x)), "untrained matrices add nothing"
    added = [p for n, p in model.named_parameters() if "lora_" in n]
    layers = TINY["sam3"]["layers"] + TINY["sam3"]["text_layers"]
    assert sum(p.numel() for p in added) == layers * 2 * (32 * 2 + 2 * 32)
    assert count(model, trained=True) == count(plain, trained=True) + sum(map(torch.numel, added))
    optimizer = torch.optim.SGD(added, lr=1.0)
    model(*x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.allclose(model(*x), plain(*x), atol=1e-4)
    assert check("sam3", **given) == []


def test_without_peft_lora_is_refused(monkeypatch):
    monkeypatch.setattr("aml.models.sam3.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"peft is not installed; install the extra lora"):
        build_model("sam3", vocabulary=VOCABULARY, **TINY["sam3"], text="lora")
    with pytest.raises(UserError, match="peft is not installed"):
        find_class("sam3").traits(options("sam3", vision="lora"))


def test_a_folder_is_read_once_and_not_needed_after(folder, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    model = read(place)
    shutil.rmtree(place)
    assets = json.loads(json.dumps(model.assets))
    again = build_model("sam3", vocabulary=VOCABULARY, assets=assets, weights="gone", max_tokens=24)
    again.load_state_dict(model.state_dict())
    x = inputs(model, SIDE, 2 * SIDE)
    with torch.no_grad():
        assert torch.equal(again.eval()(*x), model(*x))
    with pytest.raises(UserError, match=r"model\.weights .* cannot be had"):
        read(place)


def test_another_kind_of_model_and_a_lack_of_weights_are_refused(folder, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    weights = load_file(place / "model.safetensors")
    del weights["mask_decoder.semantic_projection.weight"]
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights, first mask_decoder.semantic_projection"):
        read(place)
    (place / "config.json").write_text('{"model_type": "sam2"}')
    with pytest.raises(UserError, match="holds a model of type 'sam2', but sam3 or sam3_video is"):
        read(place)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"layers": 6}, "must be a multiple of 4"),
        ({"reduce": 36}, "of 8; change them"),
        ({"heads": 3}, "must be a multiple of 4 times"),
        ({"max_tokens": 33}, "3 .* to 32 tokens"),
        ({"lora_rank": 0}, r"whole number in \[1"),
        ({"vision": "half"}, "known: frozen, lora, trained"),
    ],
)
def test_refused_options(given, words):
    with pytest.raises(UserError, match=words):
        build_model("sam3", vocabulary=VOCABULARY, **TINY["sam3"] | given)


def test_an_image_of_another_size_is_refused(folder):
    model = read(folder)
    with pytest.raises(UserError, match="an image of 60 x 56: model sam3 takes multiples of 14"):
        model(torch.zeros(1, 3, 60, 56), *model.tokenise(["red"]))


def test_mixed_precision_and_one_graph(folder):
    model = read(folder)
    x, tokens, mask = inputs(model, SIDE, SIDE)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x, tokens, mask).float()
        logits = model(x, tokens, mask)
        assert (rough - logits).abs().mean() < 0.1 * logits.std()
        compiled = torch.compile(model, backend="eager", fullgraph=True)(x, tokens, mask)
        assert torch.allclose(compiled, logits, atol=1e-4 * logits.std())
