"""Percentiles, fairness and histograms."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.report.stats import (
    jain,
    latency_spread,
    log_histogram,
    per_bin,
    percentile,
    rate_spread,
)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(
    values: list[float], percent: int
) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


def test_the_bad_end_of_latencies_is_high_and_that_of_rates_is_low() -> None:
    values = [float(value) for value in range(1, 101)]
    latency, rate = latency_spread(values), rate_spread(values)
    assert latency is not None
    assert (latency.p50, latency.p99, latency.worst) == (50, 99, 100)
    assert rate is not None
    assert (rate.p50, rate.p99, rate.worst) == (51, 2, 1)
    assert latency_spread([]) is None


def test_jains_index_is_1_for_equals_and_a_share_for_one_that_has_all() -> None:
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([1, 2, 3]) == pytest.approx(36 / (3 * 14))
    assert jain([]) is None
    assert jain([0, 0]) is None


@given(st.lists(st.floats(1e-6, 1e3)))
def test_a_histogram_has_every_value_once_and_no_gaps(values: list[float]) -> None:
    bins = log_histogram([0.0, *values])
    assert sum(each.count for each in bins) == len(values)
    for left, right in itertools.pairwise(bins):
        assert left.high == pytest.approx(right.low)


def test_times_are_counted_in_bins_and_those_outside_are_not() -> None:
    assert per_bin([0.9, 1.0, 1.4, 1.5, 2.9, 3.0], start=1.0, width=0.5, bins=4) == [2, 1, 0, 1]
