"""Whether a quantity grows during a soak.

It grows if both of these are true for the time after the warm-up (the first fifth):

- the Theil–Sen slope (the median of the slopes of all pairs of samples), times that time, exceeds
  the allowance of the quantity;
- so does the slope of the second half alone, times the same time. What is only warming up levels
  off; a leak goes on.

The median of slopes is robust against peaks and dips, such as a worker that is being replaced.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.soak.monitor import QUANTITIES, Quantity, Sample

WARM_UP = 0.2
"""Share of the whole time."""
LEAST_SAMPLES = 8
"""Samples after the warm-up that a judgement of growth needs."""
MOST_COMPARED = 240
"""Samples at most that are compared with each other."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A quantity after the warm-up."""

    quantity: Quantity
    first: float
    median: float
    last: float
    most: float
    growth: float | None
    """The slope times that time; None: there are too few samples."""
    late_growth: float | None
    """The slope of the second half, times the same time."""

    @property
    def allowance(self) -> float:
        return max(self.quantity.allowance, self.quantity.share * self.median)

    @property
    def grows(self) -> bool:
        if not self.quantity.allowance or self.growth is None or self.late_growth is None:
            return False
        return min(self.growth, self.late_growth) > self.allowance


def trend(quantity: Quantity, samples: Sequence[Sample]) -> Trend:
    """The trend of one or more samples."""
    end = samples[-1].at
    counted = [each for each in samples if each.at >= WARM_UP * end]
    points = [(each.at, quantity.read(each)) for each in counted]
    values = [value for _, value in points]
    growth = late = None
    if len(points) >= LEAST_SAMPLES:
        seconds = points[-1][0] - points[0][0]
        growth = slope(points) * seconds
        late = slope(points[len(points) // 2 :]) * seconds
    return Trend(
        quantity, values[0], statistics.median(values), values[-1], max(values), growth, late
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The Theil–Sen slope, per second; 0 for fewer than two points."""
    thinned = points[:: -(-len(points) // MOST_COMPARED)] if points else points
    slopes = [
        (y2 - y1) / (x2 - x1)
        for (x1, y1), (x2, y2) in itertools.combinations(thinned, 2)
        if x1 < x2
    ]
    return statistics.median(slopes) if slopes else 0.0


def left_open(before: Sample, after: Sample) -> list[str]:
    """Counts that are higher at rest after the load than at rest before it."""
    return [
        f"{quantity.name}: {quantity.read(before):g} at rest before, {quantity.read(after):g} after"
        for quantity in QUANTITIES
        if not quantity.unit
        and quantity.allowance
        and quantity.read(after) - quantity.read(before) > quantity.allowance
    ]
