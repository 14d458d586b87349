"""Expected durations of steps: the measured curves, their correction, and the measuring."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.values import ModelInfo
from workers.child.step_cost import (
    LARGEST_SURPRISE,
    LEARNING_RATE,
    TILES,
    Curve,
    StepCost,
    decode_cost,
    measure,
)
from workers.engines.base import Feed

MEASURED = {1: 0.04, 4: 0.06, 8: 0.11, 16: 0.15}


def test_a_measured_size_is_expected_as_measured_and_others_on_the_line_between() -> None:
    curve = Curve(MEASURED)
    assert [curve.expected(size) for size in MEASURED] == list(MEASURED.values())
    assert curve.expected(12) == pytest.approx(0.13)
    assert curve.expected(64) == pytest.approx(0.60)  # in proportion to the largest


def test_a_step_that_carries_nothing_takes_no_time() -> None:
    assert Curve(MEASURED).expected(0) == 0.0


def test_a_measurement_that_was_disturbed_is_made_plausible() -> None:
    curve = Curve({1: 0.04, 2: 9.0, 4: 0.01})
    assert curve.expected(2) == pytest.approx(0.04 * 2 * TILES)
    assert curve.expected(4) == curve.expected(2)  # more tokens never take less


@given(st.floats(0.0, 3.0), st.integers(1, 600), st.floats(0.3, 3.0))
def test_the_size_within_a_time_is_the_largest_that_is_expected_to_fit(
    seconds: float, most: int, drift: float
) -> None:
    curve = Curve(MEASURED)
    curve.observe(4, 0.06 * drift)
    size = curve.most_within(seconds, most)
    assert 0 <= size <= most
    assert size == 0 or curve.expected(size) <= seconds
    assert size == most or curve.expected(size + 1) > seconds


TABLES = st.dictionaries(st.integers(1, 600), st.floats(1e-6, 10.0), min_size=1, max_size=8)


@given(TABLES, st.integers(1, 1200), st.integers(0, 300))
def test_whatever_was_measured_a_larger_size_is_never_expected_to_take_less(
    measured: dict[int, float], size: int, more: int
) -> None:
    curve = Curve(measured)
    assert curve.expected(size + more) >= curve.expected(size) * (1 - 1e-9)  # but for rounding


@given(TABLES)
def test_whatever_was_measured_no_size_is_much_worse_than_in_proportion(
    measured: dict[int, float],
) -> None:
    curve = Curve(measured)
    sizes = sorted(measured)
    for smaller, size in itertools.pairwise(sizes):
        in_proportion = curve.expected(smaller) * size / smaller
        assert curve.expected(size) <= in_proportion * TILES * (1 + 1e-9)
    assert curve.expected(sizes[0]) == measured[sizes[0]]


def test_a_measurement_within_reason_is_left_as_it_is() -> None:
    curve = Curve({1: 0.04, 2: 0.04 * 2 * TILES - 0.001})
    assert curve.expected(2) == 0.04 * 2 * TILES - 0.001


def test_nothing_fits_into_less_than_the_smallest_step() -> None:
    assert Curve(MEASURED).most_within(0.039, 512) == 0


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_it_follows_a_machine_that_becomes_slower_or_faster(factor: float) -> None:
    curve = Curve(MEASURED)
    for _ in range(40):
        curve.observe(8, 0.11 * factor)
    assert curve.expected(16) == pytest.approx(0.15 * factor, rel=0.05)


def test_one_wild_step_moves_it_by_a_bounded_factor() -> None:
    curve = Curve(MEASURED)
    curve.observe(8, 1000.0)
    bound = 1 + LEARNING_RATE * (LARGEST_SURPRISE - 1)
    assert curve.expected(8) == pytest.approx(0.11 * bound)


def test_one_step_that_took_no_time_moves_it_by_a_bounded_factor() -> None:
    curve = Curve(MEASURED)
    curve.observe(8, 0.0)
    assert curve.expected(8) == pytest.approx(0.11 * (1 - LEARNING_RATE))


def test_an_outlier_is_forgotten_within_some_steps() -> None:
    curve = Curve(MEASURED)
    curve.observe(8, 1000.0)
    for _ in range(15):
        curve.observe(8, 0.11)
    assert curve.expected(8) == pytest.approx(0.11, rel=0.05)


def test_a_step_beyond_the_measured_sizes_teaches_nothing() -> None:
    curve = Curve(MEASURED)
    curve.observe(17, 100.0)
    assert curve.expected(8) == 0.11


def test_fewer_sequences_than_a_tile_take_no_longer_than_the_whole_one() -> None:
    """Times of a CPU with AVX-512: 16 rows are one tile, 15 are 12 and 3 single ones."""
    curve = decode_cost({1: 43, 2: 64, 3: 84, 4: 72, 7: 131, 8: 137, 15: 229, 16: 182})
    assert curve.expected(3) == curve.expected(4) == 72
    assert curve.expected(15) == curve.expected(16) == 182
    assert curve.expected(8) == 137


def test_the_log_names_both_kinds_of_steps() -> None:
    cost = StepCost(decode=Curve({1: 0.04}), prefill=Curve({8: 0.11, 16: 0.15}))
    assert str(cost) == "decode 1: 40.0 ms; prefill 8: 110.0 ms, 16: 150.0 ms"


class TimedEngine:
    """Takes 10 ms a token and 5 ms a sequence of its own clock; each first time 7 ms more."""

    max_batch = 64

    def __init__(self, slots: int = 8, context: int = 512) -> None:
        self.info = ModelInfo("timed", "timed", context, 10, slots, 64, ())
        self.now = 0.0
        self.steps: list[tuple[int, int]] = []
        """(sequences, tokens) of each step."""
        self.held: set[int] = set()

    @property
    def sizes(self) -> list[int]:
        return [tokens for _, tokens in self.steps]

    def clock(self) -> float:
        return self.now

    def decode(self, feeds: Sequence[Feed]) -> None:
        assert not self.held, "a slot was not empty"
        self.held = {feed.slot for feed in feeds}
        step = len(feeds), sum(len(feed.tokens) for feed in feeds)
        self.now += 0.010 * step[1] + 0.005 * step[0] + (0.007 if step not in self.steps else 0)
        self.steps.append(step)

    def truncate(self, slot: int, length: int) -> int:
        assert length == 0
        self.held.discard(slot)
        return 0


def test_measuring_takes_the_fastest_and_stops_after_the_first_size_over_the_limit() -> None:
    engine = TimedEngine()
    cost = measure(engine, engine.clock, [1, 2, 3], 0.1)  # type: ignore[arg-type]
    assert max(engine.sizes) == 12  # 125 ms
    assert cost.prefill.expected(4) == pytest.approx(0.045)
    assert cost.decode.expected(4) == pytest.approx(0.060)
    assert not engine.held


def test_decoding_is_measured_up_to_all_slots() -> None:
    engine = TimedEngine(slots=5)
    measure(engine, engine.clock, [1], 100)  # type: ignore[arg-type]
    assert max(sequences for sequences, _ in engine.steps) == 4  # the largest size below
    assert 3 in [sequences for sequences, _ in engine.steps]


def test_measuring_keeps_within_the_batch_and_the_context() -> None:
    small = TimedEngine(context=10)
    measure(small, small.clock, [1], 100)  # type: ignore[arg-type]
    assert max(small.sizes) == 8
    large = TimedEngine()
    measure(large, large.clock, [1], 100)  # type: ignore[arg-type]
    assert max(large.sizes) == 64


def test_a_step_that_takes_long_is_not_repeated() -> None:
    engine = TimedEngine(slots=1)
    measure(engine, engine.clock, [1], 0.1)  # type: ignore[arg-type]
    # The first is of both kinds: of one sequence, and of one token.
    assert [engine.sizes.count(size) for size in (1, 2, 8, 12)] == [6, 3, 2, 1]


def test_measuring_stays_within_a_batch_that_is_smaller_than_the_sequences() -> None:
    engine = TimedEngine()
    engine.max_batch = 2
    measure(engine, engine.clock, [1], 100)  # type: ignore[arg-type]
    assert max(engine.sizes) == 2
    assert not engine.held


def test_an_engine_of_one_slot_is_measured_too() -> None:
    engine = TimedEngine(slots=1)
    cost = measure(engine, engine.clock, [1], 0.1)  # type: ignore[arg-type]
    assert cost.decode.expected(1) == pytest.approx(0.015)
