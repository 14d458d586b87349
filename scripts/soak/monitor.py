"""Samples of the resources that the server uses: memory, open files, threads, shared memory."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from scripts.soak.server_state import workers_of

MIB = 1024 * 1024
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Sample:
    """The resources at one moment. Memory is in MiB."""

    at: float
    """Seconds since the start."""
    front_rss: float
    front_pss: float
    front_files: int
    front_threads: int
    workers: int
    """Number of workers."""
    workers_rss: float
    """RSS of all workers together; so is `workers_pss`."""
    workers_pss: float
    worker_files: float
    """Open files of one worker, on average; so are `worker_threads` and `worker_pss`."""
    worker_threads: float
    worker_pss: float
    shared_entries: int
    """Entries of /dev/shm."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number of a sample, and by how much it may grow."""

    name: str
    unit: str
    read: Callable[[Sample], float]
    allowance: float = 0.0
    """Growth that is allowed; 0: any growth."""
    share: float = 0.0
    """Growth that is allowed, as a share of the median. The larger allowance counts."""


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
class Monitor:
    """Takes samples of a server and its workers."""

    front: int
    """Process id of the server."""
    begun: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)

    async def sample_every(self, seconds: float, until: float) -> None:
        """Take samples until `until`, a reading of time.monotonic."""
        while time.monotonic() < until:
            self.sample()
            await asyncio.sleep(seconds)

    def sample(self) -> None:
        """Take one sample, if the front is running."""
        try:
            front = psutil.Process(self.front)
            memory, files, threads = front.memory_full_info(), front.num_fds(), front.num_threads()
        except psutil.Error:
            return
        workers = [found for each in workers_of(self.front) if (found := _resources(each))]
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
                shared_entries=sum(1 for _ in SHARED_MEMORY.iterdir()),
            )
        )


def _resources(worker: psutil.Process) -> tuple[float, float, float, float] | None:
    """RSS and PSS in MiB, open files and threads; None if the worker has just ended."""
    try:
        memory = worker.memory_full_info()
        return memory.rss / MIB, memory.pss / MIB, worker.num_fds(), worker.num_threads()
    except psutil.Error:
        return None
