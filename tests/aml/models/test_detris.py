"""DETRIS-like: published sizes, what trains, what the adapters read, files and names."""

import json
import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aml.errors import UserError
from aml.models.registry import build_model
from tests.aml.models.test_models import SENTENCES, TINY, VOCABULARY, inputs
from tests.support import clip_folder


def numel(*modules) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture(scope="module")
def tiny():
    """The adapters start at zero output; here they have moved away from it."""
    torch.manual_seed(0)
    return clip_folder.shake(build_model("detris", vocabulary=VOCABULARY, **TINY["detris"])).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIP of picture and text, as OpenAI's are published."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(1)
    tokenizer = clip_folder.tokenizer()
    model = clip_folder.shake(
        CLIPModel(CLIPConfig(**clip_folder.sizes(tokenizer, legacy=True), projection_dim=24))
    )
    out = tmp_path_factory.mktemp("clip") / "folder"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def dinov2_weights(path, width=32, depth=4, side=37):
    """A state dict with the names of DINOv2's own files, positions for 518 pixels."""
    names = {
        "cls_token": (1, 1, width),
        "register_tokens": (1, 4, width),
        "mask_token": (1, width),
        "pos_embed": (1, 1 + side**2, width),
    }
    names |= {
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(depth):
        block = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }
        names |= {f"blocks.{i}.{n}.weight": shape for n, shape in block.items()} | {
            f"blocks.{i}.{n}.bias": shape[:1] for n, shape in block.items()
        }
        names |= {
            f"blocks.{i}.{n}": (width,)
            for n in (
                "norm1.weight",
                "norm1.bias",
                "norm2.weight",
                "norm2.bias",
                "ls1.gamma",
                "ls2.gamma",
            )
        }
    generator = torch.Generator().manual_seed(2)
    state = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in names.items()}
    torch.save(state, path)
    return state


@pytest.fixture(scope="module")
def published():
    """DETRIS-B at 448 on the meta device, its forward pass counted."""
    with torch.device("meta"):
        model = build_model(
            "detris", vocabulary=[f"word{i}" for i in range(49403)], text="words", pretrained=False
        ).eval()
        tokens, mask = (t.to("meta") for t in model.tokenise(SENTENCES[:2]))
        with FlopCounterMode(display=False) as flops:
            logits = model(torch.empty(2, 3, 448, 448), tokens, mask)
    return model, logits, flops.get_total_flops() / 2 / 2


