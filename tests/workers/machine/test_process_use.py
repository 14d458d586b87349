"""The resources of real processes, and throttling on simulated machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from workers.machine.process_use import Throttling, process_use, read_throttling

V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_a_process_has_memory_and_cpu_time() -> None:
    sum(range(3_000_000))
    use = process_use(os.getpid())
    assert use is not None
    assert use.proportional is not None
    assert 0 < use.proportional <= use.resident * 1.1  # read one after the other
    assert use.cpu_s > 0


def test_a_process_that_has_ended_has_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert process_use(process.pid) is None


def test_quotas_of_the_cgroup_and_of_its_ancestors_count(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/outer/inner\n")
    write(tmp_path, "proc/self/mountinfo", V2)
    write(tmp_path, "sys/fs/cgroup/outer/cpu.stat", "nr_throttled 2\nthrottled_usec 500000\n")
    write(tmp_path, "sys/fs/cgroup/outer/inner/cpu.stat", "nr_throttled 1\nthrottled_usec 9\n")
    write(tmp_path, "sys/fs/cgroup/cpu.stat", "usage_usec 7\n")  # the root cgroup has no quota
    assert read_throttling(tmp_path) == Throttling(3, 0.500009)


def test_version_1_counts_nanoseconds(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "3:cpu,cpuacct:/job\n")
    write(tmp_path, "proc/self/mountinfo", V1)
    write(tmp_path, "sys/fs/cgroup/cpu/job/cpu.stat", "nr_throttled 4\nthrottled_time 2000000000\n")
    assert read_throttling(tmp_path) == Throttling(4, 2.0)


def test_without_any_quota_the_throttling_is_unknown(tmp_path: Path) -> None:
    assert read_throttling(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/cpu.stat", "usage_usec 7\nnonsense\n")
    assert read_throttling(tmp_path) is None
