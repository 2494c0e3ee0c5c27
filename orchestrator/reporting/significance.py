"""Compute intervals and tests over seeds, the bootstrap over images, and Holm's correction.

Every score is a share in [0, 1]; a value that cannot be computed is NaN. The t tests and the
bootstrap are scipy's. Holm's correction is written out here because scipy has none. This module
reads and writes no files.
"""

import functools
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

NAN = math.nan

LEVEL = 0.05
"""Significance level of the two-sided tests."""

POWER = 0.8
"""Probability with which a difference of the smallest detectable size is found."""

RESAMPLES = 9999
"""Resamples of a bootstrap over images."""

MOST_PAIRS = 100_000
"""Pairs beyond which a difference is not planned for; search.seeds.confirm takes no more."""

INDICES_AT_ONCE = 2_000_000
"""Indices that a bootstrap draws at once; this bounds its memory."""


class Interval(NamedTuple):
    """Mean of several values with its t interval."""

    n: int
    """Number of values."""
    mean: float
    low: float
    """Lower end of the interval; NaN below two values."""
    high: float
    """Upper end of the interval; NaN below two values."""
    sd: float
    """Sample standard deviation (divided by n - 1); NaN below two values."""

    @property
    def excludes_zero(self) -> bool:
        """Tell whether zero lies outside the interval; False if there is no interval."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Return the mean and its two-sided Student t interval, mean +- t(n - 1) sd / sqrt(n).

    Values that are None or not finite are left out.
    """
    kept = [float(v) for v in values if v is not None and math.isfinite(v)]
    n = len(kept)
    if n == 0:
        return Interval(0, NAN, NAN, NAN, NAN)
    mean = math.fsum(kept) / n
    if n == 1:
        return Interval(1, mean, NAN, NAN, NAN)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in kept) / (n - 1))
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(n, mean, mean - half, mean + half, sd)


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95
) -> Interval:
    """Return the t interval of a - b over the seeds that both have.

    Args:
        a: Score by seed.
        b: Score by seed.
        level: Confidence level of the interval.
    """
    return mean_interval([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())], level)


def pooled_sd(groups: Iterable[Iterable[float]]) -> float:
    """Return the standard deviation within groups, sqrt(sum (n - 1) sd^2 / sum (n - 1)).

    The result is NaN if no group has two values.
    """
    parts = [i for i in map(mean_interval, groups) if i.n > 1]
    freedom = sum(i.n - 1 for i in parts)
    return math.sqrt(sum((i.n - 1) * i.sd**2 for i in parts) / freedom) if freedom else NAN


def paired_spread(scores: Sequence[Mapping[int, float]]) -> tuple[float, int]:
    """Return the standard deviation of two arms' paired differences, pooled over pairs of arms.

    sqrt(sum (n - 1) sd^2 / sum (n - 1)) over the pairs with n > 1 common seeds. Pairs share arms,
    so the degrees of freedom are those that a sum of effects of arms and seeds leaves:
    (arms - 1) (seeds - 1) where every arm has every seed.

    Args:
        scores: Scores by seed, of each arm.

    Returns:
        The deviation in the unit of the scores, and its degrees of freedom; NaN and 0 if no two
        arms have two common seeds.
    """
    pairs = [i for a, b in combinations(scores, 2) if (i := paired_difference(a, b)).n > 1]
    if not pairs:
        return NAN, 0
    squares = sum((i.n - 1) * i.sd**2 for i in pairs)
    several = [by_seed for by_seed in scores if len(by_seed) > 1]
    seeds = {seed for by_seed in several for seed in by_seed}
    freedom = sum(map(len, several)) - len(several) - len(seeds) + 1
    return math.sqrt(squares / sum(i.n - 1 for i in pairs)), max(1, freedom)


def deviation_factors(freedom: int, level: float = 0.95) -> tuple[float, float]:
    """Return the ends of the interval of a standard deviation, divided by the estimate.

    sqrt(freedom / chi2) at the quantiles of the chi-squared distribution.

    Args:
        freedom: Degrees of freedom of the estimate.
        level: Confidence level of the interval.
    """
    tails = stats.chi2.ppf([0.5 + level / 2, 0.5 - level / 2], freedom)
    low, high = np.sqrt(freedom / tails)
    return float(low), float(high)


