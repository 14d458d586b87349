"""What the server takes while it runs, and whether that grows.

A figure grows if both are true of the time after the warm-up (its first fifth):

- the Theil–Sen slope (the median of the slopes of all pairs of samples), times that time, is more
  than the figure may vary by itself;
- so is the slope of the second half alone, times the same time. What is only warming up levels off;
  a leak goes on.

The median of slopes is unmoved by peaks and by dips, such as a worker that is just being replaced.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from scripts.soak.faults import workers_of

WARM_UP = 0.2
"""Of the whole time."""
FEWEST = 8
"""Samples after it, without which nothing is said of growth."""
MOST = 240
"""Samples that are compared with each other."""
MIB = 1024 * 1024
SHARED = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Sample:
    """At one moment; memory in MiB."""

    at: float
    """Seconds from the start."""
    front_rss: float
    front_pss: float
    front_files: int
    front_threads: int
    workers: int
    workers_rss: float
    """Of all of them."""
    workers_pss: float
    worker_files: float
    """Of one, on average; so are threads and PSS."""
    worker_threads: float
    worker_pss: float
    shared_entries: int
    """In /dev/shm."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A figure of a sample, and how much it may vary: so much, or this share of its median."""

    name: str
    unit: str
    of: Callable[[Sample], float]
    allowance: float = 0.0
    """0: not judged."""
    share: float = 0.0


QUANTITIES = (
    Quantity("front, RSS", "MiB", lambda sample: sample.front_rss, 8, 0.08),
    Quantity("front, PSS", "MiB", lambda sample: sample.front_pss, 8, 0.08),
    Quantity("a worker, PSS", "MiB", lambda sample: sample.worker_pss, 8, 0.08),
    Quantity("workers together, RSS", "MiB", lambda sample: sample.workers_rss),
    Quantity("workers together, PSS", "MiB", lambda sample: sample.workers_pss),
    Quantity("workers", "", lambda sample: sample.workers),
    Quantity("front, open files", "", lambda sample: sample.front_files, 8),
    Quantity("a worker, open files", "", lambda sample: sample.worker_files, 4),
    Quantity("front, threads", "", lambda sample: sample.front_threads, 3),
    Quantity("a worker, threads", "", lambda sample: sample.worker_threads, 3),
    Quantity("entries of /dev/shm", "", lambda sample: sample.shared_entries, 4),
)


@dataclass(slots=True)
class Watch:
    """Takes samples of a server and its workers."""

    front: int
    begun: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)

    async def every(self, seconds: float, until: float) -> None:
        """Until that time of time.monotonic."""
        while time.monotonic() < until:
            self.look()
            await asyncio.sleep(seconds)

    def look(self) -> None:
        """One sample, if there is a front."""
        try:
            front = psutil.Process(self.front)
            memory, files, threads = front.memory_full_info(), front.num_fds(), front.num_threads()
        except psutil.Error:
            return
        workers = [found for each in workers_of(self.front) if (found := _look_at(each))]
        columns = list(zip(*workers, strict=True)) or [(0.0,)] * 4
        rss, pss, worker_files, worker_threads = columns
        self.samples.append(
            Sample(
                at=time.monotonic() - self.begun,
                front_rss=memory.rss / MIB,
                front_pss=memory.pss / MIB,
                front_files=files,
                front_threads=threads,
                workers=len(workers),
                workers_rss=sum(rss),
                workers_pss=sum(pss),
                worker_files=statistics.fmean(worker_files),
                worker_threads=statistics.fmean(worker_threads),
                worker_pss=statistics.fmean(pss),
                shared_entries=sum(1 for _ in SHARED.iterdir()),
            )
        )


def _look_at(worker: psutil.Process) -> tuple[float, float, float, float] | None:
    """RSS and PSS in MiB, files, threads; None of one that has just died."""
    try:
        memory = worker.memory_full_info()
        return memory.rss / MIB, memory.pss / MIB, worker.num_fds(), worker.num_threads()
    except psutil.Error:
        return None


# ---------------------------------------------------------------- growth


@dataclass(frozen=True, slots=True)
class Trend:
    """A figure over the time after the warm-up."""

    quantity: Quantity
    first: float
    median: float
    last: float
    most: float
    growth: float | None
    """What the slope makes of that time; None: there are too few samples."""
    late_growth: float | None
    """The same of the slope of its second half."""

    @property
    def allowance(self) -> float:
        return max(self.quantity.allowance, self.quantity.share * self.median)

    @property
    def grows(self) -> bool:
        if not self.quantity.allowance or self.growth is None or self.late_growth is None:
            return False
        return min(self.growth, self.late_growth) > self.allowance


def trend(quantity: Quantity, samples: Sequence[Sample]) -> Trend:
    """Of at least one sample."""
    end = samples[-1].at
    counted = [each for each in samples if each.at >= WARM_UP * end]
    points = [(each.at, quantity.of(each)) for each in counted]
    values = [value for _, value in points]
    growth = late = None
    if len(points) >= FEWEST:
        seconds = points[-1][0] - points[0][0]
        growth = slope(points) * seconds
        late = slope(points[len(points) // 2 :]) * seconds
    return Trend(
        quantity, values[0], statistics.median(values), values[-1], max(values), growth, late
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil and Sen's, a second. 0 of fewer than two."""
    thinned = points[:: -(-len(points) // MOST)] if points else points
    slopes = [
        (y2 - y1) / (x2 - x1)
        for (x1, y1), (x2, y2) in itertools.combinations(thinned, 2)
        if x1 < x2
    ]
    return statistics.median(slopes) if slopes else 0.0


def left_open(before: Sample, after: Sample) -> list[str]:
    """What was there at rest before the load, and is more at rest after it."""
    return [
        f"{quantity.name}: {quantity.of(before):g} at rest before, {quantity.of(after):g} after"
        for quantity in QUANTITIES
        if not quantity.unit
        and quantity.allowance
        and quantity.of(after) - quantity.of(before) > quantity.allowance
    ]
