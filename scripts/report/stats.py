"""Percentiles, fairness, histograms: what many times have in common."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], percent: int) -> float:
    """The least of the values that at least so many per cent of them do not exceed.

    ValueError without any.
    """
    return _nearest_rank(sorted(values), percent)


def _nearest_rank(ordered: Sequence[float], percent: int) -> float:
    if not ordered:
        raise ValueError("no values have no percentile")
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)]


@dataclass(frozen=True, slots=True)
class Spread:
    """How a quantity is distributed, from its good end to its bad one: `worst` is the last.

    A latency's bad end is the high one, a rate's the low one: p90 of a rate is what 90 % of its
    values reach at the least.
    """

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    worst: float


def latency_spread(values: Iterable[float]) -> Spread | None:
    """Of values of which the high ones are bad; None without any."""
    return _spread(sorted(values))


def rate_spread(values: Iterable[float]) -> Spread | None:
    """Of values of which the low ones are bad; None without any."""
    return _spread(sorted(values, reverse=True))


def _spread(ordered: Sequence[float]) -> Spread | None:
    if not ordered:
        return None
    p50, p90, p95, p99 = (_nearest_rank(ordered, percent) for percent in (50, 90, 95, 99))
    mean = math.fsum(ordered) / len(ordered)
    return Spread(len(ordered), mean, p50, p90, p95, p99, ordered[-1])


def jain(values: Sequence[float]) -> float | None:
    """Jain's index of fairness: 1 where all are alike, 1/n where one of n has everything.

    None where there is nothing to share.
    """
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares else None


@dataclass(frozen=True, slots=True)
class Bin:
    """How many values are in [low, high)."""

    low: float
    high: float
    count: int


MOST_BINS = 30
PER_DECADE = (100, 50, 20, 10, 5)


def log_histogram(values: Iterable[float]) -> list[Bin]:
    """Bins of equal width on a logarithmic scale, without gaps. Zeros are left out.

    They are as narrow as lets up to 30 of them be between the first percentile and the 99th.
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
    """How many of the times are in each of so many bins of that width, the first at `start`."""
    counts = [0] * bins
    for time in times:
        place = math.floor((time - start) / width)
        if 0 <= place < bins:
            counts[place] += 1
    return counts
