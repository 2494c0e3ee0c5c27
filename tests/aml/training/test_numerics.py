"""Test that a training computes what it did, as long as its version does."""

import pytest
import torch

from aml.data.dataset import Batch
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.models.registry import build_model
from aml.numerics import NUMERICS_VERSION
from aml.training.config import OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.scoring import TrainSums

SIZE, BATCH, STEPS = 64, 4, 3
COLOURS, SIDES = ("red", "green", "blue", "grey"), ("left", "right")

TOLERANCE = 1e-3
"""Largest relative difference of a loss from its stored value.

Another processor, thread count or build adds up the same numbers in another order: with 1 to 8
threads the losses of these six steps differed by less than 1e-6 of their value, and a thousand
times that is allowed. A change of formula moves them further: of the loss, the rate, the warm-up,
the decay and the masks, test_a_change_of_formula_is_seen changes several by little. Clipping alone
is hardly seen here, as AdamW undoes a factor of all gradients.
"""

EXPECTED: dict[str, list[float]] = {
    "off": [1.26557, 1.26451, 0.799368, 0.588108, 0.410447, 0.355686],
    "random": [1.25539, 1.25441, 0.813555, 0.669667, 0.487814, 0.415319],
    "two_pass": [1.26557, 1.26451, 0.799368, 0.588108, 0.410447, 0.355686],
    "maskris": [0.728406, 0.727984, 0.562779, 0.482049, 0.332484, 0.280766],
    "oneref": [1.26349, 1.2626, 0.817723, 0.733254, 0.593545, 0.527779],
    "consistency": [0.995243, 0.994611, 0.715383, 0.625044, 0.453338, 0.405282],
    "aml/calibrated": [1.27193, 1.27096, 0.868781, 0.693096, 0.543527, 0.420719],
    "aml/paper": [1.25897, 1.25796, 0.830297, 0.69651, 0.531731, 0.483716],
}
"""The loss of each step by arm, as computed on a CPU by the version below."""

EXPECTED_VERSION = 1

ARMS = {
    "off": {"mode": "off"},
    "random": {"mode": "random"},
    "two_pass": {"mode": "two_pass"},
    "maskris": {"mode": "maskris"},
    "oneref": {"mode": "oneref"},
    "consistency": {"mode": "consistency"},
    "aml/calibrated": {},
    "aml/paper": {"name": "paper", "rho": 0.02, "width": 32, "scale": 30.0},
}


def scenes(model) -> Batch:
    """Return four pictures made of whole numbers: a slope of grey with one coloured square each."""
    side = torch.arange(SIZE)
    image = torch.stack(
        [
            torch.stack(
                [(3 * side[None] + 2 * side[:, None] + 40 * b + 25 * c) % 128 for c in range(3)]
            )
            for b in range(BATCH)
        ]
    )
    mask = torch.zeros(BATCH, SIZE, SIZE, dtype=torch.bool)
    for b in range(BATCH):
        top, left = 8 + 6 * b, 6 + 32 * (b % 2)
        mask[b, top : top + 18, left : left + 20] = True
        image[b, b % 3, mask[b]] = 250
    sentences = [f"the {COLOURS[b]} square on the {SIDES[b % 2]}" for b in range(BATCH)]
    tokens, token_mask = model.tokenise(sentences)
    ids = torch.arange(BATCH)
    return Batch(
        image=image.to(torch.uint8),
        tokens=tokens,
        token_mask=token_mask,
        mask=mask,
        real=torch.tensor([[0, 0, SIZE, SIZE]]).expand(BATCH, 4),
        size=torch.full((BATCH, 2), SIZE),
        valid=torch.ones(BATCH, dtype=torch.bool),
        no_target=torch.zeros(BATCH, dtype=torch.bool),
        item=ids,
        image_id=ids,
        ref_id=ids,
        sent_id=ids,
        dataset=torch.zeros_like(ids),
        index=ids,
        total=BATCH,
    )


def losses(arm: str, masking: dict | None = None, **optim) -> list[float]:
    """Return the losses of six steps in two epochs; dropout, drawn otherwise by builds, is off."""
    torch.manual_seed(0)
    vocabulary = sorted({*COLOURS, *SIDES, "the", "square", "on"})
    model = build_model("small", vocabulary=vocabulary, width=32, stem=16, heads=2, dropout=0.0)
    masker = Masker(preset(**(ARMS[arm] | (masking or {}))), model=model, image_size=SIZE)
    learner = Learner(
        model,
        masker,
        optim=OptimConfig(**{"lr": 3e-3, "warmup": "2steps", "loss": "ce+dice", **optim}),
        train=TrainConfig(epochs=2, batch=BATCH),
        steps=STEPS,
    )
    batch, found = scenes(model), []
    learner.wrapped.train()
    for epoch in range(2):
        for index in range(STEPS):
            sums = TrainSums("cpu")
            learner.step(batch, epoch, index, sums)
            found.append(float(sums.loss))
    return found


@pytest.mark.parametrize("arm", ARMS)
def test_a_few_steps_give_the_losses_of_this_version(arm):
    assert NUMERICS_VERSION == EXPECTED_VERSION, (
        "NUMERICS_VERSION was raised: store the losses of the new version in EXPECTED and its "
        "number "
        "in EXPECTED_VERSION"
    )
    assert losses(arm) == pytest.approx(EXPECTED[arm], rel=TOLERANCE), (
        "training computes something else than it did; where that is on purpose, raise "
        "NUMERICS_VERSION in aml/numerics.py, then store the new losses and their version here"
    )


def test_the_number_of_threads_stays_within_the_tolerance():
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 4):
            torch.set_num_threads(count)
            found.append(losses("aml/calibrated"))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == pytest.approx(found[1], rel=TOLERANCE / 50)


@pytest.mark.parametrize(
    ("arm", "masking", "optim"),
    [
        *[("off", {}, {name: value}) for name, value in (("power", 1.0), ("weight_decay", 3.0))],
        *[("off", {}, {name: value}) for name, value in (("warmup", "3steps"), ("loss", "ce"))],
        *[("off", {}, {name: value}) for name, value in (("lr", 2.9e-3),)],
        *[("random", {name: value}, {}) for name, value in (("rho", 0.4), ("fill", "mean"))],
        *[("aml/calibrated", {name: value}, {}) for name, value in (("tau", 0.6), ("block", 4))],
        *[("aml/calibrated", {name: value}, {}) for name, value in (("weak", "highest"),)],
        *[
            ("aml/paper", {name: value}, {})
            for name, value in (("score", "cosine"), ("tokens", "words"))
        ],
        ("maskris", {"rate": 0.7}, {}),
    ],
)
def test_a_change_of_formula_is_seen(arm, masking, optim):
    changed = losses(arm, masking, **optim)
    furthest = max(abs(a - b) / b for a, b in zip(changed, EXPECTED[arm], strict=True))
    assert furthest > 2 * TOLERANCE
