"""Divides the cores of a machine among workers and threads.

The threads of an engine wait for each other at spin barriers many times per token. If one thread
shares its core with another worker's thread, or is throttled by the cgroup's quota, all threads of
its worker wait. So each thread gets a CPU of its own, each core belongs to one worker, and a quota
of 4 CPUs means 4 threads on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import TypeVar

from shared.errors import ConfigurationError
from workers.machine.cores import (
    Core,
    Machine,
    counted,
    domain_of,
    fast_cores,
    grouped,
    node_of,
    package_of,
    position_of,
    quota_text,
)

_T = TypeVar("_T")

# A batching worker with a single thread reads all weights for that thread alone. On two cores, one
# worker with two threads reached 144 tokens/s, and two workers with one thread 90.
_SMALLEST_BATCHING_WORKER = 2
# The levels by which cores are divided, from the outermost.
_LEVELS = (package_of, node_of, domain_of, position_of)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which CPUs each worker uses."""

    workers: tuple[tuple[int, ...], ...]
    """The logical CPUs of each worker, ascending: one for each of its threads, none twice."""

    @property
    def threads(self) -> int:
        """The number of threads of all workers together."""
        return sum(map(len, self.workers))


def make_plan(
    machine: Machine,
    *,
    batches: bool,
    threads: int | None = None,
    workers: int | None = None,
) -> Plan:
    """Give each worker its own CPUs.

    `batches`: whether the engine decodes many sequences in one step. Such an engine gets a worker
    for each L3 domain by default. Other engines get a worker for each core.
    `threads`: of all workers together, from 1 to the number of CPUs that mask and quota allow.
    Default: the number of performance cores, limited by the quota. SMT siblings are used only if
    there are more threads than cores.
    `workers`: from 1 to `threads`. Each worker stays within an L3 domain and NUMA node if their
    number allows it. Apart from that, threads are divided evenly.
    Raises ConfigurationError if a number is out of range.
    """
    threads = _default_threads(machine) if threads is None else threads
    _check(machine, threads, workers)
    cores = sorted(_choose_cores(machine.cores, threads), key=_by_kind(machine.cores))
    if workers is not None and workers > len(cores):
        return _plan(_split_cores(cores, threads, workers))
    if workers is not None:
        return _plan(_seat(_divide(cores, workers), threads))
    groups = _join_small_domains(cores) if batches else [[core] for core in cores]
    return _plan(_seat(groups, threads))


def share_machine(
    machine: Machine, models: int, threads: int | None = None
) -> list[tuple[Machine, int | None]]:
    """Divide the machine among `models` models: a machine of its own cores and a thread count each.

    `threads`: of all models together, as in `make_plan`.
    Raises ConfigurationError if there are fewer cores than models.
    """
    if models == 1:
        return [(machine, threads)]
    threads = _default_threads(machine) if threads is None else threads
    _check(machine, threads, None)
    cores = sorted(_choose_cores(machine.cores, threads), key=_by_kind(machine.cores))
    if models > len(cores):
        raise ConfigurationError(
            f"{models} models need a core each, but there are only {counted(len(cores), 'core')};"
            " with --models-dir models take turns on the same cores"
        )
    groups = _divide(cores, models)
    seats = _seat(groups, threads)
    return [(_part(machine, group), len(cpus)) for group, cpus in zip(groups, seats, strict=True)]


def _part(machine: Machine, cores: Sequence[Core]) -> Machine:
    """A machine with only these cores. Their number already respects the quota."""
    allowed = sum(len(core.cpus) for core in cores)
    return replace(machine, cores=tuple(cores), allowed=allowed, quota=None)


def _plan(workers: Iterable[Iterable[int]]) -> Plan:
    return Plan(tuple(tuple(sorted(cpus)) for cpus in workers))


def _check(machine: Machine, threads: int, workers: int | None) -> None:
    usable = _within_quota(machine, machine.allowed)
    if threads < 1:
        raise ConfigurationError(f"threads must be 1 or more, not {threads}")
    if threads > usable:
        raise ConfigurationError(
            f"{counted(threads, 'thread')} requested, but this process may use only "
            f"{counted(usable, 'CPU')}: {machine.allowed} in its affinity mask, "
            f"quota {quota_text(machine)}"
        )
    if workers is not None and workers < 1:
        raise ConfigurationError(f"workers must be 1 or more, not {workers}")
    if workers is not None and workers > threads:
        raise ConfigurationError(
            f"{workers} workers need a thread each, but there are only {counted(threads, 'thread')}"
        )


def _default_threads(machine: Machine) -> int:
    # Performance cores only: threads wait for each other at every operation, so efficiency cores
    # would slow all threads down to their speed.
    return _within_quota(machine, len(fast_cores(machine.cores)))


def _within_quota(machine: Machine, count: int) -> int:
    # Rounded down: threads beyond the quota are throttled in the middle of a step, while all
    # others wait at a barrier.
    return count if machine.quota is None else min(count, max(1, floor(machine.quota)))


# Choosing cores: as close to each other as possible.


def _choose_cores(cores: Sequence[Core], count: int) -> list[Core]:
    """The best `count` cores, or all cores if there are fewer."""
    if count >= len(cores):
        return list(cores)
    fast = fast_cores(cores)
    if count <= len(fast):
        return _choose_close(fast, count)
    return fast + _choose_close([core for core in cores if core not in fast], count - len(fast))


