"""The memory that is available to this process."""

from __future__ import annotations

from pathlib import Path

from workers.machine.kernel_files import read_int, read_text
from workers.machine.quota import cgroup_directories

_V1_LIMIT = "sys/fs/cgroup/memory/memory.limit_in_bytes"
_V1_USED = "sys/fs/cgroup/memory/memory.usage_in_bytes"
_V1_STAT = "sys/fs/cgroup/memory/memory.stat"


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes available on the machine, or within the cgroup if that is less. None: unknown.

    Page cache counts as available, also within a cgroup, because the kernel can evict it.
    """
    groups = cgroup_directories(root, 2)
    known = [_machine(root), *(_left_v2(group) for group in groups), _left_v1(root)]
    return min((amount for amount in known if amount is not None), default=None)


def _machine(root: Path) -> int | None:
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _left_v2(group: Path) -> int | None:
    cache = _cache(group / "memory.stat", "inactive_file")
    return _left(group / "memory.max", group / "memory.current", cache)


def _left_v1(root: Path) -> int | None:
    # The field with "total_" includes the child cgroups, as the usage does.
    cache = _cache(root / _V1_STAT, "total_inactive_file")
    return _left(root / _V1_LIMIT, root / _V1_USED, cache)


def _cache(path: Path, field: str) -> int:
    for line in (read_text(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if name == field:
            return int(value)
    return 0


def _left(limit_file: Path, used_file: Path, reclaimable: int) -> int | None:
    limit, used = read_int(limit_file), read_int(used_file)  # the limit "max" is read as None
    if limit is None or used is None:
        return None
    return max(0, limit - used + reclaimable)
