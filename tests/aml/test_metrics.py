"""Test metrics against float references, exact sums, and the diagnostics of a mask by hand."""

import random

import numpy as np
import pytest
import torch
from scipy import stats

from aml.masking.alignment import Alignment
from aml.masking.diagnostics import DIAGNOSTICS, MaskSums, measure_masks
from aml.masking.passes import Mask
from aml.masking.selection import Blocks
from aml.metrics import THRESHOLDS, Sums, counts, mask_auroc, score, weighted_auroc


def reference(predictions, truths):
    """Compute the metrics from their definitions in floats, one sentence at a time."""
    pairs = [
        (int((p & t).sum()), int((p | t).sum())) for p, t in zip(predictions, truths, strict=True)
    ]
    ious = [i / u if u else 0.0 for i, u in pairs]
    hits = {
        f"P@0.{x // 10}": np.mean([u > 0 and i * 100 >= x * u for i, u in pairs])
        for x in THRESHOLDS
    }
    return {
        "mIoU": np.mean(ious),
        "oIoU": sum(i for i, _ in pairs) / sum(u for _, u in pairs),
        **hits,
        "n": len(pairs),
    }


def random_masks(n, side=12, seed=0):
    """Return n predictions that agree with their truths more or less; some of either are empty."""
    rng = np.random.default_rng(seed)
    truths = rng.random((n, side, side)) < rng.random((n, 1, 1))
    predictions = truths ^ (rng.random((n, side, side)) < 0.5 * rng.random((n, 1, 1)))
    truths[::7], predictions[::5] = False, False
    return torch.from_numpy(predictions), torch.from_numpy(truths)


def test_scores_equal_the_definitions():
    predictions, truths = random_masks(300)
    assert (counts(predictions, truths)[1] == 0).any(), "some unions are empty"
    assert score(*counts(predictions, truths)).scores() == pytest.approx(
        reference(predictions.numpy(), truths.numpy()), abs=1e-8
    )


def test_by_hand():
    scores = score(torch.tensor([1, 0, 9, 0]), torch.tensor([2, 5, 10, 0])).scores()
    assert scores["mIoU"] == pytest.approx((0.5 + 0 + 0.9 + 0) / 4, abs=1e-9)
    assert scores["oIoU"] == 10 / 17
    assert [scores[f"P@0.{x}"] for x in (5, 6, 7, 8, 9)] == [0.5, 0.25, 0.25, 0.25, 0.25]
    assert scores["n"] == 4


@pytest.mark.parametrize("x", THRESHOLDS)
@pytest.mark.parametrize("union", [10, 70, 130, 200_000])
def test_a_share_that_is_exactly_the_threshold_counts(x, union):
    exact = x * union // 100
    k = THRESHOLDS.index(x)
    assert score(torch.tensor([exact]), torch.tensor([union])).hits[k] == 1
    assert score(torch.tensor([exact - 1]), torch.tensor([union])).hits[k] == 0


def test_addition_is_associative_and_exact_over_any_split_into_batches():
    intersection, union = counts(*random_masks(101, seed=1))
    whole = score(intersection, union)
    rng = random.Random(0)
    for _ in range(20):
        cuts = sorted(rng.sample(range(1, 101), rng.randint(1, 8)))
        order = torch.randperm(101, generator=torch.Generator().manual_seed(rng.randint(0, 99)))
        parts = [
            score(i, u)
            for i, u in zip(
                *(torch.tensor_split(t[order], cuts) for t in (intersection, union)), strict=True
            )
        ]
        assert sum(parts, Sums()) == whole
        a, b, *rest = parts
        assert (a + b) + sum(rest, Sums()) == a + (b + sum(rest, Sums()))


def test_padding_is_left_out():
    intersection, union = torch.tensor([3, 4, 5]), torch.tensor([6, 6, 6])
    assert score(intersection, union, torch.tensor([True, False, True])) == score(
        intersection[[0, 2]], union[[0, 2]]
    )
    assert score(intersection, union, torch.zeros(3, dtype=torch.bool)) == Sums()


def test_sums_survive_an_all_reduce():
    sums = score(*counts(*random_masks(40)))
    assert Sums.from_tensor(sums.to_tensor()) == sums
    assert Sums.from_tensor(sums.to_tensor() + sums.to_tensor()) == sums + sums


def test_no_sentence_scores_nothing():
    assert set(Sums().scores().values()) == {0}


# ---- alignment against the truth -----------------------------------------------------------------


def test_weighted_auroc_equals_the_mann_whitney_statistic_over_pixels():
    rng = np.random.default_rng(0)
    cells = 12
    pixels = 16
    score_ = rng.integers(0, 6, (5, cells)) / 5  # few levels: many ties
    positive = rng.integers(0, pixels + 1, (5, cells))
    valid = rng.random((5, cells)) < 0.8
    found = weighted_auroc(
        torch.from_numpy(score_), torch.from_numpy(positive / pixels), torch.from_numpy(valid)
    )
    for s, p, v, auroc in zip(score_, positive, valid, found.tolist(), strict=True):
        ones, zeros = np.repeat(s[v], p[v]), np.repeat(s[v], pixels - p[v])
        assert auroc == pytest.approx(
            stats.mannwhitneyu(ones, zeros).statistic / (len(ones) * len(zeros)), abs=1e-9
        )


