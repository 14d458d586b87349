"""How runs are repeated and compared."""

from __future__ import annotations

import itertools

from scripts.bench.job import ratios, repeat, take_turns


def test_the_warm_up_does_not_count() -> None:
    numbers = itertools.count()
    assert repeat(3, lambda: next(numbers)) == [1, 2, 3]


def test_two_things_take_turns_and_are_compared_pair_by_pair() -> None:
    numbers = itertools.count(1)
    first, second = take_turns(2, lambda: next(numbers), lambda: next(numbers))
    assert (first, second) == ([3, 5], [4, 6])
    assert ratios(second, first) == [4 / 3, 6 / 5]
