"""Test means, paired differences and power against numbers computed by hand and by scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from orchestrator.reporting import significance


def test_mean_interval_by_hand_and_against_scipy():
    got = significance.mean_interval([1, 2, 3])
    assert (got.n, got.mean, got.sd) == (3, 2, 1)
    assert got.high - got.mean == pytest.approx(
        4.302653 / math.sqrt(3), abs=1e-6
    )  # t(0.975, 2) = 4.302653
    values = [0.51, 0.55, 0.49, 0.6]
    low, high = stats.t.interval(0.9, 3, np.mean(values), stats.sem(values))
    assert significance.mean_interval(values, 0.9)[2:4] == pytest.approx((low, high))


def test_one_value_has_a_mean_and_no_interval_and_none_has_neither():
    one, none = significance.mean_interval([0.5, math.nan]), significance.mean_interval([])
    assert one.n == 1 and one.mean == 0.5 and math.isnan(one.low) and not one.excludes_zero
    assert none.n == 0 and math.isnan(none.mean)


def test_paired_difference_uses_shared_seeds_and_agrees_with_the_paired_t_test():
    a, b = {1: 0.6, 2: 0.7, 3: 0.65, 9: 0.1}, {1: 0.5, 2: 0.64, 3: 0.58, 8: 0.9}
    got = significance.paired_difference(a, b)
    p = stats.ttest_rel([0.6, 0.7, 0.65], [0.5, 0.64, 0.58]).pvalue
    assert got.n == 3 and got.mean == pytest.approx(0.23 / 3)
    assert got.excludes_zero == (p < 0.05)
    assert significance.paired_difference(a, b, 1 - p - 1e-4).excludes_zero
    assert not significance.paired_difference(a, b, 1 - p + 1e-4).excludes_zero


@pytest.mark.parametrize("n", [2, 3, 5, 34])
def test_smallest_detectable_difference_has_the_power_it_promises(n):
    d = significance.smallest_detectable_difference(2.0, n) / 2.0 * math.sqrt(n)
    critical = stats.t.ppf(0.975, n - 1)
    assert stats.nct.sf(critical, n - 1, d) + stats.nct.cdf(-critical, n - 1, d) == pytest.approx(
        0.8, abs=1e-4
    )


def test_smallest_detectable_difference_of_a_known_design():
    assert significance.smallest_detectable_difference(1, 34) == pytest.approx(
        0.5, abs=0.006
    )  # power tables: d = 0.5, 34 pairs
    assert (
        math.isnan(significance.smallest_detectable_difference(1, 1))
        and significance.smallest_detectable_difference(0, 3) == 0
    )


def test_pooled_sd_weighs_groups_by_their_degrees_of_freedom():
    assert significance.pooled_sd([[1, 3], [0, 2, 4], [7]]) == pytest.approx(
        math.sqrt((1 * 2 + 2 * 4) / 3)
    )
    assert math.isnan(significance.pooled_sd([[1], []]))
