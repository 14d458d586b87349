"""A memory cgroup below the one that the tests run in, where we may make one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path("/sys/fs/cgroup")
NAME = "tokenflume-fault"


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    folder: Path
    is_v2: bool

    def limit(self, size: int) -> None:
        name = "memory.max" if self.is_v2 else "memory.limit_in_bytes"
        (self.folder / name).write_text(str(size))

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def processes(self) -> list[psutil.Process]:
        return list(
            map(psutil.Process, map(int, (self.folder / "cgroup.procs").read_text().split()))
        )

    def kills(self) -> int:
        """Processes that the kernel has ended for the limit."""
        events = self.folder / ("memory.events" if self.is_v2 else "memory.oom_control")
        found = re.search(r"^oom_kill (\d+)$", events.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0


def own_group() -> MemoryGroup | None:
    """Where this process is, if its memory is accounted for there."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return MemoryGroup(ROOT / "memory" / path.lstrip("/"), is_v2=False)
        v2 = ROOT / path.lstrip("/")
        subtree = v2 / "cgroup.subtree_control"
        if not controllers and subtree.exists() and "memory" in subtree.read_text().split():
            return MemoryGroup(v2, is_v2=True)
    return None


def may_make_one() -> bool:
    group = own_group()
    return group is not None and os.geteuid() == 0 and os.access(group.folder, os.W_OK)


needed = pytest.mark.skipif(not may_make_one(), reason="no memory cgroup can be made here")


@contextmanager
def limited_memory(size: int) -> Iterator[MemoryGroup]:
    """A cgroup that may have so many bytes. In the end its processes are killed."""
    parent = own_group()
    assert parent is not None
    group = MemoryGroup(parent.folder / f"{NAME}-{os.getpid()}", parent.is_v2)
    group.folder.mkdir()
    try:
        group.limit(size)
        yield group
    finally:
        processes = group.processes()
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)
        group.folder.rmdir()
