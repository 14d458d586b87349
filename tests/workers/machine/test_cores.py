"""Cores as they are read from the files of recorded machines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.machines import (
    Recording,
    check,
    desktop,
    ranges,
)
from workers.machine.cores import Core, node_of_cpus
from workers.machine.kernel_files import parse_cpu_list
from workers.machine.topology import make_plan


def test_siblings_of_a_desktop_are_one_core(recording: Recording) -> None:
    machine = desktop(recording)

    assert machine.cores[2] == Core(cpus=(2, 8), package=0, node=0, l3=0, performance=0)
    assert len(machine.cores) == 6
    assert (machine.online, machine.allowed, machine.quota) == (12, 12, None)


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


def test_a_machine_without_readable_files_has_a_core_for_each_cpu(recording: Recording) -> None:
    machine = recording.machine({3, 5})

    assert machine.cores == (Core((3,), 0, 0, 3, 0), Core((5,), 0, 0, 3, 0))
    assert (machine.online, machine.allowed, machine.quota) == (2, 2, None)
    assert ranges(make_plan(machine, batches=True)) == ["3,5"]


def test_files_that_contain_nonsense_are_ignored(recording: Recording) -> None:
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
