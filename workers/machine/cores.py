"""The cores that this process may use, and the limits on them.

The affinity mask already respects the cgroup's cpuset, so cpusets are not read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from workers.machine.kernel_files import read_cpu_list, read_int, read_text
from workers.machine.quota import read_quota

_CPU_DIR = "sys/devices/system/cpu"
_NODE_DIR = "sys/devices/system/node"

# The top frequencies of performance cores differ by up to a tenth (turbo bins, stacked cache).
# Those of efficiency cores are lower by a fifth or more.
_FAST_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Core:
    """A physical core."""

    cpus: tuple[int, ...]
    """Its logical CPUs that this process may use: at least one, ascending."""
    package: int
    """Its socket; 0 if unknown."""
    node: int
    """Its NUMA node; 0 if unknown."""
    l3: int
    """Its L3 domain: the smallest number of the CPUs that share its level-3 cache. Without such a
    cache: the smallest usable CPU of its package that has none."""
    performance: int
    """Its capacity relative to other cores, in the unit of the source that tells them apart; 0 if
    unknown."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The part of the machine that this process may use."""

    cores: tuple[Core, ...]
    """The cores with at least one CPU in the affinity mask."""
    online: int
    """The number of logical CPUs that are online."""
    allowed: int
    """The number of online CPUs in the affinity mask, which respects the cgroup's cpuset."""
    quota: float | None
    """CPU seconds per second that the cgroups grant, above 0; None: no limit."""
    quota_source: str
    """The file that sets the quota, or why there is no limit."""


def read_machine(root: Path = Path("/"), affinity: Collection[int] | None = None) -> Machine:
    """Read the cores, CPUs and quota of this process from the files below `root`.

    `affinity`: the logical CPUs that the process may use; None: ask the kernel.
    Defaults for unreadable files: each CPU is a core, one package, one node, one cache, no quota.
    Raises ValueError if `affinity` is empty.
    """
    mask = set(os.sched_getaffinity(0) if affinity is None else affinity)
    if not mask:
        raise ValueError("the affinity mask is empty")
    # In a container /sys may list CPUs as offline that are in the kernel's mask.
    usable = mask - _offline_cpus(root) or mask
    online = usable.union(read_cpu_list(root / _CPU_DIR / "online") or ())
    quota, quota_source = read_quota(root)
    return Machine(_read_cores(root, sorted(usable)), len(online), len(usable), quota, quota_source)


def _offline_cpus(root: Path) -> set[int]:
    listed = read_cpu_list(root / _CPU_DIR / "offline") or ()
    switches = (root / _CPU_DIR).glob("cpu[0-9]*/online")
    switched_off = (int(path.parent.name[3:]) for path in switches if read_text(path) == "0")
    return {*listed, *switched_off}


def _read_cores(root: Path, cpus: Sequence[int]) -> tuple[Core, ...]:
    siblings: dict[int, list[int]] = {}
    for cpu in cpus:
        siblings.setdefault(_first_sibling(root, cpu), []).append(cpu)
    nodes = _read_nodes(root)
    packages = {cpu: _read_package(root, cpu) for cpu in cpus}
    caches = _read_cache_domains(root, packages)
    speeds = _read_performance(root, cpus)
    cores = (
        Core(
            cpus=tuple(threads),
            package=packages[threads[0]],
            node=nodes.get(threads[0], 0),
            l3=caches[threads[0]],
            performance=max(speeds[cpu] for cpu in threads),
        )
        for threads in siblings.values()
    )
    return tuple(sorted(cores, key=position_of))


def _first_sibling(root: Path, cpu: int) -> int:
    topology = root / _CPU_DIR / f"cpu{cpu}" / "topology"
    # The second name is that of kernels before Linux 5.3.
    for name in ("core_cpus_list", "thread_siblings_list"):
        siblings = read_cpu_list(topology / name) or ()
        if cpu in siblings:
            return siblings[0]
    return cpu


def _read_package(root: Path, cpu: int) -> int:
    # The value is -1 if the firmware does not tell.
    return max(0, read_int(root / _CPU_DIR / f"cpu{cpu}" / "topology/physical_package_id") or 0)


def _read_nodes(root: Path) -> dict[int, int]:
    return {
        cpu: int(path.parent.name[4:])
        for path in (root / _NODE_DIR).glob("node[0-9]*/cpulist")
        for cpu in read_cpu_list(path) or ()
    }