def pairs_needed(sd: float, difference: float) -> int | None:
    """Return the fewest pairs whose `smallest_detectable_difference` is at most `difference`.

    Args:
        sd: Standard deviation of the differences.
        difference: True mean difference, in the unit of `sd`; above 0.

    Returns:
        The number of pairs, at least 2; None above `MOST_PAIRS`.
    """
    pairs = range(2, MOST_PAIRS + 1)
    # What can be detected falls as pairs are added: its negative is sorted.
    place = bisect_left(pairs, -difference, key=lambda n: -smallest_detectable_difference(sd, n))
    return pairs[place] if place < len(pairs) else None


def smallest_detectable_difference(sd: float, n: int) -> float:
    """Return the true mean difference that a paired t test finds with probability `POWER`.

    The test is two-sided at `LEVEL`.

    Args:
        sd: Standard deviation of the differences.
        n: Number of pairs.

    Returns:
        The difference in the unit of `sd`; NaN for fewer than two pairs.
    """
    return _noncentral_shift(n - 1) * sd / math.sqrt(n) if n > 1 and math.isfinite(sd) else NAN


def detectable_difference(standard_error: float, freedom: float) -> float:
    """Return the true difference that a two-sided t test at `LEVEL` finds with `POWER`.

    Args:
        standard_error: Standard error of the difference.
        freedom: Degrees of freedom of the test.

    Returns:
        The difference in the unit of `standard_error`; NaN without a degree of freedom.
    """
    if freedom > 0 and math.isfinite(standard_error):
        return _noncentral_shift(freedom) * standard_error
    return NAN


@functools.lru_cache(maxsize=256)
def _noncentral_shift(freedom: float) -> float:
    """Return the shift d of the noncentral t with P(|T| > t(1 - LEVEL / 2, freedom)) = POWER.

    The probability is computed as a mean over quantiles of the observed deviation, because
    scipy's nct is NaN at large shifts.
    """
    critical = float(stats.t.ppf(1 - LEVEL / 2, freedom))
    bars = critical * stats.chi.ppf((np.arange(4000) + 0.5) / 4000, freedom) / math.sqrt(freedom)

    def excess_power(d: float) -> float:
        return float(np.mean(special.ndtr(d - bars) + special.ndtr(-d - bars))) - POWER

    return float(optimize.brentq(excess_power, 0.0, 10 + 3 * critical))


class Difference(NamedTuple):
    """Difference a - b with its 95 % interval and its test."""

    test: str
    """Name: paired t, Welch t or image bootstrap; none if only `difference` is known."""
    n: tuple[int, int]
    """Number of seeds (or images) of a and of b."""
    difference: float
    low: float
    high: float
    p: float
    """Two-sided p value."""
    detectable: float
    """True difference that the test would find four times in five."""


