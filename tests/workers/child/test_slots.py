"""What slots hold, and which slot a prompt takes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.child.slots import WORTH, Slots
from workers.prompts.prefix import common_prefix

OTHER = [-1, -2, -3]
"""Tokens that begin no prompt of these tests."""


def prompt(length: int, start: int = 0) -> list[int]:
    """Return tokens, none of them twice."""
    return list(range(start, start + length))


def slots_that_hold(count: int, held: Mapping[int, list[int]]) -> Slots:
    """Return free slots. Those in `held` were released after the others, in its order."""
    slots = Slots(count)
    for _ in range(count):
        slots.take([])
    for slot in set(range(count)) - held.keys():
        slots.release(slot, [])
    for slot, tokens in held.items():
        slots.release(slot, tokens)
    return slots


def with_running(slots: Slots, slot: int) -> Slots:
    """Return the same slots, of which this one runs what it holds."""
    assert slots.take(slots.held(slot)) == slot
    return slots


# ---------------------------------------------------------------- common prefixes

FEW = st.lists(st.integers(0, 1), max_size=6)
LISTS = st.lists(st.integers(0, 2), max_size=300)
TEXTS = st.text(st.sampled_from("aé語🙂"), max_size=300)


def counted(one: Sequence[object], other: Sequence[object]) -> int:
    """Count the common prefix element by element."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@given(FEW, FEW)
def test_the_common_prefix_of_short_lists_is_what_counting_finds(
    one: list[int], other: list[int]
) -> None:
    assert common_prefix(one, other) == counted(one, other)


@given(LISTS, FEW, FEW)
def test_the_common_prefix_of_long_lists_is_what_counting_finds(
    common: list[int], one: list[int], other: list[int]
) -> None:
    assert common_prefix(common + one, common + other) == counted(common + one, common + other)


@given(TEXTS, TEXTS, TEXTS)
def test_texts_are_compared_by_characters(common: str, one: str, other: str) -> None:
    assert common_prefix(common + one, common + other) == counted(common + one, common + other)


@given(st.integers(1, 70), st.data())
def test_the_first_difference_is_found_wherever_it_is(length: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, length - 1))
    changed = prompt(length)
    changed[place] = -1  # what follows is equal again
    assert common_prefix(prompt(length), changed) == place


def test_a_list_and_its_prefix_have_the_whole_prefix_in_common() -> None:
    assert common_prefix(prompt(100), prompt(37)) == common_prefix(prompt(37), prompt(100)) == 37


# ---------------------------------------------------------------- what slots hold


def test_at_first_all_slots_are_free_and_empty() -> None:
    slots = Slots(3)
    assert slots.has_free
    assert [slots.held(slot) for slot in range(3)] == [[], [], []]
    assert list(slots.idle()) == []


def test_every_slot_is_taken_once_beginning_with_the_first() -> None:
    slots = Slots(3)
    assert [slots.take(prompt(20)) for _ in range(3)] == [0, 1, 2]
    assert not slots.has_free


def test_a_released_slot_is_free_and_holds_its_tokens() -> None:
    slots = Slots(1)
    slots.take(prompt(20))
    slots.release(0, prompt(22))
    assert slots.has_free
    assert slots.held(0) == prompt(22)
    assert list(slots.idle()) == [0]


def test_a_running_slot_is_not_idle_and_is_known_by_what_it_began_with() -> None:
    slots = with_running(slots_that_hold(2, {0: prompt(20), 1: OTHER}), 0)
    assert list(slots.idle()) == [1]
    assert slots.held(0) == prompt(20)


def test_a_slot_that_was_released_with_nothing_is_not_idle() -> None:
    slots = slots_that_hold(2, {0: [], 1: OTHER})
    assert list(slots.idle()) == [1]


# ---------------------------------------------------------------- which one is taken


def test_a_prompt_takes_the_slot_that_holds_most_of_its_beginning() -> None:
    slots = slots_that_hold(4, {0: prompt(30), 1: prompt(50), 2: prompt(40), 3: []})
    assert slots.take(prompt(60)) == 1


def test_what_a_slot_holds_behind_the_common_beginning_does_not_count() -> None:
    held = prompt(20) + prompt(20, start=1000)
    slots = slots_that_hold(3, {0: held, 1: prompt(21), 2: []})
    assert slots.take(prompt(60)) == 1


def test_of_slots_that_hold_the_same_the_least_recently_used_is_taken() -> None:
    slots = slots_that_hold(3, {1: prompt(30), 2: prompt(30), 0: prompt(30)})
    assert [slots.take(prompt(30)) for _ in range(3)] == [1, 2, 0]


