"""Words hidden in place of blocks, and the alignment of a moving average of the model: scores and
averages by hand, shares by counting, what is refused.
"""

from types import SimpleNamespace

import pytest
import torch

from aml.data.batches import train_batches
from aml.errors import UserError
from aml.inference.visualize import example_panels
from aml.masking.alignment import word_scores
from aml.masking.config import preset
from aml.masking.diagnostics import MaskSums
from aml.masking.masker import Masker
from aml.masking.words import leave_one_word, replace_words
from aml.training.config import OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.profile import step_flops
from aml.training.scoring import TrainSums
from tests.aml.masking.test_modes import passes_of

WORDS = {"level": "words", "source": "joint", "score": "cosine"}
BLIND = {"level": "words", "mode": "random"}


@pytest.fixture
def batch(items, make_model):
    return next(train_batches(items["train"], make_model(), batch=24, seed=0, epoch=0))


def step_of(make_model, batch, epoch=0, **settings):
    """Return the model, and the masked pass of a step."""
    model = make_model(dropout=0.0)
    (one,) = passes_of(Masker(preset(**settings), model=model, image_size=64), model, batch, epoch)
    return model, one


# ---- words


S = torch.tensor([[[0.9, 0.2, 0.5, 7.0], [0.1, 0.4, 0.5, 7.0], [9.0, 9.0, 9.0, 9.0]]])
"""Similarities of three patches, the last no picture, with three words and another token."""


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("cosine", [1.0, 0.0, 0.2]),  # best 0.9, 0.4, 0.5, between the least and the highest
        ("patch_softmax", [1 / (1 + 2.71828**-0.8), 1 / (1 + 2.71828**-0.2), 0.5]),
        # over words in patch 1: e^0.9, e^0.2, e^0.5 of 5.3297; in patch 2: 1.1052, 1.4918, 1.6487
        ("token_softmax", [2.4596 / 5.3297, 1.4918 / 4.2457, 1.6487 / 4.2457]),
    ],
)
def test_the_alignment_of_a_word_is_that_of_its_best_patch(score, expected):
    words = torch.tensor([[True, True, True, False]])
    real = torch.tensor([[True, True, False]])
    found = word_scores(S, score, words, words, real)[0, :3]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_one_word_of_a_sentence_always_stays():
    words = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    hidden = words.clone()
    hidden[1, 3] = False
    score = torch.tensor([[9.0, 0.3, 0.8, 0.8]]).expand(4, 4)
    tie = torch.tensor([[0.1, 0.2, 0.9, 0.5]]).expand(4, 4)
    left = leave_one_word(hidden, words, score, tie)
    assert left.int().tolist() == [[0, 1, 0, 1], [0, 1, 1, 0], [0] * 4, [0] * 4]


@pytest.mark.parametrize("settings", [{**BLIND, "rate": 1.0}, {**WORDS, "tau": 1.0, "rho": 1.0}])
def test_of_a_sentence_that_would_be_hidden_whole_one_word_stays(make_model, batch, settings):
    _, one = step_of(make_model, batch, **settings)
    words, hidden = one.mask.blocks.real[:, 0].bool(), one.mask.hidden[:, 0]
    stays = words & ~hidden
    assert (stays.sum(1) == 1).all() and words.sum(1).amax() > 2
    if settings.get("mode") != "random":
        score = one.mask.blocks.score[:, 0].masked_fill(~words, -1)
        assert torch.equal(score[stays], score.amax(1)), "the best aligned one"
    (picture,) = example_panels(batch.image[:1], one.mask._replace(hidden=hidden[:1, None]), 5)
    assert [title for title, _ in picture] == ["image", "hidden in training"]
    assert (picture[0][1] == picture[1][1]).all(), "the picture is whole"


