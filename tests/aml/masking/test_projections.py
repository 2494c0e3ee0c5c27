"""What features go through before they are compared."""

import pytest
import torch
import torch.nn.functional as F

from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.masking.stage1.projections import Learned
from tests.aml.masking.test_modes import ENCODER, passes_of


def test_learned_projections_find_the_match_and_come_back(make_model):
    torch.manual_seed(0)
    hidden = torch.randn(24, 12)  # text lives in other coordinates than the image
    config = preset(source="encoder", score="cosine", projection="learned", width=16)
    maps = Learned(24, 12, config, seed=0)

    def draw(n=32):
        text = F.normalize(torch.randn(n, 4, 12), dim=-1)
        cover = torch.zeros(n, 49)
        cover[torch.arange(n), torch.randint(0, 49, (n,))] = 1
        visual = torch.randn(n, 49, 24) + 8 * cover[..., None] * F.normalize(
            text[:, :1] @ hidden.T, dim=-1
        )
        return (
            visual.mT.unflatten(2, (7, 7)),
            text,
            torch.ones(n, 4, dtype=torch.bool),
            torch.ones(n, 49, dtype=torch.bool),
            cover,
        )

    def rank_of_target():
        visual, text, _, _, cover = draw(256)
        w_i, w_t, _ = maps.matrices()
        s = (F.normalize(visual.flatten(2).mT, dim=-1) @ w_i.mT) @ (
            F.normalize(text, dim=-1) @ w_t.mT
        ).mT
        best = s.amax(-1)
        return (best < best[cover > 0][:, None]).float().mean()

    before = rank_of_target()
    for _ in range(400):
        maps.step(*draw(), lambda x: x)
    assert before < 0.75 and rank_of_target() > 0.9
    again = Learned(24, 12, config, seed=5)
    again.load(maps.state())
    more = draw()
    maps.step(*more, lambda x: x)
    again.step(*more, lambda x: x)
    assert all(
        torch.equal(a, b) for a, b in zip(maps.parameters(), again.parameters(), strict=True)
    )


def test_learned_projections_train_beside_the_model_and_live_in_the_training_state(
    make_model, batch
):
    model = make_model(dropout=0.0)
    masker = Masker(preset(**ENCODER, projection="learned", width=8), model=model, image_size=64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    passes_of(masker, model, batch)
    first = masker.projections.learned.w_i.clone()
    passes_of(masker, model, batch)
    assert not torch.equal(first, masker.projections.learned.w_i)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()) and not any(
        p.grad is not None for p in model.parameters()
    )
    other = Masker(preset(**ENCODER, projection="learned", width=8), model=model, image_size=64)
    other.load_state_dict(masker.state_dict())
    a, b = (passes_of(m, model, batch)[0].mask for m in (masker, other))
    assert torch.equal(a.alignment.map, b.alignment.map)


def test_the_released_projection_is_an_untrained_linear_on_the_text_alone():
    from aml.masking.stage1.projections import Projections

    config = preset("release")
    w_i, w_t, b_t = Projections(config, 0).of(torch.zeros(1, 1024, 1, 1), torch.zeros(1, 1, 768))
    assert w_i is None and w_t.shape == (1024, 768) and b_t.shape == (1024,)
    assert w_t.abs().max() == pytest.approx(768**-0.5, rel=1e-3) and w_t.std() == pytest.approx(
        (3 * 768) ** -0.5, rel=0.01
    )
