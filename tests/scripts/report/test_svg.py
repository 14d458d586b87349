"""Axes of plots."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scripts.report.svg import linear_axis, log_axis


@given(st.floats(1e-4, 1e7), st.floats(1.001, 1e5))
def test_axes_hold_their_values_between_a_few_ticks(low: float, factor: float) -> None:
    high = low * factor
    linear, log = linear_axis("", high), log_axis("", low, high)
    for axis in (linear, log):
        assert 0 <= axis.position(low) < axis.position(high) <= 1 + 1e-9
        assert len(axis.ticks) <= 12
        assert list(axis.ticks) == sorted(axis.ticks)