@pytest.mark.parametrize("weak", ["lowest", "highest"])
def test_the_least_aligned_words_are_hidden_and_the_picture_is_whole(make_model, batch, weak):
    settings = {**WORDS, "tau": 0.4, "rho": 1.0, "stage1_scale": 1.0, "weak": weak}
    model, one = step_of(make_model, batch, **settings)
    assert torch.equal(one.x, model.normalise(batch.image))
    assert one.visible is None and one.counted is None
    with torch.no_grad():
        f = model.features(one.x, batch.tokens, batch.token_mask, "joint")
    visual, text = (
        torch.nn.functional.normalize(t, dim=-1) for t in (f.visual.flatten(2).mT, f.text)
    )
    best = torch.einsum("bnd,bld->bnl", visual, text).amax(1)
    words = batch.token_mask.clone()
    words[:, 0] = False  # the pooling token
    hidden = one.mask.hidden[:, 0]
    assert not (hidden & ~words).any()
    for own, row, score in zip(words, hidden, best, strict=True):
        n = int(own.sum())
        assert int(row.sum()) - int(0.4 * n) in ((0, 1) if n > 1 else (0,))
        order = [i for i in score.argsort().tolist() if own[i]]
        order = order[::-1] if weak == "highest" else order
        assert set(row.nonzero().flatten().tolist()) == set(order[: int(row.sum())])
    expected = replace_words(model, batch.tokens, hidden, 0, 0, batch.item)
    assert torch.equal(one.tokens, expected) and (expected != batch.tokens).any()
    assert torch.equal(expected[~hidden], batch.tokens[~hidden])


def test_random_hides_as_many_words_blindly_whoever_shares_the_batch(make_model, batch):
    hidden = {}
    for name, settings in (("random", BLIND), ("aml", WORDS)):
        _, one = step_of(make_model, batch, **settings, tau=0.5, rho=0.5)
        hidden[name] = one.mask.hidden[:, 0]
        sums = MaskSums()
        sums.add(one.mask, batch.mask, batch.valid, 5)
        of_words = one.mask.hidden.flatten(1).sum(1) / one.mask.blocks.real.flatten(1).sum(1)
        assert sums.means()["hidden"] == pytest.approx(of_words.double().mean().item())
        assert not {"hidden_target", "lift", "auroc", "mask_auroc"} & sums.means().keys()
    assert 0.15 < hidden["random"].sum() / (batch.token_mask.sum() - 24) < 0.3
    assert not torch.equal(hidden["random"], hidden["aml"])
    part = SimpleNamespace(**vars(batch.part(slice(5, 9))))
    for name, settings in (("random", BLIND), ("aml", WORDS)):
        _, one = step_of(make_model, part, **settings, tau=0.5, rho=0.5)
        assert torch.equal(one.mask.hidden[:, 0], hidden[name][5:9])
    _, later = step_of(make_model, batch, epoch=1, **BLIND)
    assert not torch.equal(later.mask.hidden[:, 0], hidden["random"]), "drawn anew"
    _, matched = step_of(make_model, batch, **{**WORDS, **BLIND}, rate="match", tau=0.5, rho=0.5)
    assert torch.equal(matched.mask.hidden.sum((1, 2)), hidden["aml"].sum(1))


def test_maskris_hides_its_own_share_of_words_at_any_level(make_model, batch):
    passes = []
    for level in ("image", "words"):
        model = make_model(dropout=0.0)
        masker = Masker(preset(mode="maskris", level=level), model=model, image_size=64)
        passes.append(passes_of(masker, model, batch)[1])
    assert torch.equal(passes[0].x, passes[1].x) and torch.equal(passes[0].tokens, passes[1].tokens)


# ---- teacher


