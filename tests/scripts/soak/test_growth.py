"""What counts as growth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from scripts.soak.growth import left_open, trend
from scripts.soak.monitor import QUANTITIES
from tests.scripts.soak.samples import REST, samples


@pytest.mark.parametrize(
    ("rss_at", "grows"),
    [
        (lambda at: 40.0, False),
        (lambda at: 40 + at * 0.1, True),
        (lambda at: 40 + 60 * (1 - 0.95**at), False),  # it warms up, and levels off
        (lambda at: 40.0 + 30 * (at % 20 == 0), False),  # peaks
        (lambda at: 40.0 + 20 * (at >= 100), False),  # a step
        (lambda at: 80 - at * 0.1, False),
        (lambda at: 40 + at * 0.1 - 30 * (at % 10 == 0), True),  # a leak with dips
    ],
)
def test_a_leak_goes_on_and_what_warms_up_levels_off(
    rss_at: Callable[[int], float], grows: bool
) -> None:
    assert trend(QUANTITIES[0], samples(rss_at)).grows is grows


def test_few_samples_are_not_judged() -> None:
    found = trend(QUANTITIES[0], samples(lambda at: 40 + 30 * at)[:8])
    assert found.growth is None
    assert found.grows is False


def test_files_that_stay_open_are_reported() -> None:
    assert left_open(REST, replace(REST, front_files=28, front_rss=400.0)) == []
    assert left_open(REST, replace(REST, front_files=29)) == [
        "front, open files: 20 at rest before, 29 after"
    ]
