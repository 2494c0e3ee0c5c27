"""CLIPSeg: published sizes, transformers' own outputs, what trains, files and names."""

import json
import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aml.errors import UserError
from aml.models.options import options
from aml.models.registry import build_model
from tests.aml.models.test_models import SENTENCES, TINY, VOCABULARY, inputs
from tests.support import clip_folder


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return clip_folder.shake(
        build_model("clipseg", vocabulary=VOCABULARY, **TINY["clipseg"])
    ).eval()


@pytest.fixture(scope="module", params=[False, True], ids=["eos id", "legacy eos id"])
def folder(request, tmp_path_factory):
    """A tiny CLIPSeg as CIDAS publishes them: model, tokenizer, nothing else."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    torch.manual_seed(1)
    tokenizer = clip_folder.tokenizer()
    config = CLIPSegConfig(
        **clip_folder.sizes(tokenizer, legacy=request.param),
        projection_dim=24,
        reduce_dim=16,
        decoder_intermediate_size=32,
        extract_layers=[0, 1],
        use_complex_transposed_convolution=True,
    )
    out = tmp_path_factory.mktemp("clipseg") / "folder"
    clip_folder.shake(CLIPSegForImageSegmentation(config)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def test_published_sizes():
    with torch.device("meta"):
        model = build_model(
            "clipseg", vocabulary=[f"word{i}" for i in range(49403)], weights="words"
        ).eval()
        x = torch.empty(2, 3, 352, 352)
        tokens, mask = (t.to("meta") for t in model.tokenise(SENTENCES[:2]))
        with FlopCounterMode(display=False) as flops:
            logits = model(x, tokens, mask)
    assert sum(p.numel() for p in model.clip.text_model.parameters()) == 63_165_952
    assert sum(p.numel() for p in model.clip.vision_model.parameters()) == 85_799_424
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_127_009
    assert logits.shape == (2, 352, 352) and tokens.shape == (2, 77)
    macs = flops.get_total_flops() / 2 / 2
    assert macs == pytest.approx(41.8e9, rel=0.01), (
        "a sample: ten of ViT-B/16's twelve layers at 485 places, text at 77 tokens"
    )


def test_the_published_count_is_that_of_transformers_default_sizes():
    """1,122,305: 32-pixel patches and one transposed convolution."""
    from transformers import CLIPSegConfig

    assets = {
        "config": json.loads(CLIPSegConfig().to_json_string(use_diff=False)),
        "tokenizer": clip_folder.pieces(),
    }
    with torch.device("meta"):
        model = build_model("clipseg", vocabulary=VOCABULARY, assets=assets)
    assert (
        sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_122_305
        and model.image_multiple == 32
    )


def test_the_outputs_of_transformers(folder):
    from transformers import AutoTokenizer, CLIPSegForImageSegmentation

    model = build_model("clipseg", vocabulary=VOCABULARY, weights=str(folder), max_tokens=24).eval()
    theirs, tokenizer = (
        CLIPSegForImageSegmentation.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    for side in (64, 96):
        x, tokens, mask = inputs(model, side, side)
        given = tokenizer(
            SENTENCES, padding="max_length", max_length=24, truncation=True, return_tensors="pt"
        )
        assert torch.equal(given.input_ids[mask], tokens[mask]) and torch.equal(
            given.attention_mask.bool(), mask
        )
        with torch.no_grad():
            expected = theirs(**given, pixel_values=x).logits
            assert (
                torch.allclose(model(x, tokens, mask), expected, atol=1e-4)
                and expected.std() > 1e-2
            )
            # CLIP's own comparison is that of the joint pair at the class token's and the end
            # token's place
            f = model.features(x, tokens, mask, "joint")
            pooled = theirs.clip.get_text_features(**given).pooler_output
            assert torch.allclose(f.text[f.pooled], pooled, atol=1e-4)


def test_pieces_are_words_and_the_end_is_pooled(folder):
    model = build_model("clipseg", vocabulary=VOCABULARY, weights=str(folder), max_tokens=8)
    tokens, mask = model.tokenise(["red", "Blue red", "cab", "red " * 20, ""])
    f = model.features(inputs(model)[0][:1].expand(5, -1, -1, -1), tokens, mask, "encoder")
    assert mask.sum(1).tolist() == [3, 4, 5, 8, 2] and f.words.sum(1).tolist() == [1, 2, 3, 6, 0]
    assert (tokens[f.pooled] == model.special_tokens[1]).all() and (
        tokens[:, 0] == model.special_tokens[0]
    ).all()
    assert model.mask_token is None


def test_an_image_of_any_shape_is_read_as_it_is(tiny):
    x, tokens, mask = inputs(tiny, 48, 80)
    changed = x.clone()
    changed[:, :, 16:32, 64:] *= -1
    with torch.no_grad():
        assert tiny(x, tokens, mask).shape == (3, 48, 80)
        first, other = (tiny.encode(image)[0] for image in (x, changed))
    moved = (first - other).square().sum(1).flatten(1)
    assert moved.shape == (3, 3 * 5) and moved.argmax(1).tolist() == [1 * 5 + 4] * 3, (
        "row 1, column 4"
    )


def test_only_the_decoder_trains(tiny):
    model = build_model("clipseg", vocabulary=VOCABULARY, **TINY["clipseg"])
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"decoder"}
    assert not any(p.requires_grad for p in model.clip.parameters())
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.train()
    assert model.decoder.training and not any(m.training for m in model.clip.modules())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(*inputs(model)).square().mean().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(n.startswith("decoder.") for n in moved)
    assert {n for n, p in model.named_parameters() if p.requires_grad} - moved == set()


def test_a_picture_is_encoded_once_for_all_its_sentences(tiny):
    x, tokens, mask = inputs(tiny)
    with torch.no_grad():
        maps = [m[:1].expand(3, -1, -1, -1) for m in tiny.encode(x[:1])]
        assert torch.allclose(
            tiny.decode(maps, tokens, mask),
            tiny(x[:1].expand(3, -1, -1, -1), tokens, mask),
            atol=1e-5,
        )


def test_hiding_patches_leaves_the_class_token_whole(tiny):
    x, tokens, mask = inputs(tiny)
    visible = torch.zeros(3, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        *patches, classes = tiny.encode(x)
        nothing = tiny.decode([*(torch.zeros_like(p) for p in patches), classes], tokens, mask)
        assert torch.equal(tiny(x, tokens, mask, visible), nothing)
        assert classes.shape == (3, 3 * 32, 1, 1) and not torch.allclose(nothing[0], nothing[1])


def test_features(tiny):
    x, tokens, mask = inputs(tiny, 96, 64)
    encoder, joint = (tiny.features(x, tokens, mask, source) for source in ("encoder", "joint"))
    assert encoder.visual.shape == (3, 32, 6, 4) and encoder.text.shape == (3, 77, 32)
    assert joint.visual.shape == (3, 24, 6, 4) and joint.text.shape == (3, 77, 24)
    assert torch.equal(tiny.encode(x)[2], encoder.visual)


def test_a_folder_is_read_once_and_not_needed_after(folder, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    model = build_model("clipseg", vocabulary=VOCABULARY, weights=str(place), max_tokens=24).eval()
    shutil.rmtree(place)
    again = build_model(
        "clipseg",
        vocabulary=VOCABULARY,
        assets=json.loads(json.dumps(model.assets)),
        weights=str(place),
        max_tokens=24,
    ).eval()
    again.load_state_dict(model.state_dict())
    x = inputs(model)
    assert torch.equal(again(*inputs(again)), model(*x)) and all(
        torch.equal(a, b) for a, b in zip(inputs(again), x, strict=True)
    )
    with pytest.raises(UserError, match=r"model\.weights .* cannot be had"):
        build_model("clipseg", vocabulary=VOCABULARY, weights=str(place))


def test_a_name_out_of_reach_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError,
        match=r"model\.weights 'nobody/no-such-model': .* a local folder in Hugging .* words",
    ) as e:
        build_model("clipseg", vocabulary=VOCABULARY, weights="nobody/no-such-model")
    assert "\n" not in str(e.value)


def test_another_kind_of_model_is_refused(tmp_path):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    clip_folder.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a model of type 'bert', but clipseg is wanted"):
        build_model("clipseg", vocabulary=VOCABULARY, weights=str(tmp_path))


def test_mixed_precision_and_one_graph(tiny):
    x, tokens, mask = inputs(tiny)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            rough = tiny(x, tokens, mask).float()
        logits = tiny(x, tokens, mask)
        assert (rough - logits).abs().mean() < 0.1 * logits.std()
        assert torch.allclose(
            torch.compile(tiny, backend="eager", fullgraph=True)(x, tokens, mask), logits, atol=1e-5
        )


@pytest.mark.parametrize(
    "given, words",
    [
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"heads": 5}, "must be multiples"),
        ({"reduce": 18}, "must be multiples"),
        ({"extract": [4]}, "layers from 0 to 3"),
        ({"extract": []}, "a list of at least one"),
        ({"size": 8}, "at least 16"),
        ({"max_tokens": 78}, "3 .* to 77 tokens"),
        ({"max_tokens": 2}, r"whole number in \[3"),
    ],
)
def test_refused_options(given, words):
    with pytest.raises(UserError, match=words):
        build_model("clipseg", vocabulary=VOCABULARY, **TINY["clipseg"] | given)


def test_sizes_are_read_for_random_weights_only():
    assert options("clipseg", heads=5).heads == 5


def test_an_image_of_another_size_is_refused(tiny):
    with pytest.raises(UserError, match="an image of 60 x 64: model clipseg takes multiples of 16"):
        tiny(torch.zeros(1, 3, 60, 64), *tiny.tokenise(["red"]))
