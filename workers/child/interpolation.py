"""Interpolates between measured times."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def interpolate(sizes: Sequence[int], seconds: Sequence[float], size: int) -> float:
    """Return the expected seconds of a size, by the seconds of the ascending `sizes`.

    Up to the first size: its seconds. Between two sizes: linear. Beyond the last: proportional.
    """
    index = bisect_left(sizes, size)
    if index == 0:
        return seconds[0]
    if index == len(sizes):
        return seconds[-1] * size / sizes[-1]
    low, high = sizes[index - 1 : index + 1]
    share = (size - low) / (high - low)
    return seconds[index - 1] * (1 - share) + seconds[index] * share
