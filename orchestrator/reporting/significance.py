"""Is A above B, by how much, how sure: intervals and tests over seeds, the bootstrap over images, correction for many comparisons. No files.

Every score is a share in [0, 1]; what cannot be computed is NaN. The tests are scipy's; Holm's correction, which it lacks, is written out.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

NAN = math.nan

LEVEL = 0.05

POWER = 0.8

RESAMPLES = 9999

CHUNK = 2_000_000

"""Indices drawn at once in a bootstrap: bounds its memory."""


class Interval(NamedTuple):
    """A mean with its t interval. `sd` is the sample deviation (n - 1); low, high, sd are NaN below two values."""

    n: int
    mean: float
    low: float
    high: float
    sd: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Mean and two-sided Student t interval, mean +- t(n - 1) sd / sqrt(n); non-finite values are left out."""
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
    """t interval of a - b over the seeds both have; `a` and `b` map seed -> score."""
    return mean_interval([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())], level)


def pooled_sd(groups: Iterable[Iterable[float]]) -> float:
    """The deviation within groups, sqrt(sum (n - 1) sd^2 / sum (n - 1)); NaN where no group has two values."""
    parts = [i for i in map(mean_interval, groups) if i.n > 1]
    freedom = sum(i.n - 1 for i in parts)
    return math.sqrt(sum((i.n - 1) * i.sd**2 for i in parts) / freedom) if freedom else NAN


def smallest_detectable_difference(sd: float, n: int) -> float:
    """The true mean difference a two-sided paired t test on n pairs finds four times in five, in the unit of `sd`. NaN if n < 2."""
    return _shift(n - 1) * sd / math.sqrt(n) if n > 1 and math.isfinite(sd) else NAN


def detectable(error: float, freedom: float) -> float:
    """The true difference that a two-sided t test at 0.05 finds four times in five; `error` is the standard error of the difference.

    NaN without a degree of freedom.
    """
    return _shift(freedom) * error if freedom > 0 and math.isfinite(error) else NAN


@functools.lru_cache(maxsize=256)
def _shift(freedom: float) -> float:
    """The shift d of the noncentral t at which P(|T| > t(1 - LEVEL / 2, freedom)) = POWER.

    The probability is a mean over quantiles of the observed deviation, as scipy's nct is NaN at large shifts.
    """
    critical = float(stats.t.ppf(1 - LEVEL / 2, freedom))
    bars = critical * stats.chi.ppf((np.arange(4000) + 0.5) / 4000, freedom) / math.sqrt(freedom)

    def shortfall(d: float) -> float:
        return float(np.mean(special.ndtr(d - bars) + special.ndtr(-d - bars))) - POWER

    return float(optimize.brentq(shortfall, 0.0, 10 + 3 * critical))


class Difference(NamedTuple):
    """a - b with its 95 % interval, two-sided p, and the true difference that would be found four times in five."""

    test: str
    """paired t, Welch t or image bootstrap; none: only `difference` is known."""
    n: tuple[int, int]
    """Seeds (or images) of a and of b."""
    difference: float
    low: float
    high: float
    p: float
    detectable: float


def seed_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Test of mean(a) - mean(b), each seed -> score: Student's paired t over two or more common seeds, else Welch's; none below two seeds a side."""
    common = sorted(a.keys() & b.keys())
    if len(common) > 1:
        return _paired([a[s] for s in common], [b[s] for s in common])
    if len(a) > 1 and len(b) > 1:
        return _welch(list(a.values()), list(b.values()))
    if common:  # one seed in common and no deviation on one of the sides
        return Difference("none", (1, 1), a[common[0]] - b[common[0]], NAN, NAN, NAN, NAN)
    return Difference(
        "none",
        (len(a), len(b)),
        mean_interval(a.values()).mean - mean_interval(b.values()).mean,
        NAN,
        NAN,
        NAN,
        NAN,
    )


def _paired(a: list[float], b: list[float]) -> Difference:
    i = mean_interval(x - y for x, y in zip(a, b, strict=True))
    p = _p(i.mean, i.sd, lambda: stats.ttest_rel(a, b).pvalue)
    return Difference(
        "paired t", (i.n, i.n), i.mean, i.low, i.high, p, smallest_detectable_difference(i.sd, i.n)
    )


def _welch(a: list[float], b: list[float]) -> Difference:
    one, two = mean_interval(a), mean_interval(b)
    mean, error = (
        one.mean - two.mean,
        math.hypot(one.sd / math.sqrt(one.n), two.sd / math.sqrt(two.n)),
    )
    if error == 0:
        return Difference("Welch t", (one.n, two.n), mean, mean, mean, _p(mean, 0.0, None), 0.0)
    found = stats.ttest_ind(a, b, equal_var=False)
    low, high = found.confidence_interval(1 - LEVEL)
    return Difference(
        "Welch t",
        (one.n, two.n),
        mean,
        float(low),
        float(high),
        float(found.pvalue),
        detectable(error, float(found.df)),
    )


def _p(mean: float, sd: float, test) -> float:
    """Without any deviation a t test divides by zero: a difference is then certain, its absence too."""
    return float(test()) if sd > 0 else float(mean == 0)


def holm(p: list[float]) -> list[float]:
    """p adjusted for all of them together (Holm 1979): the k-th smallest times what is left, never below one before it. NaN stays, uncounted."""
    adjusted, above = list(p), 0.0
    known = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    for rank, (value, i) in enumerate(known):
        above = max(above, min(1.0, (len(known) - rank) * value))
        adjusted[i] = above
    return adjusted


class ImageSums(NamedTuple):
    """Of one checkpoint, (images,) float64 each, in one order of the images."""

    iou: np.ndarray
    """Sum of I/U over the image's sentences."""
    n: np.ndarray
    """Its sentences."""
    intersection: np.ndarray
    union: np.ndarray
    """Pixels, summed over its sentences."""


def image_difference(
    a: ImageSums, b: ImageSums, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """Paired bootstrap over images of a - b.   -> {"mIoU": ..., "oIoU": ...}

    An image keeps its sentences and both checkpoints' predictions together: they are not independent. Percentile interval (Efron), p from
    the share of resamples at or beyond 0 on the smaller side, doubled. Needs two images.
    """

    def statistic(iou, n, ia, ua, ib, ub, axis=-1):
        total = [x.sum(axis) for x in (iou, n, ia, ua, ib, ub)]
        return np.stack(
            [
                total[0] / total[1],
                total[2] / np.maximum(total[3], 1) - total[4] / np.maximum(total[5], 1),
            ]
        )

    data = (a.iou - b.iou, a.n, a.intersection, a.union, b.intersection, b.union)
    images = len(a.n)
    found = stats.bootstrap(
        data,
        statistic,
        n_resamples=resamples,
        batch=max(1, CHUNK // images),
        vectorized=True,
        paired=True,
        axis=-1,
        confidence_level=1 - LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    observed, drawn = statistic(*data), found.bootstrap_distribution
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
            detectable(float(found.standard_error[k]), images - 1),
        )
        for k, name in enumerate(("mIoU", "oIoU"))
    }