def learner_of(model, decay, **settings):
    masking = preset(stage1="teacher", teacher_decay=decay, **settings)
    masker = Masker(masking, model=model, image_size=64)
    return Learner(
        model,
        masker,
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig(batch=24, epochs=2),
        steps=3,
    )


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_the_teacher_is_the_moving_average_of_the_weights(make_model, batch, decay):
    model = make_model(dropout=0.1)
    model.stage4.requires_grad_(False)
    learner = learner_of(model, decay)
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    for index in range(2):
        learner.step(batch, 0, index, TrainSums("cpu"))
        for name, weight in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * weight
    teacher = learner.masker.teacher
    found = teacher.model.state_dict()
    assert all(torch.allclose(found[k], expected[k], atol=1e-6) for k in expected)
    same = [torch.equal(found[k], model.state_dict()[k]) for k in expected]
    assert all(same) if decay == 0 else not all(same)
    own = dict(model.named_parameters())
    shared = {k for k, p in teacher.model.named_parameters() if p is own[k]}
    assert shared == {k for k in own if k.startswith("stage4.")}, "what is frozen is not copied"
    assert teacher.state_dict().keys() == own.keys() - shared


@pytest.mark.parametrize("clean_weight", [0.0, 0.5])
def test_the_teacher_aligns_and_not_the_model(make_model, batch, clean_weight):
    settings = {"stage1_scale": 1.0, "clean_weight": clean_weight}
    model, teacher = make_model(dropout=0.0), make_model(seed=1, dropout=0.0)
    masker = Masker(preset(stage1="teacher", **settings), model=model, image_size=64)
    masker.teacher.start(teacher)
    mask = passes_of(masker, model, batch)[-1].mask
    with torch.no_grad():
        logits = teacher(model.normalise(batch.image), batch.tokens, batch.token_mask)
    assert torch.allclose(mask.alignment.map, logits.sigmoid(), atol=1e-6)


def test_a_step_with_a_teacher_costs_what_a_fresh_one_does(make_model, batch):
    def flops(**aml):
        model = make_model(dropout=0.0)
        masker = Masker(preset(**aml), model=model, image_size=64)
        train = TrainConfig(batch=len(batch.item))
        return step_flops(Learner(model, masker, optim=OptimConfig(), train=train, steps=1), batch)

    assert flops(stage1="teacher") == flops() > flops(mode="random") == flops(**BLIND)
    assert flops(mode="random") < flops(**WORDS) < flops()


def test_a_checkpoint_without_a_teacher_starts_one_with_its_weights(make_model, batch):
    learner = learner_of(make_model(), 0.9)
    learner.step(batch, 0, 0, TrainSums("cpu"))
    state = learner.state_dict()
    assert state["masker"].pop("teacher")
    other = learner_of(make_model(seed=3), 0.9)
    other.model.load_state_dict(learner.model.state_dict())
    other.load_state_dict(state)
    found = other.masker.teacher.model.state_dict()
    assert all(torch.equal(found[k], v) for k, v in learner.model.state_dict().items())


# ---- both


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"level": "words"}, "no number for each word; .* model small has encoder and joint"),
        ({**WORDS, "score": "sentence"}, "aml.score sentence: there is no number for each word"),
        ({**WORDS, "selection": "pixel"}, "aml.selection pixel, which draws pixels"),
        ({**WORDS, "sentence": "other"}, "aml.sentence other: words of the item's own"),
        ({**WORDS, "protect_target": True}, "protect_target true: .*set it to false"),
        ({**WORDS, "fill": "mean"}, "leaves the image whole"),
        ({**WORDS, "tau": 0.0}, "hides a share of 0 of the words"),
        ({**BLIND, "rate": "match"}, "there is no number for each word"),
        ({"level": "words", "mode": "oneref"}, "it hides the referred region"),
        ({"level": "words", "mode": "consistency"}, "level words masks none"),
        ({"stage1": "cached", "teacher_decay": 0.5}, "stage1 cached has no teacher"),
        ({"stage1": "teacher", "teacher_decay": 1}, r"teacher_decay is 1; .* in \[0, 1\)"),
    ],
    ids=str,
)
def test_what_cannot_mean_anything_is_refused(make_model, settings, words):
    with pytest.raises(UserError, match=words):
        Masker(preset(**settings), model=make_model(), image_size=64)


def test_who_reads_no_alignment_has_no_teacher(make_model):
    masker = Masker(preset(mode="random", stage1="teacher"), model=make_model(), image_size=64)
    assert masker.teacher is None and "teacher" not in masker.state_dict()
