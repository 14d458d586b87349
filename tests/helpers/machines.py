"""Machines to plan for: recorded ones, and any that hypothesis draws."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hypothesis import strategies as st

from workers.machine.cores import Core, Machine, read_machine
from workers.machine.kernel_files import format_cpu_list, parse_cpu_list
from workers.machine.topology import Plan

V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
V1_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"


class Recording:
    """Writes a machine's files of /sys and /proc."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str | int) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def each(self, cpus: str, name: str, value: str | int) -> None:
        """Write the same file for each of these CPUs."""
        for cpu in parse_cpu_list(cpus):
            self.write(f"sys/devices/system/cpu/cpu{cpu}/{name}", value)

    def cores(self, *siblings: str, package: int = 0) -> None:
        for cpus in siblings:
            self.each(cpus, "topology/core_cpus_list", cpus)
            self.each(cpus, "topology/physical_package_id", package)

    def l3(self, cpus: str) -> None:
        self.each(cpus, "cache/index3/level", 3)
        self.each(cpus, "cache/index3/shared_cpu_list", cpus)

    def node(self, number: int, cpus: str) -> None:
        self.write(f"sys/devices/system/node/node{number}/cpulist", cpus)

    def online(self, cpus: str) -> None:
        self.write("sys/devices/system/cpu/online", cpus)

    def cgroup(self, membership: str, mountinfo: str, **limits: str) -> None:
        """`limits`: quota and period by directory below /sys/fs/cgroup, with __ for /."""
        self.write("proc/self/cgroup", membership)
        self.write("proc/self/mountinfo", mountinfo)
        for directory, limit in limits.items():
            group = f"sys/fs/cgroup/{directory.replace('__', '/')}"
            if "cpu,cpuacct" in group:
                quota, period = limit.split()
                self.write(f"{group}/cpu.cfs_quota_us", quota)
                self.write(f"{group}/cpu.cfs_period_us", period)
            else:
                self.write(f"{group}/cpu.max", limit)

    def borrow(self, other: Recording, directory: str) -> None:
        (self.root / directory).parent.mkdir(parents=True)
        (self.root / directory).symlink_to(other.root / directory)

    def machine(self, affinity: Iterable[int]) -> Machine:
        return read_machine(self.root, set(affinity))


def desktop(recording: Recording) -> Machine:
    """One socket, one L3, and 6 cores with 2 CPUs each."""
    recording.cores(*(f"{core},{core + 6}" for core in range(6)))
    recording.l3("0-11")
    recording.each("0-11", "cache/index0/level", 1)
    recording.each("0-11", "cache/index0/shared_cpu_list", "?")
    recording.node(0, "0-11")
    recording.online("0-11")
    return recording.machine(range(12))


def hybrid(recording: Recording, affinity: Iterable[int] = range(24)) -> Machine:
    """One L3, 8 performance cores with 2 CPUs each (0-15) and 8 efficiency cores (16-23)."""
    recording.cores(*(f"{cpu}-{cpu + 1}" for cpu in range(0, 16, 2)), *map(str, range(16, 24)))
    recording.l3("0-23")
    recording.node(0, "0-23")
    recording.online("0-23")
    recording.write("sys/devices/cpu_core/cpus", "0-15")
    recording.write("sys/devices/cpu_atom/cpus", "16-23")
    return recording.machine(affinity)


def ranges(plan: Plan) -> list[str]:
    return [format_cpu_list(worker) for worker in plan.workers]


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Regular machines of up to 48 cores with any mask, some hybrid, some with a quota."""
    packages = draw(st.integers(1, 2))
    nodes = draw(st.integers(1, 2))
    domains = draw(st.integers(1, 3))
    size = draw(st.integers(1, 4))
    smt = draw(st.integers(1, 3))
    total = packages * nodes * domains * size
    mask = draw(st.sets(st.integers(0, total * smt - 1), min_size=1))
    performance = draw(st.sampled_from([(0,), (1024,), (1024, 400), (5700, 5500, 4000)]))
    cores = []
    for number in range(total):
        cpus = tuple(cpu for cpu in range(number, total * smt, total) if cpu in mask)
        domain = number // size
        node = domain // domains
        speed = performance[number % len(performance)]
        if cpus:
            cores.append(Core(cpus, node // nodes, node, domain * size, speed))
    quota = draw(st.none() | st.floats(0.1, 60))
    return Machine(tuple(cores), total * smt, len(mask), quota, "drawn")


def usable(machine: Machine) -> int:
    return min(machine.allowed, max(1, int(machine.quota or machine.allowed)))


def check(machine: Machine, plan: Plan) -> None:
    """Check what is true of every plan."""
    cpus = [cpu for worker in plan.workers for cpu in worker]
    assert all(plan.workers)
    assert len(cpus) == len(set(cpus)) == plan.threads
    assert set(cpus) <= {cpu for core in machine.cores for cpu in core.cpus}
    assert [list(worker) for worker in plan.workers] == [sorted(w) for w in plan.workers]
    core_of = {cpu: core for core in machine.cores for cpu in core.cpus}
    used = {core_of[cpu] for cpu in cpus}
    assert len(used) == min(plan.threads, len(machine.cores))
    if len(plan.workers) <= len(used):
        assert sum(len({core_of[c] for c in worker}) for worker in plan.workers) == len(used)
