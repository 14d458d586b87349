"""Lengths: how they are written, and how they are distributed."""

from __future__ import annotations

import random

import pytest

from scripts.loadtest.lengths import BadPlan, Fixed, Lognormal, Uniform, parse_lengths
from scripts.report.stats import percentile


def test_lengths_are_as_they_are_written() -> None:
    assert parse_lengths("50") == Fixed(50)
    assert parse_lengths("uniform:10-200") == Uniform(10, 200)
    assert parse_lengths("lognormal:100,0.8") == Lognormal(100, 0.8)
    assert parse_lengths("lognormal:100,0.8,300") == Lognormal(100, 0.8, 300)


@pytest.mark.parametrize(
    "text", ["0", "-1", "x", "", "1.5", "uniform:5", "uniform:9-3", "uniform:0-3", "lognormal:0,1",
             "lognormal:9", "lognormal:9,-1", "lognormal:9,1,0", "normal:3,4", "lognormal:9,nan"]
)  # fmt: skip
def test_lengths_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(BadPlan, match="is not a length: write N, uniform:LOW-HIGH"):
        parse_lengths(text)


def test_lengths_are_distributed_as_they_say() -> None:
    chance = random.Random(1)
    uniform = [Uniform(3, 5).draw(chance) for _ in range(1000)]
    assert set(uniform) == {3, 4, 5}
    lognormal = [Lognormal(100, 0.8, 300).draw(chance) for _ in range(4000)]
    assert 90 < percentile(lognormal, 50) < 110
    assert max(lognormal) == 300
    assert min(lognormal) >= 1