@pytest.mark.parametrize(("common", "slot"), [(WORTH - 1, 0), (WORTH, 1)])
def test_a_common_beginning_counts_only_where_it_is_worth_it(common: int, slot: int) -> None:
    slots = slots_that_hold(2, {1: prompt(common)})
    assert slots.take(prompt(common) + prompt(60, start=1000)) == slot


@pytest.mark.parametrize(("common", "slot"), [(49, 0), (50, 1)])
def test_a_slot_that_holds_much_of_another_prompt_is_left_to_that(common: int, slot: int) -> None:
    slots = slots_that_hold(2, {1: prompt(100)})
    assert slots.take(prompt(common) + OTHER) == slot


def test_a_prompt_without_a_known_prefix_takes_an_empty_slot_however_recently_used() -> None:
    slots = slots_that_hold(3, {0: OTHER, 1: OTHER, 2: []})
    assert slots.take(prompt(60)) == 2


def test_if_no_slot_is_empty_the_least_recently_used_is_taken() -> None:
    slots = slots_that_hold(3, {1: OTHER, 2: OTHER * 30, 0: OTHER})
    assert [slots.take(prompt(60)) for _ in range(3)] == [1, 2, 0]


def test_use_makes_a_slot_the_last_to_be_taken() -> None:
    slots = slots_that_hold(3, {0: OTHER, 1: OTHER, 2: OTHER})
    slots.release(slots.take([]), OTHER)
    assert [slots.take(prompt(60)) for _ in range(3)] == [1, 2, 0]


@pytest.mark.parametrize(("distance", "is_taken"), [(1, True), (2, False)])
@pytest.mark.parametrize("side", [1, -1])
def test_a_slot_far_from_the_running_ones_is_not_taken_whatever_it_holds(
    distance: int, is_taken: bool, side: int
) -> None:
    slot = 5 + side * distance
    slots = with_running(slots_that_hold(11, {5: OTHER * 10, slot: prompt(60)}), 5)
    assert (slots.take(prompt(60)) == slot) == is_taken


def test_a_slot_between_running_ones_comes_first_whatever_it_holds() -> None:
    """Eight streams in slots with gaps between them take as long as twelve."""
    slots = slots_that_hold(6, {1: OTHER, 2: prompt(60), 3: OTHER * 10})
    for tokens in ([], OTHER * 10):  # slots 0 and 3: nothing is outside then but 4 and 5
        slots.take(tokens)
    running = [slot for slot in range(6) if slot not in slots._free]
    between = set(range(min(running), max(running))) - set(running)
    assert {slots.take([]) for _ in between} == between


def test_a_slot_next_to_one_running_slot_is_near() -> None:
    held = {0: OTHER * 10, 9: OTHER * 20, 10: prompt(60)}
    slots = slots_that_hold(11, held)
    slots.take(held[9])
    slots.take([])  # beside it
    assert slots.take(prompt(60)) == 10


def test_where_nothing_runs_every_slot_is_near() -> None:
    slots = slots_that_hold(9, {8: prompt(60)})
    assert slots.take(prompt(60)) == 8


def test_of_the_near_ones_the_best_is_taken() -> None:
    slots = with_running(slots_that_hold(9, {4: OTHER * 10, 3: prompt(20), 5: prompt(30)}), 4)
    assert slots.take(prompt(60)) == 5


PROMPTS = st.integers(0, 60).map(prompt) | st.integers(0, 60).map(lambda size: OTHER * size)


@given(st.integers(1, 9), st.lists(st.tuples(st.booleans(), st.integers(0, 8), PROMPTS)))
def test_in_any_order_of_use_a_slot_is_run_once_at_a_time_and_near_to_another(
    count: int, uses: list[tuple[bool, int, list[int]]]
) -> None:
    slots = Slots(count)
    running: set[int] = set()
    held: list[list[int]] = [[] for _ in range(count)]
    for is_take, number, tokens in uses:
        if is_take and len(running) < count:
            slot = slots.take(tokens)
            assert slot in set(range(count)) - running
            assert not running or min(running) - 1 <= slot <= max(running) + 1
            running.add(slot)
        elif not is_take and running:
            slot = sorted(running)[number % len(running)]
            slots.release(slot, tokens)
            running.remove(slot)
            held[slot] = tokens
        assert slots.has_free == (len(running) < count)
        assert [slots.held(slot) for slot in range(count)] == held
        assert set(slots.idle()) == {slot for slot in range(count) if held[slot]} - running
