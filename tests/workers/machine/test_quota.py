"""CPU quotas of cgroups on a recorded machine."""

from __future__ import annotations

import pytest

from shared.errors import ConfigurationError
from tests.helpers.machines import (
    V1_MOUNT,
    V2_MOUNT,
    Recording,
    ranges,
)
from workers.machine.topology import make_plan


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
