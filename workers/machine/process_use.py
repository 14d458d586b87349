"""What a process takes of the machine, and when the kernel held all of ours up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from workers.machine.kernel_files import read_text
from workers.machine.quota import cgroup_directories


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """Memory in bytes, time in seconds."""

    resident: int
    """Memory that it sees, with all that it shares: the weights count in every worker (RSS)."""
    proportional: int | None
    """The same, but of what several share only its part (PSS); None: the kernel does not say."""
    cpu_s: float
    """Since it started, on all its threads."""


@dataclass(frozen=True, slots=True)
class Throttling:
    """How the cgroups' CPU quotas held us up since they were made."""

    periods: int
    """The quotas' periods in which we were stopped."""
    seconds: float
    """For how long, all CPUs together."""


def process_use(pid: int) -> ProcessUse | None:
    """None: there is no such process any more."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
    except psutil.Error:
        return None
    # Walks the process's whole memory map: some milliseconds for a large model.
    found = re.search(r"^Pss: +(\d+) kB", read_text(Path(f"/proc/{pid}/smaps_rollup")) or "", re.M)
    proportional = int(found[1]) * 1024 if found else None
    return ProcessUse(memory.rss, proportional, times.user + times.system)


def read_throttling(root: Path) -> Throttling | None:
    """Of this process's cgroup and all around it, each of which may have a quota; None: no cgroup
    has a CPU controller.
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