def _read_cache_domains(root: Path, packages: dict[int, int]) -> dict[int, int]:
    domains: dict[int, int] = {}
    without: dict[int, int] = {}
    for cpu, package in sorted(packages.items()):
        domain = _read_l3(root, cpu)
        domains[cpu] = without.setdefault(package, cpu) if domain is None else domain
    return domains


def _read_l3(root: Path, cpu: int) -> int | None:
    for index in sorted((root / _CPU_DIR / f"cpu{cpu}" / "cache").glob("index[0-9]*")):
        if read_text(index / "level") == "3":
            sharing = read_cpu_list(index / "shared_cpu_list") or ()
            return sharing[0] if cpu in sharing else None
    return None


def _read_performance(root: Path, cpus: Sequence[int]) -> dict[int, int]:
    """The performance of each CPU, from the first source that tells these CPUs apart.

    If none does: from the first source that has values, or 0.
    """
    known = [
        speeds
        for speeds in (
            # Hybrid x86 reports the same capacity for all CPUs while SMT is on. So its own lists
            # come next, before frequencies, which also differ within a kind.
            _read_each(root, cpus, "cpu_capacity"),
            _read_hybrid(root, cpus),
            _read_each(root, cpus, "cpufreq/cpuinfo_max_freq"),
        )
        if speeds is not None
    ]
    telling = [speeds for speeds in known if len(set(speeds.values())) > 1]
    return next(iter(telling + known), dict.fromkeys(cpus, 0))


def _read_each(root: Path, cpus: Sequence[int], name: str) -> dict[int, int] | None:
    """The number in this file of each CPU; None unless all CPUs have one."""
    values = {cpu: read_int(root / _CPU_DIR / f"cpu{cpu}" / name) for cpu in cpus}
    known = {cpu: value for cpu, value in values.items() if value is not None and value > 0}
    return known if len(known) == len(values) else None


def _read_hybrid(root: Path, cpus: Sequence[int]) -> dict[int, int] | None:
    """Ranks of Intel's two kinds of cores; None on machines without them."""
    fast = read_cpu_list(root / "sys/devices/cpu_core/cpus")
    slow = read_cpu_list(root / "sys/devices/cpu_atom/cpus")
    if not fast or not slow:
        return None
    # CPUs in neither list are of a third and slower kind.
    return {cpu: 1024 if cpu in fast else 512 for cpu in cpus}


def package_of(core: Core) -> tuple[int, ...]:
    """The core's socket, as a key for `grouped`."""
    return (core.package,)


def node_of(core: Core) -> tuple[int, ...]:
    """The core's NUMA node, as a key for `grouped`."""
    return (core.node,)


def domain_of(core: Core) -> tuple[int, ...]:
    """The core's L3 domain, as a key for `grouped`."""
    return (core.package, core.node, core.l3)


def position_of(core: Core) -> tuple[int, ...]:
    """The core's place in the machine, as a key to sort by."""
    return (core.package, core.node, core.l3, *core.cpus)


def grouped(cores: Iterable[Core], key: Callable[[Core], tuple[int, ...]]) -> list[list[Core]]:
    """Groups of cores with the same key, in the order of their first cores."""
    groups: dict[tuple[int, ...], list[Core]] = {}
    for core in cores:
        groups.setdefault(key(core), []).append(core)
    return list(groups.values())


def fast_cores(cores: Sequence[Core]) -> list[Core]:
    """The performance cores; all cores on machines with one kind."""
    fastest = max(core.performance for core in cores)
    return [core for core in cores if core.performance >= fastest * _FAST_SHARE]


def quota_text(machine: Machine) -> str:
    """The quota and its source in words."""
    if machine.quota is None:
        return f"none ({machine.quota_source})"
    unit = "CPU" if machine.quota == 1 else "CPUs"
    return f"{machine.quota:.4g} {unit} ({machine.quota_source})"


def node_of_cpus(machine: Machine, cpus: Collection[int]) -> int | None:
    """The NUMA node of these CPUs; None if they have several, or the machine has only one."""
    nodes = {core.node for core in machine.cores if not set(cpus).isdisjoint(core.cpus)}
    if len(nodes) != 1 or len({core.node for core in machine.cores}) == 1:
        return None
    return nodes.pop()


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 core, 2 cores."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
