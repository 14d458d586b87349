"""The text of `tokenflume --plan`: a plan in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from workers.machine.cores import (
    Core,
    Machine,
    counted,
    domain_of,
    fast_cores,
    grouped,
    node_of,
    package_of,
    quota_text,
)
from workers.machine.kernel_files import format_cpu_list
from workers.machine.topology import Plan


def explain(machine: Machine, plan: Plan) -> str:
    """The cores found, the limits on them and the resulting plan, as aligned lines."""
    rows = [
        ("cores", _cores_text(machine)),
        ("affinity", _affinity_text(machine)),
        ("quota", quota_text(machine)),
        ("SMT", _smt_text(machine, plan)),
        ("L3, NUMA", _domains_text(machine, plan)),
        ("hybrid", _hybrid_text(machine, plan)),
        ("plan", _plan_row_text(plan)),
        *_worker_rows(machine, plan),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def _plan_row_text(plan: Plan) -> str:
    return f"{counted(len(plan.workers), 'worker')}, {counted(plan.threads, 'thread')} in total"


def _cores_text(machine: Machine) -> str:
    cores = machine.cores
    units = (
        counted(len(grouped(cores, key)), noun)
        for key, noun in ((package_of, "package"), (node_of, "NUMA node"), (domain_of, "L3 domain"))
    )
    return f"{counted(len(cores), 'core')}, {counted(machine.allowed, 'CPU')}: {', '.join(units)}"


def _affinity_text(machine: Machine) -> str:
    if machine.allowed >= machine.online:
        return f"all {counted(machine.online, 'CPU')} (cgroup cpuset included)"
    cpus = format_cpu_list(cpu for core in machine.cores for cpu in core.cpus)
    online = counted(machine.online, "CPU")
    return f"{machine.allowed} of {online}: {cpus} (cgroup cpuset included)"


def _smt_text(machine: Machine, plan: Plan) -> str:
    siblings = max(len(core.cpus) for core in machine.cores)
    if siblings == 1:
        return "none: one CPU per core"
    used = len(_cores_of(machine, plan))
    if plan.threads > used:
        return f"{siblings} CPUs per core, used: {plan.threads} threads on {counted(used, 'core')}"
    return f"{siblings} CPUs per core: one thread per core, siblings stay idle"


def _domains_text(machine: Machine, plan: Plan) -> str:
    workers = [_cores_of(machine, Plan((cpus,))) for cpus in plan.workers]
    for key, unit in ((domain_of, "L3 domain"), (node_of, "NUMA node")):
        across = sum(len(grouped(cores, key)) > 1 for cores in workers)
        if not across:
            return f"each worker stays within one {unit}"
    return f"workers that span several NUMA nodes: {across} of {len(workers)}"


def _hybrid_text(machine: Machine, plan: Plan) -> str:
    fast = set(fast_cores(machine.cores))
    slow = len(machine.cores) - len(fast)
    if not slow:
        return "no: all cores are of one kind"
    used = sum(core not in fast for core in _cores_of(machine, plan))
    kinds = f"{counted(len(fast), 'performance core')}, {counted(slow, 'efficiency core')}"
    return f"{kinds} ({used or 'none'} used)"


def _worker_rows(machine: Machine, plan: Plan) -> Iterator[tuple[str, str]]:
    """One row per worker. Adjacent workers with one thread each on one node share a row."""
    nodes = {cpu: core.node for core in machine.cores for cpu in core.cpus}
    first = 0
    while first < len(plan.workers):
        last = first
        while last + 1 < len(plan.workers) and _share_row(nodes, *plan.workers[last : last + 2]):
            last += 1
        yield _worker_row(plan.workers[first : last + 1], first, nodes)
        first = last + 1


def _share_row(nodes: dict[int, int], one: tuple[int, ...], next_: tuple[int, ...]) -> bool:
    # CPUs must ascend, so that those of the row are in the order of its workers.
    single = len(one) == len(next_) == 1
    return single and one < next_ and nodes[one[0]] == nodes[next_[0]]


def _worker_row(
    workers: Sequence[tuple[int, ...]], first: int, nodes: dict[int, int]
) -> tuple[str, str]:
    cpus = [cpu for worker in workers for cpu in worker]
    on = format_cpu_list(nodes[cpu] for cpu in cpus)
    label = "worker" if len(workers) == 1 else "workers"
    each = " each" if len(workers) > 1 else ""
    return (
        f"{label} {format_cpu_list(range(first, first + len(workers)))}",
        f"{counted(len(workers[0]), 'thread')}{each}, node {on}, CPUs {format_cpu_list(cpus)}",
    )


def _cores_of(machine: Machine, plan: Plan) -> list[Core]:
    cpus = {cpu for worker in plan.workers for cpu in worker}
    return [core for core in machine.cores if not cpus.isdisjoint(core.cpus)]