def seed_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Test mean(a) - mean(b) over seeds.

    With two or more common seeds this is Student's paired t test over them, else Welch's t test.
    There is no test if one of the two has fewer than two seeds.

    Args:
        a: Score by seed.
        b: Score by seed.
    """
    common = sorted(a.keys() & b.keys())
    if len(common) > 1:
        return _paired_test([a[s] for s in common], [b[s] for s in common])
    if len(a) > 1 and len(b) > 1:
        return _welch_test(list(a.values()), list(b.values()))
    if common:  # one common seed, and one of the two has no deviation
        return Difference("none", (1, 1), a[common[0]] - b[common[0]], NAN, NAN, NAN, NAN)
    difference = mean_interval(a.values()).mean - mean_interval(b.values()).mean
    return Difference("none", (len(a), len(b)), difference, NAN, NAN, NAN, NAN)


def _paired_test(a: list[float], b: list[float]) -> Difference:
    i = mean_interval(x - y for x, y in zip(a, b, strict=True))
    p = float(stats.ttest_rel(a, b).pvalue) if i.sd > 0 else _p_without_deviation(i.mean)
    detectable = smallest_detectable_difference(i.sd, i.n)
    return Difference("paired t", (i.n, i.n), i.mean, i.low, i.high, p, detectable)


def _welch_test(a: list[float], b: list[float]) -> Difference:
    one = mean_interval(a)
    two = mean_interval(b)
    n = (one.n, two.n)
    mean = one.mean - two.mean
    error = math.hypot(one.sd / math.sqrt(one.n), two.sd / math.sqrt(two.n))
    if error == 0:
        return Difference("Welch t", n, mean, mean, mean, _p_without_deviation(mean), 0.0)
    found = stats.ttest_ind(a, b, equal_var=False)
    interval = found.confidence_interval(1 - LEVEL)
    return Difference(
        "Welch t",
        n,
        mean,
        float(interval.low),
        float(interval.high),
        float(found.pvalue),
        detectable_difference(error, float(found.df)),
    )


def _p_without_deviation(mean: float) -> float:
    """Return 1 for equal means, else 0: without any deviation a t test would divide by zero."""
    return float(mean == 0)


def holm(p_values: list[float]) -> list[float]:
    """Adjust p values for all of the tests together (Holm 1979).

    The k-th smallest is multiplied by the number of tests not yet passed and never falls below
    the one before it. NaN stays NaN and is not counted as a test.
    """
    adjusted = list(p_values)
    previous = 0.0
    known = sorted((value, i) for i, value in enumerate(p_values) if not math.isnan(value))
    for rank, (value, i) in enumerate(known):
        previous = max(previous, min(1.0, (len(known) - rank) * value))
        adjusted[i] = previous
    return adjusted


class ImageSums(NamedTuple):
    """Sums over the sentences of each image for one checkpoint, in one order of the images.

    Every array has shape (images,) and dtype float64.
    """

    iou: np.ndarray
    """Sum of I/U."""
    n: np.ndarray
    """Number of sentences."""
    intersection: np.ndarray
    """Sum of the intersections, pixels."""
    union: np.ndarray
    """Sum of the unions, pixels."""


def image_difference(
    a: ImageSums, b: ImageSums, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """Compare two checkpoints by a paired bootstrap over images.

    A resample keeps an image's sentences and both checkpoints' predictions together, because they
    are not independent. The interval is Efron's percentile interval; p is twice the share of
    resamples at or beyond 0 on the smaller side.

    Args:
        a: Sums of the first checkpoint; at least two images.
        b: Sums of the second checkpoint, of the same images in the same order.
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        The difference a - b in "mIoU" and in "oIoU".
    """
    data = (a.iou - b.iou, a.n, a.intersection, a.union, b.intersection, b.union)
    images = len(a.n)
    found = stats.bootstrap(
        data,
        _score_differences,
        n_resamples=resamples,
        batch=max(1, INDICES_AT_ONCE // images),
        vectorized=True,
        paired=True,
        axis=-1,
        confidence_level=1 - LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    observed = _score_differences(*data)
    drawn = found.bootstrap_distribution
    tail = np.minimum((drawn <= 0).sum(-1), (drawn >= 0).sum(-1))
    p = np.minimum(1.0, 2 * (tail + 1) / (resamples + 1))
    return {
        name: Difference(
            "image bootstrap",
            (images, images),
            float(observed[k]),
            float(found.confidence_interval.low[k]),
            float(found.confidence_interval.high[k]),
            float(p[k]),
            detectable_difference(float(found.standard_error[k]), images - 1),
        )
        for k, name in enumerate(("mIoU", "oIoU"))
    }


def _score_differences(
    iou_difference: np.ndarray,
    n: np.ndarray,
    intersection_a: np.ndarray,
    union_a: np.ndarray,
    intersection_b: np.ndarray,
    union_b: np.ndarray,
    axis: int = -1,
) -> np.ndarray:
    """Return the differences in mIoU and oIoU of images along `axis`, stacked in front."""
    miou = iou_difference.sum(axis) / n.sum(axis)
    oiou_a = intersection_a.sum(axis) / np.maximum(union_a.sum(axis), 1)
    oiou_b = intersection_b.sum(axis) / np.maximum(union_b.sum(axis), 1)
    return np.stack([miou, oiou_a - oiou_b])
