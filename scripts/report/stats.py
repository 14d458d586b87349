"""Percentiles, fairness and histograms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], percent: int) -> float:
    """The lowest of the values that at least `percent` % of them do not exceed (nearest rank).

    Raises ValueError for no values.
    """
    return _nearest_rank(sorted(values), percent)


def _nearest_rank(ordered: Sequence[float], percent: int) -> float:
    if not ordered:
        raise ValueError("a percentile needs at least one value")
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)]


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of a quantity, from its good end to its bad end.

    A latency's bad end is its highest value, a rate's bad end is its lowest: 90 % of the values of
    a rate reach at least its p90.
    """

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    worst: float
    """The value at the bad end."""


def latency_spread(values: Iterable[float]) -> Spread | None:
    """The spread of values whose bad end is high; None for no values."""
    return _spread(sorted(values))


def rate_spread(values: Iterable[float]) -> Spread | None:
    """The spread of values whose bad end is low; None for no values."""
    return _spread(sorted(values, reverse=True))


def _spread(ordered: Sequence[float]) -> Spread | None:
    if not ordered:
        return None
    p50, p90, p95, p99 = (_nearest_rank(ordered, percent) for percent in (50, 90, 95, 99))
    mean = math.fsum(ordered) / len(ordered)
    return Spread(len(ordered), mean, p50, p90, p95, p99, ordered[-1])


def jain(values: Sequence[float]) -> float | None:
    """Jain's index of fairness: 1 if all values are equal, 1/n if one of n has everything.

    None if the sum of the values is 0.
    """
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares else None


@dataclass(frozen=True, slots=True)
class Bin:
    """The number of values in [low, high)."""

    low: float
    high: float
    count: int


MOST_BINS = 30
PER_DECADE = (100, 50, 20, 10, 5)
"""Numbers of bins for a factor of ten that a histogram may have."""


def log_histogram(values: Iterable[float]) -> list[Bin]:
    """Bins of equal width on a logarithmic scale, without gaps. Values of 0 are left out.

    They are as narrow as possible with at most 30 bins from the first percentile to the 99th.
    """
    logs = sorted(math.log10(value) for value in values if value > 0)
    if not logs:
        return []
    span = _nearest_rank(logs, 99) - _nearest_rank(logs, 1)
    per_decade = next((n for n in PER_DECADE if span * n <= MOST_BINS), PER_DECADE[-1])
    counts = Counter(math.floor(value * per_decade) for value in logs)
    return [
        Bin(10 ** (step / per_decade), 10 ** ((step + 1) / per_decade), counts[step])
        for step in range(min(counts), max(counts) + 1)
    ]


def per_bin(times: Iterable[float], start: float, width: float, bins: int) -> list[int]:
    """The number of times in each of `bins` bins. All have this width, the first is at `start`."""
    counts = [0] * bins
    for time in times:
        index = math.floor((time - start) / width)
        if 0 <= index < bins:
            counts[index] += 1
    return counts
