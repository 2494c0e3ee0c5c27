"""Test that draws are a function of (seed, epoch, item, what, index), uniform on [0, 1)."""

import zlib

import pytest
import torch
from scipy import stats

from aml.draws import uniform

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
ITEMS = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123456789, -987654321])


def mix(z):
    """Apply the finaliser of splitmix64 to plain integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference(seed, epoch, item, what, index):
    state = 0
    for part in (seed, epoch, zlib.crc32(what.encode())):
        state = mix(((state ^ part) + GOLDEN) & MASK)
    state = mix((state + item) & MASK)
    return (mix((state + (index + 1) * GOLDEN) & MASK) >> 40) / 2**24


def test_the_reference_mixer_is_splitmix64():
    assert [mix((1234567 + k * GOLDEN) & MASK) for k in (1, 2)] == [
        6457827717110365317,
        3203168211198807973,
    ]  # published vector


@pytest.mark.parametrize(
    "seed, epoch, what", [(0, 0, "select"), (7, 3, "tie"), (2**40, 199, "sentence")]
)
def test_equals_a_plain_integer_reference(seed, epoch, what):
    expected = [
        [reference(seed, epoch, item, what, k) for k in range(5)] for item in ITEMS.tolist()
    ]
    assert uniform(seed, epoch, ITEMS, what, 5).tolist() == expected


def test_a_pinned_value():
    assert uniform(0, 0, torch.tensor([42]), "select", 3).tolist() == [
        [0.6262809038162231, 0.6101240515708923, 0.08468747138977051]
    ]


def test_same_for_any_batch_order_size_and_count():
    everyone = uniform(3, 5, ITEMS, "select", 9)
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    assert torch.equal(uniform(3, 5, ITEMS[order], "select", 9), everyone[order])
    assert torch.equal(
        torch.cat([uniform(3, 5, ITEMS[i : i + 1], "select", 9) for i in range(len(ITEMS))]),
        everyone,
    )
    assert torch.equal(uniform(3, 5, ITEMS, "select", 4), everyone[:, :4])


def test_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    uniform(0, 0, ITEMS, "select", 100)
    assert torch.equal(torch.get_rng_state(), before)


def test_shape_type_and_range():
    u = uniform(0, 0, torch.arange(1000), "tie", 50)
    assert u.shape == (1000, 50) and u.dtype == torch.float32
    assert u.min() >= 0 and u.max() < 1


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"epoch": 1}, {"what": "tie"}, {"item": torch.arange(5000, 10000)}]
)
def test_every_argument_gives_independent_draws(other):
    base = {"seed": 0, "epoch": 0, "item": torch.arange(5000), "what": "select"}
    a, b = uniform(**base)[:, 0], uniform(**{**base, **other})[:, 0]
    assert (a == b).float().mean() < 0.001
    assert abs(stats.pearsonr(a, b).statistic) < 0.05  # 3.5 standard errors


@pytest.mark.parametrize(
    "draws",
    [
        uniform(0, 0, torch.arange(20000), "select"),
        uniform(0, 0, torch.tensor([5]), "select", 20000),
        uniform(1, 9, torch.arange(100) << 40, "tie", 200),
    ],
    ids=["over items", "over indices", "over both"],
)
def test_uniform(draws):
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 0.001


def test_neighbouring_indices_are_uncorrelated():
    u = uniform(0, 0, torch.arange(5000), "select", 3)
    assert abs(stats.pearsonr(u[:, 0], u[:, 1]).statistic) < 0.05
    assert abs(stats.pearsonr(u[:, 0], u[:, 2]).statistic) < 0.05
