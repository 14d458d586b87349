"""The text of `--plan` for recorded machines and for any machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.machines import (
    V2_MOUNT,
    Recording,
    desktop,
    hybrid,
    machines,
    usable,
)
from workers.machine.cores import Machine
from workers.machine.kernel_files import parse_cpu_list
from workers.machine.plan_text import explain
from workers.machine.topology import make_plan


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


def test_a_row_of_several_workers_has_their_cpus_in_their_order(recording: Recording) -> None:
    recording.each("0-1", "cpu_capacity", 400)
    recording.each("2-3", "cpu_capacity", 1024)
    machine = recording.machine(range(4))
    lines = explain(machine, make_plan(machine, batches=False, threads=4)).splitlines()

    assert lines[-2:] == [
        "workers 0-1  1 thread each, node 0, CPUs 2-3",
        "workers 2-3  1 thread each, node 0, CPUs 0-1",
    ]


def test_a_hybrid_processor_is_explained(recording: Recording) -> None:
    machine = hybrid(recording)
    default = explain(machine, make_plan(machine, batches=True)).splitlines()
    more = explain(machine, make_plan(machine, batches=True, threads=20)).splitlines()

    assert "hybrid    8 performance cores, 8 efficiency cores (none used)" in default
    assert "hybrid    8 performance cores, 8 efficiency cores (8 used)" in more
    assert "SMT       2 CPUs per core, used: 20 threads on 16 cores" in more


def test_a_quota_is_explained(container: Recording) -> None:
    container.cgroup("0::/box", V2_MOUNT, box="450000 100000")
    machine = container.machine(range(192))
    lines = explain(machine, make_plan(machine, batches=True)).splitlines()

    assert "quota     4.5 CPUs (cgroup v2, /sys/fs/cgroup/box/cpu.max)" in lines
    assert "plan      1 worker, 4 threads in total" in lines


@given(machines(), st.booleans(), st.data())
def test_an_explanation_names_every_cpu_of_the_plan(
    machine: Machine, batches: bool, data: st.DataObject
) -> None:
    threads = data.draw(st.integers(1, usable(machine)))
    plan = make_plan(machine, batches=batches, threads=threads)

    rows = [line for line in explain(machine, plan).splitlines() if line.startswith("worker")]

    named = [cpu for row in rows for cpu in parse_cpu_list(row.rpartition(" ")[2])]
    assert sorted(named) == sorted(cpu for worker in plan.workers for cpu in worker)
