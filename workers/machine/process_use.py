"""The memory and CPU time of a process, and how long CPU quotas throttled this one's cgroups."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from workers.machine.kernel_files import read_text
from workers.machine.quota import cgroup_directories


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """The resources that a process uses."""

    resident: int
    """Resident memory in bytes, shared memory included (RSS): weights count in every worker."""
    proportional: int | None
    """Resident memory in bytes, with its share of shared memory (PSS); None: unknown."""
    cpu_s: float
    """CPU time in seconds since its start, over all threads."""


@dataclass(frozen=True, slots=True)
class Throttling:
    """How CPU quotas throttled the cgroups since they were created."""

    periods: int
    """Number of quota periods with throttling."""
    seconds: float
    """Throttled time in seconds, over all CPUs."""


def process_use(pid: int) -> ProcessUse | None:
    """What the process uses; None if it has ended."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
    except psutil.Error:
        return None
    # The kernel walks the process's whole memory map: some milliseconds for a large model.
    found = re.search(r"^Pss: +(\d+) kB", read_text(Path(f"/proc/{pid}/smaps_rollup")) or "", re.M)
    proportional = int(found[1]) * 1024 if found else None
    return ProcessUse(memory.rss, proportional, times.user + times.system)


def read_throttling(root: Path) -> Throttling | None:
    """Throttling of this process's cgroup and its ancestors, each of which may have a quota.

    None if none of them has a CPU controller.
    """
    groups = [*cgroup_directories(root, 2), *cgroup_directories(root, 1)]
    stats = [_numbers(text) for group in groups if (text := read_text(group / "cpu.stat"))]
    stats = [stat for stat in stats if "nr_throttled" in stat]
    if not stats:
        return None
    return Throttling(
        sum(stat["nr_throttled"] for stat in stats),
        # Version 2 counts microseconds, version 1 nanoseconds.
        sum(s.get("throttled_usec", 0) / 1e6 + s.get("throttled_time", 0) / 1e9 for s in stats),
    )


def _numbers(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