def test_published_sizes(published):
    model, logits, macs = published
    assert numel(model.visual) == 86_317_056
    assert (
        numel(model.text.text_model) == 63_165_952
        and numel(model.text.text_projection) == 512 * 512
    )
    adapters = numel(model.visual_adapters, model.text_adapters)
    assert adapters / (86_317_056 + 63_165_952) == pytest.approx(0.018, abs=0.0005), (
        "published: 1.8 % of the backbones"
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (adapters, trained) == (2_710_800, 22_886_673)
    assert list(model.visual_adapters) == list(model.text_adapters) == [
        "1",
        "3",
        "5",
        "7",
        "9",
        "11",
    ] and model.levels == (4, 8)
    assert logits.shape == (2, 128, 128), "four times the 32 x 32 patches"
    assert macs == pytest.approx(156.3e9, rel=0.01)


def test_the_large_one_has_its_adapters_where_published():
    with torch.device("meta"):
        model = build_model(
            "detris",
            vocabulary=VOCABULARY,
            text="words",
            pretrained=False,
            backbone="vit_large_patch14_reg4_dinov2",
            adapter_every=4,
        )
    assert list(model.visual_adapters) == ["2", "6", "10", "14", "18", "22"] and model.levels == (
        8,
        16,
    )


def test_only_adapters_neck_and_decoder_train():
    torch.manual_seed(0)
    model = build_model(
        "detris",
        vocabulary=VOCABULARY,
        **TINY["detris"] | {"visual_adapter": 64, "text_adapter": 64},
    )
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in trained} == {
        "visual_adapters",
        "text_adapters",
        "neck",
        "decoder",
        "norm",
        "head",
    }
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.train()
    assert model.head.training and not any(
        m.training for part in (model.visual, model.text) for m in part.modules()
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(
        2
    ):  # in the first step only the adapters' last map, which starts at zero, learns
        optimizer.zero_grad()
        model(*inputs(model)).square().mean().backward()
        optimizer.step()
    still = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert still == set(before) - trained


def test_training_starts_from_the_frozen_encoders(folder, tmp_path):
    """Before the first step the patches are timm's own and the sentence is transformers' own."""
    from transformers import AutoTokenizer, CLIPModel

    state = dinov2_weights(tmp_path / "dinov2.pth")
    sizes = TINY["detris"] | {
        "text": str(folder),
        "pretrained": str(tmp_path / "dinov2.pth"),
        "max_tokens": 12,
        "size": 518,
    }
    model = build_model("detris", vocabulary=VOCABULARY, **sizes).eval()
    assert torch.equal(model.visual.reg_token, state["register_tokens"]) and torch.equal(
        model.visual.blocks[3].ls2.gamma, state["blocks.3.ls2.gamma"]
    )
    assert torch.allclose(model.visual.pos_embed, state["pos_embed"][:, 1:])
    x, tokens, mask = inputs(model, 70, 98)
    given = AutoTokenizer.from_pretrained(folder)(
        SENTENCES, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        f = model.features(x, tokens, mask, "encoder")
        assert torch.allclose(
            f.visual.flatten(2).mT, model.visual.forward_features(x)[:, 5:], atol=1e-5
        )
        pooled = CLIPModel.from_pretrained(folder).eval().get_text_features(**given).pooler_output
        assert (
            torch.allclose(model.text.text_projection(f.text[f.pooled]), pooled, atol=1e-5)
            and pooled.std() > 0.1
        )


def test_adapters_join_picture_and_words(tiny):
    x, tokens, mask = inputs(tiny)
    turned = tokens[[1, 2, 0]], mask[[1, 2, 0]]
    with torch.no_grad():
        encoder, other = (
            tiny.features(x, tokens, mask, "encoder"),
            tiny.features(x, *turned, "encoder"),
        )
        assert not torch.allclose(encoder.visual, other.visual, atol=1e-3), (
            "the last stage has read the sentence"
        )
        joint, other = tiny.features(x, tokens, mask, "joint"), tiny.features(x, *turned, "joint")
        assert torch.equal(joint.visual, other.visual), "the first queries have not"
    assert joint.visual.shape == (3, 16, 5, 5) and joint.text.shape == (3, 17, 16)
    assert encoder.visual.shape == (3, 32, 5, 5) and encoder.text.shape == (3, 17, 32)


def test_the_joint_pair_is_what_the_first_adapter_multiplies(tiny):
    seen = {}
    cross = tiny.visual_adapters["1"].cross
    hooks = [
        part.register_forward_hook(lambda _, __, out, n=n: seen.__setitem__(n, out))
        for n, part in (("q", cross.query), ("k", cross.key))
    ]
    x = inputs(tiny)
    with torch.no_grad():
        tiny(*x)
        q, k = seen["q"], seen["k"]
        f = tiny.features(*x, "joint")
    for hook in hooks:
        hook.remove()
    assert torch.allclose(f.visual.flatten(2).mT, q, atol=1e-5) and torch.allclose(
        f.text, k, atol=1e-5
    )


def test_moved_adapters_read_no_padding_and_no_other_sample(tiny):
    x, tokens, mask = inputs(tiny)
    with torch.no_grad():
        logits = tiny(x, tokens, mask)
        assert torch.allclose(tiny(x, torch.where(mask, tokens, 7), mask), logits, atol=1e-4)
        assert torch.allclose(tiny(x[1:2], tokens[1:2], mask[1:2])[0], logits[1], atol=1e-3)
    assert (
        tiny.text_adapters["1"]
        .dense(torch.ones(1, 16, 4), torch.tensor([[[True, True, False, False]]]))[0, :, 2:]
        .any()
        .item()
        is False
    )


def test_every_sample_meets_its_own_kernel(tiny):
    x, sentence = torch.randn(3, 32, 2, 3), torch.randn(3, 32)
    with torch.no_grad():
        logits = tiny.head(x, sentence)
        fine, kernel = tiny.head.up(x)[1], tiny.head.kernel(sentence)[1]
        alone = torch.nn.functional.conv2d(
            fine[None], kernel[:-1].view(1, 16, 3, 3), kernel[-1:], padding=1
        )[0, 0]
    assert logits.shape == (3, 8, 12) and torch.allclose(logits[1], alone, atol=1e-4)


def test_files_are_read_once_and_not_needed_after(folder, tmp_path):
    place, weights = tmp_path / "copy", tmp_path / "dinov2.pth"
    shutil.copytree(folder, place)
    dinov2_weights(weights)
    sizes = TINY["detris"] | {"text": str(place), "pretrained": str(weights), "max_tokens": 12}
    model = build_model("detris", vocabulary=VOCABULARY, **sizes).eval()
    shutil.rmtree(place)
    weights.unlink()
    again = build_model(
        "detris", vocabulary=VOCABULARY, assets=json.loads(json.dumps(model.assets)), **sizes
    ).eval()
    again.load_state_dict(model.state_dict())
    x = inputs(model)
    assert torch.equal(again(*inputs(again)), model(*x)) and all(
        torch.equal(a, b) for a, b in zip(inputs(again), x, strict=True)
    )
    with pytest.raises(UserError, match=r"model\.text .* cannot be had"):
        build_model("detris", vocabulary=VOCABULARY, **sizes)
    with pytest.raises(
        UserError,
        match=r"model\.pretrained .* is no file; give the weights of vit_base_patch14_reg4_dinov2",
    ):
        build_model("detris", vocabulary=VOCABULARY, **sizes | {"text": "words"})


def test_names_out_of_reach_are_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError,
        match=r"model\.text 'openai/clip-vit-base-patch16': .* a local folder in Hugging .* words",
    ) as e:
        build_model("detris", vocabulary=VOCABULARY)
    assert "\n" not in str(e.value)
    with pytest.raises(
        UserError,
        match=r"model\.backbone .* pretrained True cannot be built .* model\.pretrained, or false",
    ) as e:
        build_model("detris", vocabulary=VOCABULARY, **TINY["detris"] | {"pretrained": True})
    assert "\n" not in str(e.value)


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    dinov2_weights(tmp_path / "wide.pth", width=48)
    with pytest.raises(
        UserError, match="cannot be built .* give the weights of vit_base_patch14_reg4_dinov2"
    ):
        build_model(
            "detris",
            vocabulary=VOCABULARY,
            **TINY["detris"] | {"pretrained": str(tmp_path / "wide.pth")},
        )
    from transformers import CLIPTextModel

    CLIPTextModel.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    clip_folder.tokenizer().save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"lacks 1 weights, first text_projection\.weight"):
        build_model(
            "detris", vocabulary=VOCABULARY, **TINY["detris"] | {"text": str(tmp_path / "bare")}
        )


