"""LAVT: published size, what is trained, what alignment is read from, its two kinds of norm."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aml.errors import UserError
from aml.models import lavt
from aml.models.options import options
from aml.models.registry import build_model
from tests.aml.models.test_caris import bert_folder, big_bert  # noqa: F401 (a fixture)
from tests.aml.models.test_models import TINY, VOCABULARY, inputs


def tiny(**changes):
    torch.manual_seed(0)
    return build_model("lavt", vocabulary=VOCABULARY, **TINY["lavt"] | changes).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


def test_parameters_shapes_and_operations_of_the_published_size():
    with torch.device("meta"):
        model = build_model("lavt", vocabulary=VOCABULARY, assets=big_bert()).eval()
        x, tokens, mask = (
            torch.empty(1, 3, 480, 480),
            torch.zeros(1, 20, dtype=torch.int64),
            torch.ones(1, 20, dtype=torch.bool),
        )
        with torch.no_grad():
            logits = model(x, tokens, mask)
            encoder = model.features(x, tokens, mask, "encoder")
            with FlopCounterMode(display=False) as first:
                joint = model.features(x, tokens, mask, "joint")
    count = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    # Swin-B w12 with its four stage norms, BERT-base without pooler; a pixel-word attention has 4
    # C^2 + 2 * 768 C weights and 6 C biases
    fusion = sum(4 * c * c + 2 * 768 * c + 6 * c for c in (128, 256, 512, 1024))
    assert count == {
        "normalise": 0,
        "text": 108_891_648,
        "visual": 86_876_536 + 3_840,
        "fusion": fusion,
        "gates": sum(2 * c * c for c in (128, 256, 512)),
        "decoder": 20_651_010,
    }
    trained = sum(p.numel() for p in model.text.parameters() if p.requires_grad)
    assert trained == 10 * 7_087_872, "ten of BERT's twelve layers, not its embeddings"
    assert logits.shape == (1, 480, 480)
    assert encoder.visual.shape == (1, 1024, 15, 15) and encoder.text.shape == (1, 20, 768)
    assert joint.visual.shape == (1, 128, 120, 120) and joint.text.shape == (1, 20, 128)
    assert first.get_total_flops() / 2e9 < 12, (
        "two of twenty-four blocks, the words and one product"
    )


def test_only_part_of_a_pretrained_bert_is_trained(bert_folder):  # noqa: F811
    model = tiny(text=str(bert_folder)).train()
    model(*inputs(model)).square().sum().backward()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n.split(".")[0] for n in frozen} == {"text"}
    assert {".".join(n.split(".")[1:4]) for n in frozen if ".layer." in n} == {
        "encoder.layer.1",
        "encoder.layer.2",
    }
    assert any("word_embeddings" in n for n in frozen)
    assert [n for n, p in model.named_parameters() if (p.grad is None) == p.requires_grad] == []
    assert all(p.requires_grad for p in tiny().parameters()), "a random BERT learns whole"


def test_joint_is_what_the_first_fusion_multiplies(model):
    x, tokens, mask = inputs(model, 64, 96)
    seen = {}
    hooks = [
        getattr(model.fusion[0], n).register_forward_hook(
            lambda m, i, out, n=n: seen.__setitem__(n, out)
        )
        for n in ("query", "key")
    ]
    with torch.no_grad():
        model(x, tokens, mask)
        query, key = seen["query"], seen["key"]
        f = model.features(x, tokens, mask, "joint")
        other = model.features(x, tokens[[1, 2, 0]], mask[[1, 2, 0]], "joint")
    for hook in hooks:
        hook.remove()
    query = (query - query.mean(1, keepdim=True)) / (
        query.var(1, keepdim=True, correction=0) + 1e-5
    ).sqrt()
    assert torch.allclose(f.visual.flatten(2).mT, query, atol=1e-5) and torch.equal(f.text, key)
    assert torch.equal(f.visual, other.visual), "no word has touched the first stage's map"


def test_the_encoder_source_has_read_the_words_of_three_stages(model):
    x, tokens, mask = inputs(model)
    model.zero_grad()
    model.features(x, tokens, mask, "encoder").visual.square().sum().backward()
    reached = [any(p.grad is not None for p in model.fusion[i].parameters()) for i in range(4)]
    assert reached == [True, True, True, False] and all(
        p.grad is None for p in model.decoder.parameters()
    )
    model.zero_grad()


def test_places_are_normalised_alone_and_together():
    x = torch.tensor([[[1.0], [3.0]], [[5.0], [5.0]]])
    assert torch.allclose(
        lavt.over_places(x), torch.tensor([[[-1.0], [1.0]], [[0.0], [0.0]]]), atol=1e-4
    )
    assert torch.equal(lavt.over_places(torch.ones(1, 1, 4)), torch.zeros(1, 1, 4)), (
        "a map of one place has nothing to compare"
    )


def test_words_beyond_the_sentence_are_not_looked_at(model):
    fusion = model.fusion[0]
    places, text = torch.randn(2, 6, 16), torch.randn(2, 4, 32)
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    with torch.no_grad():
        whole = fusion(places, text, mask)
        assert torch.allclose(fusion(places[:1], text[:1, :2], mask[:1, :2]), whole[:1], atol=1e-5)


def test_frozen_batch_norm_uses_its_statistics_in_training_too():
    norm = lavt.FrozenBatchNorm(2)
    reference = nn.BatchNorm2d(2).eval()
    reference.load_state_dict(
        {"running_mean": torch.tensor([1.0, -2.0]), "running_var": torch.tensor([4.0, 9.0])},
        strict=False,
    )
    norm.load_state_dict(reference.state_dict(), strict=False)
    x = torch.randn(3, 2, 4, 4)
    assert torch.allclose(norm.train()(x), reference(x), atol=1e-6)
    assert norm.running_mean.tolist() == [1.0, -2.0]
    model = tiny(norm="batch_frozen").train()
    assert sum(isinstance(m, lavt.FrozenBatchNorm) for m in model.modules()) == 6
    before = [b.clone() for b in model.buffers()]
    model(*inputs(model)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    assert all(p.grad is not None for p in model.parameters())


def test_one_graph_without_branches_on_data(model):
    x = inputs(model)
    whole = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(whole(*x), model(*x))


def test_refused_options():
    with pytest.raises(UserError, match=r"model\.norm is 'batch'; known: group, batch_frozen"):
        options("lavt", norm="batch")
    with pytest.raises(UserError, match=r"model\.backbone is 'swin'"):
        options("lavt", backbone="swin")
