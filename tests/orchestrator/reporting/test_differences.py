"""Test differences against numbers computed by hand, and in 1,000 simulated comparisons.

The simulated comparisons over seeds take mean and deviation from recorded trials.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from orchestrator.reporting import intervals, significance
from orchestrator.reporting.rows import arm_differences

LEDGER = Path(__file__).parents[3] / "experiments" / "results" / "scenes.ledger.jsonl"
COMPARISONS = 1000


def test_a_paired_difference_by_hand():
    found = significance.seed_difference(
        {1: 0.54, 2: 0.56, 3: 0.55, 9: 0.9}, {1: 0.50, 2: 0.53, 3: 0.50}
    )
    # differences .04 .03 .05: mean .04, deviation .01,
    # t = .04 / (.01 / sqrt 3) = 6.9282 on 2 degrees of freedom
    assert (found.test, found.n) == ("paired t", (3, 3))
    assert found.difference == pytest.approx(0.04) and found.p == pytest.approx(
        2 * stats.t.sf(0.04 / (0.01 / math.sqrt(3)), 2)
    )
    assert (found.low, found.high) == pytest.approx(
        (0.04 - 4.302653 * 0.01 / math.sqrt(3), 0.04 + 4.302653 * 0.01 / math.sqrt(3))
    )
    assert found.detectable == pytest.approx(significance.smallest_detectable_difference(0.01, 3))


def test_without_common_seeds_it_is_welch_by_hand():
    found = significance.seed_difference({1: 0.5, 2: 0.6}, {3: 0.1, 4: 0.2, 5: 0.3})
    # variances .005 and .01: error^2 = .0025 + .01/3 = .0058333;
    # df = error^4 / (.0025^2 / 1 + (.01/3)^2 / 2)
    error, df = math.sqrt(0.0025 + 0.01 / 3), 0.0058333333**2 / (0.0025**2 + (0.01 / 3) ** 2 / 2)
    half = stats.t.ppf(0.975, df) * error
    assert (found.test, found.n) == ("Welch t", (2, 3)) and found.difference == pytest.approx(0.35)
    assert (found.low, found.high) == pytest.approx((0.35 - half, 0.35 + half))
    assert found.detectable == pytest.approx(significance.detectable_difference(error, df))


def test_one_seed_has_a_difference_but_no_test():
    for other in ({1: 0.5}, {2: 0.5}):
        found = significance.seed_difference({1: 0.6}, other)
        assert (
            found.test == "none"
            and found.difference == pytest.approx(0.1)
            and math.isnan(found.p)
            and math.isnan(found.low)
        )


def test_equal_runs_are_certainly_equal_and_shifted_ones_certainly_shifted():
    a = {1: 0.5, 2: 0.75}
    assert (
        significance.seed_difference(a, a).p == 1.0
        and significance.seed_difference({1: 0.75, 2: 1.0}, a).p == 0.0
    )
    assert significance.seed_difference({1: 0.5, 2: 0.5}, {3: 0.5, 4: 0.5}).p == 1.0


def test_holm_by_hand():
    # .01 x 3, then max(.03, .03 x 2) = .06, then max(.06, .04 x 1) = .06; NaN is no test
    assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert (
        significance.holm([0.4, 0.9]) == pytest.approx([0.8, 0.9]) and significance.holm([]) == []
    )
    known = significance.holm([0.01, math.nan, 0.2])
    assert (
        known[0] == pytest.approx(0.02) and math.isnan(known[1]) and known[2] == pytest.approx(0.2)
    )


def test_image_scores_are_over_sentences_and_pixels_not_over_images():
    # image 1: one sentence, I/U = 1/2 against 0; image 2: three sentences, together 1.5 against 3
    a = significance.ImageSums(
        np.array([0.5, 1.5]), np.array([1.0, 3.0]), np.array([50.0, 30.0]), np.array([100.0, 60.0])
    )
    b = significance.ImageSums(
        np.array([0.0, 3.0]), np.array([1.0, 3.0]), np.array([0.0, 60.0]), np.array([100.0, 60.0])
    )
    found = significance.image_difference(a, b, resamples=500)
    assert found["mIoU"].difference == pytest.approx((0.5 + 1.5 - 3) / 4) and found[
        "oIoU"
    ].difference == pytest.approx(80 / 160 - 60 / 160)
    # two images: a resample has one of them twice, or both; the ends of the interval are the
    # images alone, and a quarter of the resamples lies above 0
    assert (found["mIoU"].low, found["mIoU"].high) == pytest.approx(
        (-1.5 / 3, 0.5)
    ) and 0.35 < found["mIoU"].p < 0.65


def recorded_noise() -> tuple[float, float]:
    """Return mean and deviation over seeds of the recorded confirmation trials."""
    rows = [json.loads(line) for line in LEDGER.read_text().splitlines()]
    done: dict[str, list[float]] = {}
    for r in rows:
        if r["stage"] == "confirm":
            done.setdefault(r["arm"], []).append(r["history"][-1]["val/mIoU"])
    return float(np.mean([v for values in done.values() for v in values])), significance.pooled_sd(
        done.values()
    )


def seeds_of(rng, mean, sd, n=5):
    return dict(enumerate(rng.normal(mean, sd, n).tolist()))


def test_the_paired_test_over_seeds_errs_as_often_as_it_says_and_finds_twice_what_it_can_detect():
    (mean, sd), rng = recorded_noise(), np.random.default_rng(1)
    assert 0.003 < sd < 0.03
    pairs = [(seeds_of(rng, mean, sd), seeds_of(rng, mean, sd)) for _ in range(COMPARISONS)]
    found = [significance.seed_difference(a, b) for a, b in pairs]
    positives = sum(x.p < 0.05 for x in found) / COMPARISONS
    assert 0.03 <= positives <= 0.07, positives
    assert sum(x.low > 0 or x.high < 0 for x in found) / COMPARISONS == positives
    # the shift is what a comparison prints for this noise, at the deviation of a difference
    # of two seeds
    shift = 2 * significance.smallest_detectable_difference(math.sqrt(2) * sd, 5)
    power = (
        sum(
            (x := significance.seed_difference({s: v + shift for s, v in a.items()}, b)).p < 0.05
            and x.low > 0
            for a, b in pairs
        )
        / COMPARISONS
    )
    own = sum(
        significance.seed_difference({s: v + 2 * x.detectable for s, v in a.items()}, b).p < 0.05
        for (a, b), x in zip(pairs, found, strict=True)
    )
    assert power >= 0.95 and own / COMPARISONS >= 0.95, (power, own)


def checkpoint_pair(rng, images=80):
    """Generate the sums of two equally good checkpoints.

    Both share the difficulty of an image, which has 1 to 7 sentences; their errors are independent.
    """
    n = rng.integers(1, 8, images).astype(float)
    union = n * rng.integers(200, 3000, images)
    hard = rng.beta(2, 2, images)
    iou = [np.clip(hard + rng.normal(0, 0.12, images), 0, 1) for _ in range(2)]
    return [significance.ImageSums(q * n, n, q * union, union) for q in iou]


def test_the_bootstrap_over_images_errs_as_often_as_it_says_and_finds_twice_what_it_can_detect():
    rng = np.random.default_rng(2)
    positives, power = {"mIoU": 0, "oIoU": 0}, {"mIoU": 0, "oIoU": 0}
    for k in range(COMPARISONS):
        a, b = checkpoint_pair(rng)
        found = significance.image_difference(a, b, resamples=299, seed=k)
        iou, share = (2 * found[name].detectable for name in positives)
        shifted = significance.ImageSums(
            a.iou + iou * a.n, a.n, a.intersection + share * a.union, a.union
        )
        again = significance.image_difference(shifted, b, resamples=299, seed=k)
        for name in positives:
            positives[name] += found[name].p <= 0.05
            power[name] += again[name].p <= 0.05
    assert all(0.03 <= x / COMPARISONS <= 0.07 for x in positives.values()), positives
    assert all(x / COMPARISONS >= 0.95 for x in power.values()), power


def test_intervals_over_images_by_hand_and_against_scipys_bootstrap():
    def row(image, i, u, **more):
        plain = {"image_id": image, "intersection": i, "union": u}
        return plain | {"no_target": False, "called_empty": False} | more

    # two images, all or nothing: a resample has 0, 1 or 2 of the good one, with 1/4, 1/2, 1/4
    found = intervals.score_intervals([row(1, 10, 10), row(2, 0, 10)])
    assert found["mIoU"] == found["oIoU"] == found["P@0.9"] == [0.0, 1.0]
    # many sentences of one image are one image: no interval
    assert intervals.score_intervals([row(1, 10, 10), row(1, 0, 10)]) == {}
    # an expression without a target that is rejected counts 1 in mIoU, nothing in P@X
    rejected = row(2, 0, 0, no_target=True, called_empty=True)
    found = intervals.score_intervals([row(1, 10, 10), rejected, row(3, 5, 5)])
    assert found["mIoU"] == found["gIoU"] == [1.0, 1.0] and found["T-acc"][1] == 1.0
    rng = np.random.default_rng(0)
    unions = rng.integers(50, 500, 900)
    shares = rng.random(900)
    images = rng.integers(0, 150, 900)
    rows = [
        row(int(image), int(share * u), int(u))
        for image, share, u in zip(images, shares, unions, strict=True)
    ]
    found = intervals.score_intervals(rows)
    index = np.unique(images, return_inverse=True)[1]
    iou = [intervals.sentence_iou(r) for r in rows]
    own = significance.ImageSums(
        iou=np.bincount(index, weights=iou),
        n=np.bincount(index).astype(float),
        intersection=np.bincount(index, weights=[r["intersection"] for r in rows]),
        union=np.bincount(index, weights=unions),
    )
    nothing = own._replace(iou=0 * own.iou, intersection=0 * own.intersection)
    other = significance.image_difference(own, nothing, seed=1)
    for name in ("mIoU", "oIoU"):
        ends = (other[name].low, other[name].high)
        assert tuple(found[name]) == pytest.approx(ends, abs=0.002), name


def test_arms_are_corrected_together_as_holm_does():
    """Three pairs of deviation 0.01 have t = 100 sqrt(3) mean: p 0.04 at 0.028, 0.01 at 0.0573.

    Two comparisons make 0.02 of the smaller and leave the larger, 0.04; Bonferroni's 0.08 would not
    stand. Random's own difference to off is one of the two; off's to random is not counted again.
    """

    def seeds(mean):
        return {0: mean - 0.01, 1: mean, 2: mean + 0.01}

    off = dict.fromkeys(range(3), 0.0)
    found = arm_differences({"off": off, "random": seeds(0.028), "aml": seeds(0.0573)}, "off")
    assert found["random"].interval.mean == pytest.approx(0.028)
    assert found["random"].excludes_zero_corrected and found["aml"].excludes_zero_corrected
    more = {"off": off, "random": seeds(0.028), "aml": seeds(0.028)}
    assert arm_differences(more, "off")["aml"].excludes_zero_corrected is False
    assert arm_differences({"off": off, "random": seeds(0.028)}, "random")[
        "off"
    ].excludes_zero_corrected
    assert found["off"].interval.n == 0 and not found["off"].excludes_zero_corrected
