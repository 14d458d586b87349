"""Plans for recorded machines, and properties of plans for any machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.errors import ConfigurationError
from tests.helpers.machines import (
    Recording,
    check,
    desktop,
    hybrid,
    machines,
    ranges,
    usable,
)
from workers.machine.cores import Core, Machine, read_machine
from workers.machine.topology import make_plan

# A desktop.


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


def test_more_workers_than_cores_share_as_few_cores_as_possible(recording: Recording) -> None:
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


# Hybrid processors.


def test_a_hybrid_processor_uses_its_performance_cores(recording: Recording) -> None:
    plan = make_plan(hybrid(recording), batches=True)

    assert ranges(plan) == ["0,2,4,6,8,10,12,14"]


def test_efficiency_cores_come_when_asked_for_and_before_siblings(recording: Recording) -> None:
    machine = hybrid(recording)

    assert ranges(make_plan(machine, batches=True, threads=10)) == ["0,2,4,6,8,10,12,14,16-17"]
    assert ranges(make_plan(machine, batches=True, threads=17)) == ["0-2,4,6,8,10,12,14,16-23"]


def test_workers_have_cores_of_one_kind(recording: Recording) -> None:
    # As on processors whose core numbers alternate between the kinds.
    machine = hybrid(recording)
    swapped = tuple(
        replace(core, performance=1024 if core.cpus[0] % 4 == 0 else 512) for core in machine.cores
    )
    plan = make_plan(replace(machine, cores=swapped), batches=True, threads=16, workers=2)

    assert ranges(plan) == ["0,2,4,6,8,12,16,20", "10,14,17-19,21-23"]


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


# Any machine.


def test_this_machine_can_be_planned() -> None:
    machine = read_machine()

    assert make_plan(machine, batches=False).threads >= 1


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
def test_threads_that_fit_the_fast_cores_of_one_cache_share_it(
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
def test_workers_in_one_cache_are_as_even_as_possible(
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
