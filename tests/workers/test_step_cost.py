"""What steps are expected to take: the measured curve, its correction, and its measuring."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.messages import ModelInfo
from workers.engine import Feed
from workers.step_cost import LARGEST_SURPRISE, LEARNING_RATE, TILES, StepCost, measure

CURVE = {1: 0.04, 4: 0.06, 8: 0.11, 16: 0.15}


def test_a_measured_size_is_expected_as_measured_and_others_on_the_line_between() -> None:
    cost = StepCost(CURVE)
    assert [cost.expected(size, 1) for size in CURVE] == list(CURVE.values())
    assert cost.expected(12, 1) == pytest.approx(0.13)
    assert cost.expected(64, 1) == pytest.approx(0.60)  # in proportion to the largest


def test_every_further_sequence_adds_its_own() -> None:
    cost = StepCost(CURVE, each_sequence_s=0.005)
    assert cost.expected(4, 4) == pytest.approx(0.075)
    assert cost.expected(4, 0) == cost.expected(4, 1) == 0.06


def test_a_measurement_that_was_disturbed_is_made_plausible() -> None:
    cost = StepCost({1: 0.04, 2: 9.0, 4: 0.01})
    assert cost.expected(2, 1) == pytest.approx(0.04 * 2 * TILES)
    assert cost.expected(4, 1) == cost.expected(2, 1)  # more tokens never take less


@given(st.floats(0.0, 3.0), st.integers(1, 600), st.integers(0, 16), st.floats(0.3, 3.0))
def test_the_tokens_within_a_time_are_the_most_that_are_expected_to_fit(
    seconds: float, most: int, sequences: int, drift: float
) -> None:
    cost = StepCost(CURVE, each_sequence_s=0.005)
    cost.observe(4, 1, 0.06 * drift)
    tokens = cost.tokens_within(seconds, most, sequences)
    assert 0 <= tokens <= most
    assert tokens == 0 or cost.expected(tokens, sequences) <= seconds
    assert tokens == most or cost.expected(tokens + 1, sequences) > seconds


TABLES = st.dictionaries(st.integers(1, 600), st.floats(1e-6, 10.0), min_size=1, max_size=8)


@given(TABLES, st.integers(1, 1200), st.integers(0, 300), st.integers(0, 8))
def test_whatever_was_measured_more_tokens_are_never_expected_to_take_less(
    measured: dict[int, float], tokens: int, more: int, sequences: int
) -> None:
    cost = StepCost(measured, each_sequence_s=0.005)
    least = cost.expected(tokens, sequences) * (1 - 1e-9)  # but for rounding
    assert cost.expected(tokens + more, sequences) >= least
    assert cost.expected(tokens, sequences + 1) >= least


@given(TABLES)
def test_whatever_was_measured_no_size_is_much_worse_than_in_proportion(
    measured: dict[int, float],
) -> None:
    cost = StepCost(measured)
    sizes = sorted(measured)
    for smaller, size in itertools.pairwise(sizes):
        in_proportion = cost.expected(smaller, 1) * size / smaller
        assert cost.expected(size, 1) <= in_proportion * TILES * (1 + 1e-9)
    assert cost.expected(sizes[0], 1) == measured[sizes[0]]


def test_a_measurement_within_reason_is_left_as_it_is() -> None:
    cost = StepCost({1: 0.04, 2: 0.04 * 2 * TILES - 0.001})
    assert cost.expected(2, 1) == 0.04 * 2 * TILES - 0.001


def test_no_tokens_fit_into_less_than_the_smallest_step() -> None:
    assert StepCost(CURVE).tokens_within(0.039, 512, 1) == 0


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_it_follows_a_machine_that_becomes_slower_or_faster(factor: float) -> None:
    cost = StepCost(CURVE)
    for _ in range(40):
        cost.observe(8, 1, 0.11 * factor)
    assert cost.expected(16, 1) == pytest.approx(0.15 * factor, rel=0.05)


def test_one_wild_step_moves_it_by_a_bounded_factor() -> None:
    cost = StepCost(CURVE)
    cost.observe(8, 1, 1000.0)
    bound = 1 + LEARNING_RATE * (LARGEST_SURPRISE - 1)
    assert cost.expected(8, 1) == pytest.approx(0.11 * bound)


def test_one_step_that_took_no_time_moves_it_by_a_bounded_factor() -> None:
    cost = StepCost(CURVE)
    cost.observe(8, 1, 0.0)
    assert cost.expected(8, 1) == pytest.approx(0.11 * (1 - LEARNING_RATE))


def test_an_outlier_is_forgotten_within_some_steps() -> None:
    cost = StepCost(CURVE)
    cost.observe(8, 1, 1000.0)
    for _ in range(15):
        cost.observe(8, 1, 0.11)
    assert cost.expected(8, 1) == pytest.approx(0.11, rel=0.05)


def test_steps_of_several_sequences_teach_as_much_as_those_of_one() -> None:
    cost = StepCost(CURVE, each_sequence_s=0.005)
    for _ in range(40):
        cost.observe(4, 4, 0.075 * 2)
    assert cost.expected(4, 4) == pytest.approx(0.075 * 2, rel=0.01)
    assert cost.expected(16, 1) == pytest.approx(0.15 * 2, rel=0.01)


def test_a_step_beyond_the_measured_sizes_teaches_nothing() -> None:
    cost = StepCost(CURVE)
    cost.observe(17, 1, 100.0)
    assert cost.expected(8, 1) == 0.11


class TimedEngine:
    """Takes 10 ms a token and 5 ms a sequence on its own clock; every first time 7 ms more."""

    max_batch = 64

    def __init__(self, slots: int = 8, context: int = 512) -> None:
        self.info = ModelInfo("timed", "timed", context, 10, slots, 64, ())
        self.now = 0.0
        self.sizes: list[int] = []
        self.held: set[int] = set()

    def clock(self) -> float:
        return self.now

    def decode(self, feeds: Sequence[Feed]) -> None:
        assert not self.held, "a slot was not empty"
        self.held = {feed.slot for feed in feeds}
        size = sum(len(feed.tokens) for feed in feeds)
        self.now += 0.010 * size + 0.005 * len(feeds) + (0.007 if size not in self.sizes else 0)
        self.sizes.append(size)

    def forget(self, slot: int) -> None:
        self.held.discard(slot)


def test_measuring_takes_the_fastest_and_stops_after_the_first_size_over_the_limit() -> None:
    engine = TimedEngine()
    cost = measure(engine, engine.clock, [1, 2, 3], 0.1)  # type: ignore[arg-type]
    assert max(engine.sizes) == 12  # 125 ms
    assert cost.expected(4, 1) == pytest.approx(0.045)
    assert cost.expected(4, 3) == pytest.approx(0.055)
    assert not engine.held


def test_measuring_keeps_within_the_batch_and_the_context() -> None:
    small = TimedEngine(context=10)
    measure(small, small.clock, [1], 100)  # type: ignore[arg-type]
    assert max(small.sizes) == 8
    large = TimedEngine()
    measure(large, large.clock, [1], 100)  # type: ignore[arg-type]
    assert max(large.sizes) == 64


def test_a_step_that_takes_long_is_not_repeated() -> None:
    engine = TimedEngine()
    measure(engine, engine.clock, [1], 0.1)  # type: ignore[arg-type]
    assert [engine.sizes.count(size) for size in (1, 2, 8, 12)] == [3, 3, 2, 1]


def test_measuring_stays_within_a_batch_that_is_smaller_than_the_sequences() -> None:
    engine = TimedEngine()
    engine.max_batch = 2
    measure(engine, engine.clock, [1], 100)  # type: ignore[arg-type]
    assert max(engine.sizes) == 2
    assert not engine.held


def test_an_engine_of_one_slot_is_measured_too() -> None:
    engine = TimedEngine(slots=1)
    cost = measure(engine, engine.clock, [1], 0.1)  # type: ignore[arg-type]
    assert cost.expected(1, 1) == pytest.approx(0.015)
