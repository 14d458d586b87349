"""A table of measured times as a curve of straight lines."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def interpolate(sizes: Sequence[int], seconds: Sequence[float], size: int) -> float:
    """Between two measured sizes on the line through them; beyond the last, in proportion."""
    place = bisect_left(sizes, size)
    if place == 0:
        return seconds[0]
    if place == len(sizes):
        return seconds[-1] * size / sizes[-1]
    low, high = sizes[place - 1 : place + 1]
    share = (size - low) / (high - low)
    return seconds[place - 1] * (1 - share) + seconds[place] * share