def test_mask_auroc_equals_the_mann_whitney_statistic_over_pixels():
    rng = np.random.default_rng(0)
    size = rng.integers(
        0, 17, (6, 12)
    )  # border blocks are smaller, blocks of letterbox hold no pixel
    positive, hidden = rng.integers(0, size + 1), rng.random((6, 12)) < 0.4
    found = mask_auroc(
        torch.from_numpy(hidden),
        torch.from_numpy(positive).double(),
        torch.from_numpy(size).double(),
    )
    for h, p, n, auroc in zip(hidden, positive, size, found.tolist(), strict=True):
        ones, zeros = np.repeat(~h, p), np.repeat(~h, n - p)
        assert auroc == pytest.approx(
            stats.mannwhitneyu(ones, zeros).statistic / (len(ones) * len(zeros)), abs=1e-9
        )


def test_weighted_auroc_is_undefined_without_both_classes():
    score_ = torch.rand(2, 4)
    weight = torch.stack([torch.zeros(4), torch.ones(4)])
    assert weighted_auroc(score_, weight, torch.ones(2, 4, dtype=torch.bool)).isnan().all()


def four_blocks(hidden, weak, alignment, informative=True):
    """Return a mask over a 4 x 4 image of four 2 x 2 blocks."""
    grid = torch.tensor(alignment).view(1, 2, 2)
    found = Alignment(grid, torch.tensor([informative]))
    blocks = Blocks(grid, torch.full((1, 2, 2), 4.0))
    flags = [torch.tensor(x, dtype=torch.bool).view(1, 2, 2) for x in (hidden, weak)]
    return Mask(*flags, blocks, found, torch.ones(1, 4, 4, dtype=torch.bool))


TARGET = torch.zeros(1, 4, 4, dtype=torch.bool)
TARGET[0, :2, :3] = True  # block 0 wholly (4 pixels), block 1 half (2 pixels)


def test_measure_by_hand():
    mask = four_blocks(hidden=[0, 1, 1, 0], weak=[0, 1, 1, 1], alignment=[0.9, 0.4, 0.6, 0.1])
    values = dict(zip(DIAGNOSTICS, measure_masks(mask, TARGET, 2)[0].tolist(), strict=True))
    # 6 target pixels at .9 (4) and .4 (2); 10 others at .4 (2), .6 (4), .1 (4)
    pairs_won = 4 * 10 + 2 * (4 + 0.5 * 2)
    # visible 1, hidden 0: target 4 visible and 2 hidden; others 4 visible and 6 hidden
    mask_pairs_won = 4 * 6 + 0.5 * (4 * 4 + 2 * 6)
    assert values == pytest.approx(
        {
            "weak": 0.75,
            "hidden": 0.5,
            "hidden_target": 2 / 6,
            "auroc": pairs_won / 60,
            "mask_auroc": mask_pairs_won / 60,
            "uninformative": 0,
        }
    )


def test_measure_leaves_undefined_what_is():
    nothing_hidden = four_blocks([0] * 4, [0] * 4, [0.5] * 4, informative=False)
    values = dict(
        zip(
            DIAGNOSTICS,
            measure_masks(nothing_hidden, torch.zeros_like(TARGET), 2)[0].tolist(),
            strict=True,
        )
    )
    assert values["uninformative"] == 1 and values["hidden"] == 0
    assert all(np.isnan(values[name]) for name in ("hidden_target", "auroc", "mask_auroc"))
    no_stage_1 = measure_masks(nothing_hidden._replace(alignment=None), TARGET, 2)[0]
    assert (
        no_stage_1[[DIAGNOSTICS.index("auroc"), DIAGNOSTICS.index("uninformative")]].isnan().all()
    )


def test_mask_sums_are_means_over_valid_samples_where_defined():
    mask = four_blocks(hidden=[0, 1, 1, 0], weak=[0, 1, 1, 1], alignment=[0.9, 0.4, 0.6, 0.1])
    sums, yes, no = MaskSums(), torch.tensor([True]), torch.tensor([False])
    sums.add(mask, TARGET, yes, 2)
    sums.add(mask, torch.zeros_like(TARGET), yes, 2)  # no target: counts for weak and hidden only
    sums.add(four_blocks([1] * 4, [1] * 4, [0.0] * 4), TARGET, no, 2)  # padding
    means = sums.means()
    assert (
        means["hidden"] == 0.5
        and means["weak"] == 0.75
        and means["hidden_target"] == pytest.approx(1 / 3)
    )
    assert means["lift"] == pytest.approx(means["hidden_target"] / means["hidden"])


def test_mask_sums_without_any_target_have_no_lift():
    sums = MaskSums()
    sums.add(
        four_blocks([1, 0, 0, 0], [1] * 4, [0.1, 0.2, 0.3, 0.4]),
        torch.zeros_like(TARGET),
        torch.tensor([True]),
        2,
    )
    assert sums.means() == {"weak": 1.0, "hidden": 0.25, "uninformative": 0.0}