def _choose_close(cores: Sequence[Core], count: int) -> list[Core]:
    """`count` cores in as few L3 domains as possible, evenly distributed among these."""
    domains = grouped(_smallest_scope(cores, count), domain_of)
    domains.sort(key=len, reverse=True)
    held = 0
    used = 0
    while held < count:
        held += len(domains[used])
        used += 1
    chosen: list[Core] = []
    for left, domain in enumerate(reversed(domains[:used])):
        # Smallest first, so that the larger ones take what these cannot hold.
        share = min(len(domain), (count - len(chosen)) // (used - left))
        fastest_first = sorted(domain, key=lambda core: (-core.performance, core.cpus))
        chosen += fastest_first[:share]
    return chosen


def _smallest_scope(cores: Sequence[Core], count: int) -> list[Core]:
    """The cores of the first L3 domain, NUMA node or package with `count` cores; else all."""
    for key in (domain_of, node_of, package_of):
        largest = max(grouped(cores, key), key=len)
        if len(largest) >= count:
            return largest
    return list(cores)


# Grouping cores into workers.


def _join_small_domains(cores: Sequence[Core]) -> list[list[Core]]:
    """The L3 domains. Those too small for a worker are joined with others of their NUMA node."""
    return [group for node in grouped(cores, node_of) for group in _join_small(node)]


def _join_small(node: Sequence[Core]) -> list[list[Core]]:
    domains = grouped(node, domain_of)
    large = [domain for domain in domains if len(domain) >= _SMALLEST_BATCHING_WORKER]
    rest = [core for domain in domains if domain not in large for core in domain]
    if len(rest) >= _SMALLEST_BATCHING_WORKER or not large:
        return [*large, rest] if rest else large
    min(large, key=len).extend(rest)
    return large


def _divide(cores: Sequence[Core], workers: int, level: int = 0) -> list[list[Core]]:
    """Divide the cores into `workers` groups: by package, then node, L3 domain and core.

    `workers`: at most the number of cores.
    """
    groups = grouped(cores, _LEVELS[level])
    if workers <= len(groups):
        return _join(groups, workers)
    domains = [len(grouped(group, domain_of)) for group in groups]
    counts = _apportion([len(group) for group in groups], domains, workers)
    divided = (_divide(group, n, level + 1) for group, n in zip(groups, counts, strict=True))
    return [part for parts in divided for part in parts]


def _join(groups: Sequence[Sequence[_T]], count: int) -> list[list[_T]]:
    """Join adjacent groups into `count` groups of about equal size."""
    total = sum(map(len, groups))
    joined: list[list[_T]] = [[]]
    size = 0
    for position, group in enumerate(groups):
        aim = total * len(joined) / count
        missing = count - len(joined)
        # Begin the next group where the share is closest to even, and while enough are left.
        due = size + len(group) / 2 > aim or len(groups) - position == missing
        if joined[-1] and missing and due:
            joined.append([])
        joined[-1].extend(group)
        size += len(group)
    return joined


def _apportion(sizes: Sequence[int], domains: Sequence[int], workers: int) -> list[int]:
    """The number of workers for groups of these sizes: from 1 to the group's size.

    Each further worker goes to a group with fewer workers than L3 domains if there is one, and
    otherwise to the group with the most cores per worker.
    """
    counts = [1] * len(sizes)
    for _ in range(workers - len(sizes)):
        neediest = max(
            (i for i, size in enumerate(sizes) if counts[i] < size),
            key=lambda i: (counts[i] < domains[i], sizes[i] / counts[i]),
        )
        counts[neediest] += 1
    return counts


def _by_kind(cores: Sequence[Core]) -> Callable[[Core], tuple[int, ...]]:
    """A sort key: by place, but fast cores first within an L3 domain, so that workers have cores
    of one kind."""
    fast = set(fast_cores(cores))
    return lambda core: (*domain_of(core), core not in fast, *core.cpus)


# From cores to CPUs.


def _seat(groups: Sequence[Sequence[Core]], threads: int) -> list[list[int]]:
    """The CPUs of each group for `threads` threads: one of each core, then SMT siblings.

    Siblings go to the smallest groups first.
    """
    seats = [[core.cpus[0] for core in group] for group in groups]
    spare = [_spare_siblings(group) for group in groups]
    for _ in range(threads - sum(map(len, seats))):
        smallest = min((i for i, cpus in enumerate(spare) if cpus), key=lambda i: len(seats[i]))
        seats[smallest].append(spare[smallest].pop(0))
    return seats


def _spare_siblings(cores: Sequence[Core]) -> list[int]:
    """The second CPU of each core, then the third and so on, fastest cores first."""
    siblings = [
        (turn, -core.performance, cpu)
        for core in cores
        for turn, cpu in enumerate(core.cpus)
        if turn > 0
    ]
    return [cpu for _, _, cpu in sorted(siblings)]


def _split_cores(cores: Sequence[Core], threads: int, workers: int) -> list[list[int]]:
    """The CPUs of more workers than cores: some workers share a core."""
    seats = _seat([[core] for core in cores], threads)
    counts = _apportion([len(cpus) for cpus in seats], [1] * len(seats), workers)
    split = (_join([[c] for c in cpus], n) for cpus, n in zip(seats, counts, strict=True))
    return [part for parts in split for part in parts]
