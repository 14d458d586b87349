"""The order of runs."""

from __future__ import annotations

from scripts.loadtest.run import Closed, turns


def test_two_servers_take_turns_and_each_is_first_as_often() -> None:
    order = [(turn.round, turn.target) for turn in turns([Closed(1)], targets=2, rounds=4)]
    assert order == [(0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1), (3, 1), (3, 0)]