def test_mixed_precision_and_one_graph(tiny):
    x, tokens, mask = inputs(tiny)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            rough = tiny(x, tokens, mask).float()
        logits = tiny(x, tokens, mask)
        assert (rough - logits).abs().mean() < 0.1 * logits.std()
        assert torch.allclose(
            torch.compile(tiny, backend="eager", fullgraph=True)(x, tokens, mask), logits, atol=1e-4
        )


@pytest.mark.parametrize(
    "given, words",
    [
        ({"visual_adapter": 24}, "multiples of 16"),
        ({"text_adapter": 8}, "multiples of 16"),
        ({"width": 36}, "multiple of 8"),
        ({"text_layers": 1}, "text_layers 1 at least 2"),
        ({"adapter_every": 0}, r"whole number in \[1"),
        ({"dropout": 1.0}, r"number in \[0, 1\)"),
        ({"size": 60}, "multiple of its patch of 14"),
        ({"max_tokens": 80}, "3 .* to 77 tokens"),
        ({"vit_depth": 1}, "take a deeper one"),
        ({"backbone": "vit_bse"}, "is not a model of timm"),
        ({"backbone": "resnet18"}, "vision transformer|cannot be built"),
    ],
)
def test_refused_options(given, words):
    with pytest.raises(UserError, match=words):
        build_model("detris", vocabulary=VOCABULARY, **TINY["detris"] | given)


def test_an_image_of_another_size_is_refused(tiny):
    with pytest.raises(UserError, match="an image of 60 x 64: model detris takes multiples of 14"):
        tiny(torch.zeros(1, 3, 60, 64), *tiny.tokenise(["red"]))
