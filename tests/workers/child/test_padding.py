"""The batch sizes of decode steps: as measured at first, then as later steps teach."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.child.padding import FIRST_TRIAL, LAST_GAP, BatchPadding

TIMES = {1: 43.0, 2: 64.0, 3: 84.0, 4: 72.0, 7: 131.0, 8: 137.0, 15: 229.0, 16: 182.0}
"""Milliseconds on a CPU with AVX-512: 16 rows are one tile, 15 are 12 and 3 single ones."""


def steps(
    padding: BatchPadding, sequences: int, takes: Callable[[int, int], float], count: int
) -> list[int]:
    """Return the batch sizes of `count` steps. `takes`: the time by batch size and step number."""
    chosen = []
    for number in range(count):
        width = padding.width(sequences)
        chosen.append(width)
        padding.observe(sequences, takes(width, number))
    return chosen


def test_fewer_sequences_than_a_tile_are_computed_as_a_whole_one_where_that_is_faster() -> None:
    padding = BatchPadding(TIMES)
    found = [padding.width(n) for n in range(1, 17)]
    assert found == [1, 2, 4, 4, 5, 6, 7, 8, 9, 10, 11, 16, 16, 16, 16, 16]


def test_beyond_the_measured_sizes_nothing_is_padded() -> None:
    assert [BatchPadding({}).width(n) for n in (1, 7)] == [1, 7]
    assert [BatchPadding({1: 0.04, 2: 0.01}).width(n) for n in (1, 2, 3)] == [2, 2, 3]


def test_a_measurement_that_was_disturbed_is_overcome() -> None:
    """The first sizes were measured while another program was busy."""
    padding = BatchPadding({**TIMES, 1: 210.0, 2: 190.0, 3: 160.0})
    assert padding.width(1) == 4
    chosen = steps(padding, 1, lambda width, _: TIMES[width], 60)
    assert chosen[-20:] == [1] * 20


@pytest.mark.parametrize("sequences", [1, 3, 7, 15])
def test_a_correct_measurement_is_kept_and_seldom_tried_again(sequences: int) -> None:
    padding = BatchPadding(TIMES)
    first = padding.width(sequences)
    chosen = steps(padding, sequences, lambda width, _: TIMES[width], 2000)
    others = [place for place, width in enumerate(chosen) if width != first]
    assert 5 < len(others) < 15
    assert others[0] == FIRST_TRIAL
    assert others[-1] - others[-2] == LAST_GAP + 1


def test_a_size_that_becomes_slower_is_not_used_any_more() -> None:
    """Idle sequences with long contexts are no longer worth their tile."""
    padding = BatchPadding(TIMES)
    chosen = steps(padding, 15, lambda width, _: 182.0 if width == 16 else 229.0, 300)
    assert chosen[-1] == 16
    chosen = steps(padding, 15, lambda width, _: 260.0 if width == 16 else 229.0, 1200)
    assert chosen[-200:].count(15) > 190


def test_a_slow_step_now_and_then_changes_nothing() -> None:
    padding = BatchPadding(TIMES)
    chosen = steps(padding, 1, lambda width, n: TIMES[width] * (3 if n % 5 == 0 else 1), 2000)
    assert chosen.count(1) > 1980


MEASURED = st.dictionaries(st.integers(1, 64), st.floats(1e-6, 10.0), min_size=1, max_size=8)


@given(MEASURED, MEASURED)
def test_a_size_is_the_own_one_or_a_measured_one_and_the_faster_one_wins(
    measured: Mapping[int, float], real: Mapping[int, float]
) -> None:
    for sequences in range(1, max(measured) + 2):
        chosen = steps(
            BatchPadding(measured), sequences, lambda width, _: real.get(width, 1.0), 300
        )
        assert all(w == sequences or (w > sequences and w in measured) for w in chosen)
        used = max(set(chosen), key=chosen[-9:].count)
        assert all(real.get(used, 1.0) * 0.9 <= real.get(other, 1.0) for other in set(chosen))
