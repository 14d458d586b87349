"""Histograms of steps: what the worker counts arrives in the front."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.histogram import Histogram
from shared.messages import Steps
from shared.steps import SECONDS, TOKENS, StepTally
from shared.values import Counts

STEP = st.tuples(
    st.sampled_from(["prefill", "decode", "embed"]), st.integers(1, 5000), st.floats(0, 100)
)


@given(st.lists(st.floats(0, 20), max_size=30))
def test_a_value_is_in_the_first_bucket_whose_bound_is_no_less(values: list[float]) -> None:
    bounds = (1, 2, 5, 10)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)

    below = list(itertools.accumulate(histogram.counts))
    assert below == [*(sum(value <= bound for value in values) for bound in bounds), len(values)]
    assert histogram.total == pytest.approx(sum(values))


def test_a_value_may_count_several_times() -> None:
    histogram = Histogram((1.0,))
    histogram.observe(0.5, 3)
    histogram.observe(2.0, 0)
    assert histogram.counts == [3, 0]
    assert histogram.total == 1.5


@given(st.lists(STEP, max_size=30), st.integers(0, 30))
def test_what_is_sent_in_two_parts_adds_up_to_the_whole(steps: list, cut: int) -> None:
    whole, worker, front = StepTally(), StepTally(), StepTally()
    for part in (steps[:cut], steps[cut:]):
        for step in part:
            whole.observe(*step)
            worker.observe(*step)
        for message in worker.take():
            front.add(message)

    assert worker.take() == []
    assert set(front.seconds) == set(whole.seconds)
    for ours, theirs in ((front.seconds, whole.seconds), (front.tokens, whole.tokens)):
        for kind, histogram in theirs.items():
            assert ours[kind].counts == histogram.counts
            assert ours[kind].total == pytest.approx(histogram.total)


def test_other_buckets_are_not_added() -> None:
    good = Counts((0,) * (len(SECONDS) + 1), 0.0)
    with pytest.raises(ValueError, match="shorter"):
        StepTally().add(Steps("decode", good, Counts((0,) * len(TOKENS), 0.0)))
