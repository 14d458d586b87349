"""Plans for recorded machines, and properties that hold for plans of any machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.errors import ConfigurationError
from workers.machine.cores import Core, Machine, node_of_cpus, read_machine
from workers.machine.kernel_files import format_cpu_list, parse_cpu_list
from workers.machine.plan_text import explain
from workers.machine.topology import Plan, make_plan

V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
V1_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"


class Recording:
    """Writes the files of /sys and /proc that a machine has."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str | int) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def each(self, cpus: str, name: str, value: str | int) -> None:
        """The same file for each of these CPUs."""
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
        """`limits`: directory below /sys/fs/cgroup, __ for /, to its quota and period."""
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


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path)


def desktop(recording: Recording) -> Machine:
    """One socket, 6 cores, 2 CPUs each, one L3."""
    recording.cores(*(f"{core},{core + 6}" for core in range(6)))
    recording.l3("0-11")
    recording.each("0-11", "cache/index0/level", 1)
    recording.each("0-11", "cache/index0/shared_cpu_list", "?")
    recording.node(0, "0-11")
    recording.online("0-11")
    return recording.machine(range(12))


@pytest.fixture(scope="module")
def epyc(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Two sockets of 64 cores, 2 CPUs each, 8 cores an L3, a NUMA node a socket.

    Thousands of files, so recorded once; tests only read it.
    """
    recording = Recording(tmp_path_factory.mktemp("epyc"))
    for package, first in enumerate((0, 64)):
        recording.cores(*(f"{c},{c + 128}" for c in range(first, first + 64)), package=package)
        recording.node(package, f"{first}-{first + 63},{first + 128}-{first + 191}")
    for first in range(0, 128, 8):
        recording.l3(f"{first}-{first + 7},{first + 128}-{first + 135}")
    recording.online("0-255")
    return recording


@pytest.fixture
def epyc_of_4_nodes(epyc: Recording, recording: Recording) -> Recording:
    """The same processors as two NUMA nodes a socket."""
    recording.borrow(epyc, "sys/devices/system/cpu")
    for node, first in enumerate(range(0, 128, 32)):
        recording.node(node, f"{first}-{first + 31},{first + 128}-{first + 159}")
    return recording


def hybrid(recording: Recording, affinity: Iterable[int] = range(24)) -> Machine:
    """8 performance cores of 2 CPUs, 0-15, and 8 efficiency cores, 16-23; one L3."""
    recording.cores(*(f"{cpu}-{cpu + 1}" for cpu in range(0, 16, 2)), *map(str, range(16, 24)))
    recording.l3("0-23")
    recording.node(0, "0-23")
    recording.online("0-23")
    recording.write("sys/devices/cpu_core/cpus", "0-15")
    recording.write("sys/devices/cpu_atom/cpus", "16-23")
    return recording.machine(affinity)


def ranges(plan: Plan) -> list[str]:
    return [format_cpu_list(worker) for worker in plan.workers]


# CPU lists.


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,8", (0, 1, 2, 3, 8)),
        ("7\n", (7,)),
        ("", ()),
        ("\n", ()),
        ("9,0-1,1", (0, 1, 9)),
        ("10-10", (10,)),
    ],
)
def test_the_kernels_lists_are_read(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["a", "-1", "1-", "3-1", "1 2", "0x3", "1--3"])
def test_what_is_not_a_list_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_cpu_list(text)


def test_lists_are_written_compactly() -> None:
    assert format_cpu_list([8, 3, 0, 2, 1, 10, 11]) == "0-3,8,10-11"
    assert format_cpu_list([]) == ""


@given(st.sets(st.integers(0, 300)))
def test_a_list_that_is_written_reads_the_same(cpus: set[int]) -> None:
    assert parse_cpu_list(format_cpu_list(cpus)) == tuple(sorted(cpus))


# A desktop.


def test_siblings_of_a_desktop_are_one_core(recording: Recording) -> None:
    machine = desktop(recording)

    assert machine.cores[2] == Core(cpus=(2, 8), package=0, node=0, l3=0, performance=0)
    assert len(machine.cores) == 6
    assert (machine.online, machine.allowed, machine.quota) == (12, 12, None)


def test_a_desktop_has_one_batching_worker_with_a_thread_a_core(recording: Recording) -> None:
    assert ranges(make_plan(desktop(recording), batches=True)) == ["0-5"]


def test_an_engine_of_one_sequence_has_a_worker_for_each_core(recording: Recording) -> None:
    plan = make_plan(desktop(recording), batches=False)

    assert ranges(plan) == ["0", "1", "2", "3", "4", "5"]
    assert plan.threads == 6


def test_threads_beyond_the_cores_take_siblings_of_their_own_worker(recording: Recording) -> None:
    machine = desktop(recording)

    assert ranges(make_plan(machine, batches=True, threads=8, workers=2)) == ["0-2,6", "3-5,9"]
    assert ranges(make_plan(machine, batches=False, threads=12)) == [
        f"{core},{core + 6}" for core in range(6)
    ]


def test_every_core_has_a_second_thread_before_one_has_a_third(recording: Recording) -> None:
    recording.cores("0-3", "4-7")

    assert ranges(make_plan(recording.machine(range(8)), batches=True, threads=4)) == ["0-1,4-5"]


def test_more_workers_than_cores_share_as_few_cores_as_can_be(recording: Recording) -> None:
    plan = make_plan(desktop(recording), batches=True, threads=12, workers=8)

    assert ranges(plan) == ["0", "6", "1", "7", "2,8", "3,9", "4,10", "5,11"]


def test_more_threads_than_cpus_are_refused_with_both_numbers(recording: Recording) -> None:
    with pytest.raises(ConfigurationError, match=r"13 threads .* only 12 CPUs"):
        make_plan(desktop(recording), batches=True, threads=13)


def test_more_workers_than_threads_are_refused_with_both_numbers(recording: Recording) -> None:
    with pytest.raises(ConfigurationError, match=r"7 workers .* 6 threads"):
        make_plan(desktop(recording), batches=True, workers=7)


@pytest.mark.parametrize(("threads", "workers"), [(0, None), (-1, None), (None, 0), (4, -2)])
def test_numbers_below_one_are_refused(
    recording: Recording, threads: int | None, workers: int | None
) -> None:
    with pytest.raises(ConfigurationError, match="must be 1 or more"):
        make_plan(desktop(recording), batches=True, threads=threads, workers=workers)


def test_a_desktop_is_explained(recording: Recording) -> None:
    machine = desktop(recording)

    assert explain(machine, make_plan(machine, batches=True)).splitlines() == [
        "cores     6 cores, 12 CPUs: 1 package, 1 NUMA node, 1 L3 domain",
        "affinity  all 12 CPUs (cgroup cpuset included)",
        "quota     none (no cgroup found)",
        "SMT       2 CPUs per core: one thread per core, siblings stay idle",
        "L3, NUMA  each worker stays within one L3 domain",
        "hybrid    no: all cores are of one kind",
        "plan      1 worker, 6 threads in total",
        "worker 0  6 threads, node 0, CPUs 0-5",
    ]


# A server with many caches.


def test_a_server_has_a_batching_worker_for_each_l3(epyc: Recording) -> None:
    plan = make_plan(epyc.machine(range(256)), batches=True)

    assert ranges(plan) == [f"{first}-{first + 7}" for first in range(0, 128, 8)]


def test_workers_fewer_than_caches_join_those_of_a_node(epyc_of_4_nodes: Recording) -> None:
    machine = epyc_of_4_nodes.machine(range(256))

    assert ranges(make_plan(machine, batches=True, workers=4)) == [
        "0-31",
        "32-63",
        "64-95",
        "96-127",
    ]
    assert ranges(make_plan(machine, batches=True, workers=3)) == ["0-31", "32-63", "64-127"]
    assert ranges(make_plan(machine, batches=True, workers=2)) == ["0-63", "64-127"]


def test_workers_more_than_caches_divide_them(epyc: Recording) -> None:
    plan = make_plan(epyc.machine(range(256)), batches=True, workers=32)

    assert ranges(plan) == [f"{first}-{first + 3}" for first in range(0, 128, 4)]


def test_threads_that_fit_one_cache_share_it(epyc: Recording) -> None:
    assert ranges(make_plan(epyc.machine(range(256)), batches=True, threads=8)) == ["0-7"]


def test_threads_of_two_caches_are_balanced_and_on_one_node(epyc: Recording) -> None:
    machine = epyc.machine({*range(5, 64), *range(72, 128)})

    assert ranges(make_plan(machine, batches=True, threads=12)) == ["8-13", "16-21"]


def test_threads_that_fit_a_node_stay_on_it(epyc_of_4_nodes: Recording) -> None:
    machine = epyc_of_4_nodes.machine({*range(31), *range(32, 56)})

    assert ranges(make_plan(machine, batches=True, threads=28)) == [
        "0-6",
        "8-14",
        "16-22",
        "24-30",
    ]


def test_an_odd_mask_leaves_whole_and_half_cores(epyc: Recording) -> None:
    machine = epyc.machine({1, 2, 3, 64, 65, 97, 129})

    assert [(core.cpus, core.node, core.l3) for core in machine.cores] == [
        ((1, 129), 0, 0),
        ((2,), 0, 0),
        ((3,), 0, 0),
        ((64,), 1, 64),
        ((65,), 1, 64),
        ((97,), 1, 96),
    ]
    assert (machine.online, machine.allowed) == (256, 7)


def test_a_lone_core_joins_its_nodes_smallest_worker(epyc: Recording) -> None:
    machine = epyc.machine({1, 2, 3, 64, 65, 97})

    assert ranges(make_plan(machine, batches=True)) == ["1-3", "64-65,97"]

    machine = epyc.machine({*range(8), 8, 9, 16})

    assert ranges(make_plan(machine, batches=True)) == ["0-7", "8-9,16"]


def test_caches_of_one_core_each_are_joined_by_node(epyc: Recording) -> None:
    machine = epyc.machine(range(0, 128, 8))

    assert ranges(make_plan(machine, batches=True)) == [
        "0,8,16,24,32,40,48,56",
        "64,72,80,88,96,104,112,120",
    ]


def test_an_odd_mask_divides_within_nodes(epyc: Recording) -> None:
    machine = epyc.machine({1, 2, 3, 64, 65, 97})

    assert ranges(make_plan(machine, batches=False, workers=3)) == ["1-3", "64-65", "97"]
    assert ranges(make_plan(machine, batches=False, workers=4)) == ["1-2", "3", "64-65", "97"]


def test_caches_of_any_size_have_a_worker_each_when_there_are_as_many(epyc: Recording) -> None:
    machine = epyc.machine({0, 8, *range(16, 24)})

    assert ranges(make_plan(machine, batches=True, workers=3)) == ["0", "8", "16-23"]


def test_an_odd_mask_is_explained(epyc: Recording) -> None:
    machine = epyc.machine({1, 2, 3, 64, 65, 97})
    lines = explain(machine, make_plan(machine, batches=True)).splitlines()

    assert "cores     6 cores, 6 CPUs: 2 packages, 2 NUMA nodes, 3 L3 domains" in lines
    assert "affinity  6 of 256 CPUs: 1-3,64-65,97 (cgroup cpuset included)" in lines
    assert "SMT       none: one CPU per core" in lines
    assert "L3, NUMA  each worker stays within one NUMA node" in lines
    assert "worker 1  3 threads, node 1, CPUs 64-65,97" in lines


def test_workers_across_nodes_are_named_as_such(epyc: Recording) -> None:
    machine = epyc.machine({1, 64})
    lines = explain(machine, make_plan(machine, batches=True, workers=1)).splitlines()

    assert "L3, NUMA  workers that span several NUMA nodes: 1 of 1" in lines
    assert "worker 0  2 threads, node 0-1, CPUs 1,64" in lines


def test_neighbours_of_one_thread_share_a_row(epyc: Recording) -> None:
    machine = epyc.machine(range(256))
    lines = explain(machine, make_plan(machine, batches=False)).splitlines()

    assert lines[-2:] == [
        "workers 0-63    1 thread each, node 0, CPUs 0-63",
        "workers 64-127  1 thread each, node 1, CPUs 64-127",
    ]


# NUMA nodes to take memory from.


@pytest.mark.parametrize(
    ("cpus", "node"), [("0-7", 0), ("32", 1), ("130,5", 0), ("96-127,224-255", 3)]
)
def test_cpus_of_one_node_take_memory_from_it(
    epyc_of_4_nodes: Recording, cpus: str, node: int
) -> None:
    machine = epyc_of_4_nodes.machine(range(256))

    assert node_of_cpus(machine, parse_cpu_list(cpus)) == node


@pytest.mark.parametrize("cpus", ["0-63", "31-32", "0,96", ""])
def test_cpus_of_several_nodes_or_of_none_have_no_node(
    epyc_of_4_nodes: Recording, cpus: str
) -> None:
    machine = epyc_of_4_nodes.machine(range(256))

    assert node_of_cpus(machine, parse_cpu_list(cpus)) is None


def test_every_worker_of_a_server_has_a_node(epyc: Recording) -> None:
    machine = epyc.machine(range(256))
    plan = make_plan(machine, batches=True)

    assert [node_of_cpus(machine, cpus) for cpus in plan.workers] == [0] * 8 + [1] * 8


def test_on_a_machine_of_one_node_there_is_nothing_to_choose(recording: Recording) -> None:
    machine = desktop(recording)

    assert node_of_cpus(machine, range(6)) is None


# Hybrid processors.


def test_a_hybrid_processor_uses_its_performance_cores(recording: Recording) -> None:
    plan = make_plan(hybrid(recording), batches=True)

    assert ranges(plan) == ["0,2,4,6,8,10,12,14"]


def test_efficiency_cores_come_when_asked_for_and_before_siblings(recording: Recording) -> None:
    machine = hybrid(recording)

    assert ranges(make_plan(machine, batches=True, threads=10)) == ["0,2,4,6,8,10,12,14,16-17"]
    assert ranges(make_plan(machine, batches=True, threads=17)) == ["0-2,4,6,8,10,12,14,16-23"]


def test_workers_have_cores_of_one_kind(recording: Recording) -> None:
    # As on processors that number their cores in turns.
    machine = hybrid(recording)
    swapped = tuple(
        replace(core, performance=1024 if core.cpus[0] % 4 == 0 else 512) for core in machine.cores
    )
    plan = make_plan(replace(machine, cores=swapped), batches=True, threads=16, workers=2)

    assert ranges(plan) == ["0,2,4,6,8,12,16,20", "10,14,17-19,21-23"]


def test_a_row_of_several_workers_has_their_cpus_in_their_order(recording: Recording) -> None:
    recording.each("0-1", "cpu_capacity", 400)
    recording.each("2-3", "cpu_capacity", 1024)
    machine = recording.machine(range(4))
    lines = explain(machine, make_plan(machine, batches=False, threads=4)).splitlines()

    assert lines[-2:] == [
        "workers 0-1  1 thread each, node 0, CPUs 2-3",
        "workers 2-3  1 thread each, node 0, CPUs 0-1",
    ]


def test_a_mask_of_efficiency_cores_uses_them(recording: Recording) -> None:
    machine = hybrid(recording, affinity=range(16, 24))

    assert ranges(make_plan(machine, batches=True)) == ["16-23"]


def test_capacities_tell_big_cores_from_little_ones(recording: Recording) -> None:
    recording.each("0-3", "cpu_capacity", 446)
    recording.each("4-5", "cpu_capacity", 1024)
    recording.each("0-5", "cpufreq/cpuinfo_max_freq", 2_000_000)

    assert ranges(make_plan(recording.machine(range(6)), batches=True)) == ["4-5"]


def test_hybrid_lists_tell_more_than_equal_capacities(recording: Recording) -> None:
    recording.each("0-23", "cpu_capacity", 1024)

    assert make_plan(hybrid(recording), batches=True).threads == 8


def test_frequencies_tell_kinds_of_cores_apart(recording: Recording) -> None:
    recording.each("0-1", "cpufreq/cpuinfo_max_freq", 5_100_000)
    recording.each("2-3", "cpufreq/cpuinfo_max_freq", 3_300_000)

    assert ranges(make_plan(recording.machine(range(4)), batches=True)) == ["0-1"]


def test_favoured_cores_of_one_kind_are_preferred_without_idling_the_others(
    recording: Recording,
) -> None:
    recording.each("0-5", "cpufreq/cpuinfo_max_freq", 5_500_000)
    recording.each("4-5", "cpufreq/cpuinfo_max_freq", 5_800_000)
    machine = recording.machine(range(6))

    assert ranges(make_plan(machine, batches=True)) == ["0-5"]
    assert ranges(make_plan(machine, batches=True, threads=3)) == ["0,4-5"]


def test_a_source_that_does_not_know_every_cpu_is_not_used(recording: Recording) -> None:
    recording.each("0-3", "cpufreq/cpuinfo_max_freq", 3_000_000)
    machine = recording.machine(range(6))

    assert {core.performance for core in machine.cores} == {0}
    assert make_plan(machine, batches=True).threads == 6


def test_a_hybrid_processor_is_explained(recording: Recording) -> None:
    machine = hybrid(recording)
    default = explain(machine, make_plan(machine, batches=True)).splitlines()
    more = explain(machine, make_plan(machine, batches=True, threads=20)).splitlines()

    assert "hybrid    8 performance cores, 8 efficiency cores (none used)" in default
    assert "hybrid    8 performance cores, 8 efficiency cores (8 used)" in more
    assert "SMT       2 CPUs per core, used: 20 threads on 16 cores" in more


# Quotas.


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """96 cores of 2 CPUs, 8 cores an L3; recorded once for all containers on it."""
    recording = Recording(tmp_path_factory.mktemp("host"))
    recording.cores(*(f"{core},{core + 96}" for core in range(96)))
    for first in range(0, 96, 8):
        recording.l3(f"{first}-{first + 7},{first + 96}-{first + 103}")
    recording.online("0-191")
    return recording


@pytest.fixture
def container(host: Recording, recording: Recording) -> Recording:
    """Its own cgroups on the host's processors."""
    recording.borrow(host, "sys/devices")
    return recording


def test_a_version_2_quota_limits_the_threads(container: Recording) -> None:
    container.cgroup("0::/box", V2_MOUNT, box="400000 100000")
    machine = container.machine(range(192))

    assert machine.quota == 4.0
    assert machine.quota_source == "cgroup v2, /sys/fs/cgroup/box/cpu.max"
    assert ranges(make_plan(machine, batches=True)) == ["0-3"]


def test_a_version_1_quota_limits_the_threads(container: Recording) -> None:
    limits = {"cpu,cpuacct__box": "200000 50000", "cpu,cpuacct": "-1 100000"}
    container.cgroup("4:cpu,cpuacct:/box\n0::/\n", V1_MOUNT, **limits)
    machine = container.machine(range(192))

    assert machine.quota == 4.0
    assert machine.quota_source == "cgroup v1, /sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us"
    assert ranges(make_plan(machine, batches=False)) == ["0", "1", "2", "3"]


def test_an_ancestors_quota_holds_when_it_is_tighter(container: Recording) -> None:
    limits = {"a__b": "max 100000", "a": "150000 100000", "a__b__c": "800000 100000"}
    container.cgroup("0::/a/b/c", V2_MOUNT, **limits)
    machine = container.machine(range(192))

    assert machine.quota == 1.5
    assert machine.quota_source == "cgroup v2, /sys/fs/cgroup/a/cpu.max"
    assert make_plan(machine, batches=True).threads == 1


def test_a_hybrid_hierarchy_has_its_quota_with_the_cpu_controller(container: Recording) -> None:
    unified = V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    limits = {"cpu,cpuacct__box": "300000 100000", "unified__box": "max 100000"}
    container.cgroup("3:cpu,cpuacct:/box\n0::/box\n", V1_MOUNT + unified, **limits)
    machine = container.machine(range(192))

    assert machine.quota == 3.0


@pytest.mark.parametrize("path", ["/", "/../elsewhere", "/host/side/path", "/gone (deleted)"])
def test_a_path_that_a_namespace_hides_means_the_mounts_root(
    container: Recording, path: str
) -> None:
    container.cgroup(f"0::{path}", V2_MOUNT, **{".": "250000 100000"})
    machine = container.machine(range(192))

    assert machine.quota == 2.5
    assert make_plan(machine, batches=True).threads == 2


def test_a_path_upwards_does_not_leave_the_mount(container: Recording) -> None:
    container.cgroup("0::/../elsewhere", V2_MOUNT, **{"../elsewhere": "1000 1000"})
    machine = container.machine(range(192))

    assert machine.quota is None


def test_a_mounted_part_of_the_hierarchy_is_cut_off_the_path(container: Recording) -> None:
    mount = V1_MOUNT.replace(" / /sys", " /docker/abc /sys")
    limits = {"cpu,cpuacct__inner": "600000 100000", "cpu,cpuacct": "-1 100000"}
    container.cgroup("4:cpu,cpuacct:/docker/abc/inner", mount, **limits)
    machine = container.machine(range(192))

    assert machine.quota == 6.0


@pytest.mark.parametrize(("path", "directory"), [("/ours", "ours"), ("/", ".")])
def test_another_cgroups_mount_is_not_ours(container: Recording, path: str, directory: str) -> None:
    other = V2_MOUNT.replace(" / /sys/fs/cgroup ", r" /other /sys/fs/cgroup/its\040own ")
    limits = {"its own": "100000 100000", directory: "500000 100000"}
    container.cgroup(f"0::{path}", other + V2_MOUNT, **limits)
    machine = container.machine(range(192))

    assert machine.quota == 5.0


def test_without_a_mount_table_the_usual_places_are_read(container: Recording) -> None:
    container.cgroup("0::/box", "not a mount table", box="700000 100000")
    machine = container.machine(range(192))

    assert machine.quota == 7.0


@pytest.mark.parametrize("text", ["max 100000", "", "400000", "0 100000", "5 0", "many few"])
def test_what_is_not_a_quota_is_no_limit(container: Recording, text: str) -> None:
    container.cgroup("0::/box", V2_MOUNT, box=text)
    machine = container.machine(range(192))

    assert machine.quota is None
    assert machine.quota_source == "no limit in cgroup v2 /sys/fs/cgroup/box"
    assert make_plan(machine, batches=True).threads == 96


def test_a_quota_below_one_cpu_still_gives_a_thread(container: Recording) -> None:
    container.cgroup("0::/box", V2_MOUNT, box="20000 100000")
    machine = container.machine(range(192))

    assert make_plan(machine, batches=True).threads == 1


def test_more_threads_than_the_quota_are_refused_with_both_numbers(container: Recording) -> None:
    container.cgroup("0::/box", V2_MOUNT, box="400000 100000")
    machine = container.machine(range(192))

    with pytest.raises(ConfigurationError, match=r"^8 threads .* only 4 CPUs: 192 .* quota 4 CPUs"):
        make_plan(machine, batches=True, threads=8)


def test_a_quota_is_explained(container: Recording) -> None:
    container.cgroup("0::/box", V2_MOUNT, box="450000 100000")
    machine = container.machine(range(192))
    lines = explain(machine, make_plan(machine, batches=True)).splitlines()

    assert "quota     4.5 CPUs (cgroup v2, /sys/fs/cgroup/box/cpu.max)" in lines
    assert "plan      1 worker, 4 threads in total" in lines


# Machines that hide something.


def test_offline_cpus_are_not_used(recording: Recording) -> None:
    desktop(recording)
    recording.write("sys/devices/system/cpu/offline", "4,10")
    recording.each("5", "online", 0)
    recording.each("6", "online", 1)
    recording.online("0-3,6-9,11")
    machine = recording.machine(range(12))

    assert [core.cpus for core in machine.cores] == [(0, 6), (1, 7), (2, 8), (3, 9), (11,)]
    assert (machine.online, machine.allowed) == (9, 9)
    assert ranges(make_plan(machine, batches=True)) == ["0-3,11"]


def test_a_mask_that_is_all_offline_is_believed_over_the_files(recording: Recording) -> None:
    recording.write("sys/devices/system/cpu/offline", "0-7")

    assert recording.machine({2, 3}).allowed == 2


def test_a_machine_that_shows_nothing_has_a_core_for_each_cpu(recording: Recording) -> None:
    machine = recording.machine({3, 5})

    assert machine.cores == (Core((3,), 0, 0, 3, 0), Core((5,), 0, 0, 3, 0))
    assert (machine.online, machine.allowed, machine.quota) == (2, 2, None)
    assert ranges(make_plan(machine, batches=True)) == ["3,5"]


def test_nonsense_in_the_files_is_like_nothing(recording: Recording) -> None:
    recording.each("0-1", "topology/core_cpus_list", "?")
    recording.each("0-1", "topology/physical_package_id", -1)
    recording.each("0-1", "cache/index3/level", 3)
    recording.each("0-1", "cpu_capacity", "fast")
    recording.node(0, "x-y")
    recording.online("all")
    (recording.root / "proc/self").mkdir(parents=True)
    (recording.root / "proc/self/mountinfo").write_bytes(b"\xff\xfe")

    assert recording.machine({0, 1}).cores == (Core((0,), 0, 0, 0, 0), Core((1,), 0, 0, 0, 0))


def test_the_siblings_file_of_older_kernels_is_read(recording: Recording) -> None:
    recording.each("0-1", "topology/thread_siblings_list", "0-1")

    assert [core.cpus for core in recording.machine({0, 1}).cores] == [(0, 1)]


def test_without_an_l3_a_package_is_one_domain(recording: Recording) -> None:
    recording.cores("0", "1", package=0)
    recording.cores("2", "3", package=1)

    machine = recording.machine(range(4))

    assert [core.l3 for core in machine.cores] == [0, 0, 2, 2]
    assert ranges(make_plan(machine, batches=True)) == ["0-1", "2-3"]


def test_cpus_outside_the_l3_are_a_domain_of_their_own(recording: Recording) -> None:
    recording.cores("0", "1", "2", "3")
    recording.l3("0-1")

    assert [core.l3 for core in recording.machine(range(4)).cores] == [0, 0, 2, 2]


def test_an_empty_mask_is_refused(recording: Recording) -> None:
    with pytest.raises(ValueError, match="affinity mask is empty"):
        recording.machine(())


def test_this_machine_can_be_planned() -> None:
    machine = read_machine()

    assert make_plan(machine, batches=False).threads >= 1


# Any machine.


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Regular machines of up to 48 cores under any mask, some hybrid, some with a quota."""
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
    """What holds for every plan."""
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


@given(machines(), st.booleans())
def test_every_default_plan_keeps_cores_and_quota(machine: Machine, batches: bool) -> None:
    plan = make_plan(machine, batches=batches)

    check(machine, plan)
    assert plan.threads <= min(len(machine.cores), usable(machine))
    if not batches:
        assert len(plan.workers) == plan.threads


@given(machines(), st.booleans(), st.data())
def test_every_plan_has_the_threads_and_workers_asked_for(
    machine: Machine, batches: bool, data: st.DataObject
) -> None:
    threads = data.draw(st.integers(1, usable(machine)))
    workers = data.draw(st.integers(1, threads))

    plan = make_plan(machine, batches=batches, threads=threads, workers=workers)

    check(machine, plan)
    assert (plan.threads, len(plan.workers)) == (threads, workers)


@given(machines(), st.booleans(), st.integers(1, 20))
def test_numbers_out_of_range_are_always_refused(
    machine: Machine, batches: bool, excess: int
) -> None:
    limit = usable(machine)

    with pytest.raises(ConfigurationError, match=rf"^{limit + excess} threads .*only {limit} CPU"):
        make_plan(machine, batches=batches, threads=limit + excess)
    with pytest.raises(ConfigurationError, match=rf"^{limit + excess} workers .* {limit} thread"):
        make_plan(machine, batches=batches, threads=limit, workers=limit + excess)


@given(machines(), st.data())
def test_slower_kinds_of_cores_are_only_used_after_all_faster_ones(
    machine: Machine, data: st.DataObject
) -> None:
    threads = data.draw(st.integers(1, usable(machine)))
    plan = make_plan(machine, batches=True, threads=threads)

    cpus = {cpu for worker in plan.workers for cpu in worker}
    fastest = max(core.performance for core in machine.cores)
    idle_fast = [
        core
        for core in machine.cores
        if core.performance >= 0.8 * fastest and cpus.isdisjoint(core.cpus)
    ]
    used_slow = [
        core
        for core in machine.cores
        if core.performance < 0.8 * fastest and not cpus.isdisjoint(core.cpus)
    ]
    assert not (idle_fast and used_slow)


@given(machines(), st.data())
def test_threads_that_one_cache_has_fast_cores_for_share_it(
    machine: Machine, data: st.DataObject
) -> None:
    fastest = max(core.performance for core in machine.cores)
    fast = [core for core in machine.cores if core.performance >= 0.8 * fastest]
    largest = max(sum(core.l3 == l3 for core in fast) for l3 in {core.l3 for core in fast})
    threads = data.draw(st.integers(1, min(largest, usable(machine))))

    plan = make_plan(machine, batches=True, threads=threads)

    assert len(plan.workers) == 1
    assert len({core.l3 for core in fast if core.cpus[0] in plan.workers[0]}) == 1


@given(machines(), st.data())
def test_workers_as_many_as_caches_keep_within_one(machine: Machine, data: st.DataObject) -> None:
    cores = [core for core in machine.cores if core.performance == machine.cores[0].performance]
    machine = replace(machine, cores=tuple(cores), allowed=len(cores), quota=None)
    workers = data.draw(st.integers(len({core.l3 for core in cores}), len(cores)))

    plan = make_plan(machine, batches=False, workers=workers)

    l3 = {core.cpus[0]: core.l3 for core in cores}
    assert all(len({l3[cpu] for cpu in worker}) == 1 for worker in plan.workers)


@given(st.integers(1, 40), st.integers(1, 3), st.data())
def test_workers_in_one_cache_are_as_even_as_can_be(
    size: int, smt: int, data: st.DataObject
) -> None:
    cores = tuple(Core(tuple(range(c * smt, c * smt + smt)), 0, 0, 0, 0) for c in range(size))
    machine = Machine(cores, size * smt, size * smt, None, "drawn")
    threads = data.draw(st.integers(1, size * smt))
    workers = data.draw(st.integers(1, min(threads, size)))
    # With more threads, a worker of fewer cores may run out of siblings.
    assume(threads <= workers * (size // workers) * smt)

    plan = make_plan(machine, batches=True, threads=threads, workers=workers)

    sizes = [len(worker) for worker in plan.workers]
    assert max(sizes) - min(sizes) <= 1


@given(machines(), st.booleans(), st.data())
def test_an_explanation_names_every_cpu_of_the_plan(
    machine: Machine, batches: bool, data: st.DataObject
) -> None:
    threads = data.draw(st.integers(1, usable(machine)))
    plan = make_plan(machine, batches=batches, threads=threads)

    rows = [line for line in explain(machine, plan).splitlines() if line.startswith("worker")]

    named = [cpu for row in rows for cpu in parse_cpu_list(row.rpartition(" ")[2])]
    assert sorted(named) == sorted(cpu for worker in plan.workers for cpu in worker)


@pytest.fixture(scope="module")
def recorded_desktop(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    recording = Recording(tmp_path_factory.mktemp("desktop"))
    desktop(recording)
    return recording


@given(mask=st.sets(st.integers(0, 11), min_size=1))
def test_the_cores_read_hold_exactly_the_mask(recorded_desktop: Recording, mask: set[int]) -> None:
    machine = recorded_desktop.machine(mask)

    assert sorted(cpu for core in machine.cores for cpu in core.cpus) == sorted(mask)
    assert machine.allowed == len(mask)
    check(machine, make_plan(machine, batches=True))
