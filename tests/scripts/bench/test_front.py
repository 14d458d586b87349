"""What the report of the figure `front` says."""

from __future__ import annotations

import pytest

from scripts.bench.front import describe_limit


@pytest.mark.parametrize(
    ("front", "generator", "sentence"),
    [
        (0.99, 0.1, "was not the bottleneck; what limited the rate: front"),
        (0.5, 0.95, "was the bottleneck; what limited the rate: load generator"),
        (0.8, 0.5, "was not the bottleneck; what limited the rate: the 2 cores, all busy"),
        (0.2, 0.1, "was not the bottleneck; what limited the rate: none of the three"),
    ],
)
def test_the_report_says_what_limited_the_front(
    front: float, generator: float, sentence: str
) -> None:
    shares = {"front": front, "workers": 0.6, "load generator": generator}
    assert sentence in describe_limit(shares, cores=2)
