"""The cores of a machine, cut into workers and threads.

The threads of an engine meet at spin barriers many times a token: a thread that shares its core
with another worker's, or that the cgroup's quota stops, holds up all the others of its worker.
So each thread gets a CPU of its own, each core belongs to one worker, and a quota of 4 CPUs
means 4 threads however many cores the machine has.
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

# One thread of a batching engine alone in its worker reads all the weights for itself:
# on two cores, one worker of two gave 144 tokens/s where two workers of one gave 90.
_SMALLEST_BATCHING_WORKER = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """The logical CPUs of each worker, ascending: one for each of its threads, none twice."""

    workers: tuple[tuple[int, ...], ...]

    @property
    def threads(self) -> int:
        """Threads of all workers together."""
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
    for each L3 domain; any other a worker for each core.
    `threads`: of all workers together, from 1 to the CPUs that mask and quota leave. Default: the
    performance cores, as far as the quota goes. Above the number of cores, SMT siblings are used.
    `workers`: from 1 to `threads`. Each keeps within an L3 domain and NUMA node where their number
    allows; within that, threads are divided evenly.
    Raises ConfigurationError when a number is out of range.
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
    """Cut the machine for so many models: each part's own cores, and the threads for them.

    `threads`: as in `make_plan`, of all models together. Raises ConfigurationError when there is
    not a core for each.
    """
    if models == 1:
        return [(machine, threads)]
    threads = _default_threads(machine) if threads is None else threads
    _check(machine, threads, None)
    cores = sorted(_choose_cores(machine.cores, threads), key=_by_kind(machine.cores))
    if models > len(cores):
        raise ConfigurationError(
            f"{models} models need a core each, and there are {counted(len(cores), 'core')};"
            " models in a folder take turns on the same cores: --models-dir"
        )
    groups = _divide(cores, models)
    seats = _seat(groups, threads)
    return [(_part(machine, group), len(cpus)) for group, cpus in zip(groups, seats, strict=True)]


def _part(machine: Machine, cores: Sequence[Core]) -> Machine:
    """A machine of these cores alone; they are as many as the quota allows."""
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
            f"{counted(threads, 'thread')} asked for, but this process may use only "
            f"{counted(usable, 'CPU')}: {machine.allowed} in its affinity mask, "
            f"quota {quota_text(machine)}"
        )
    if workers is not None and workers < 1:
        raise ConfigurationError(f"workers must be 1 or more, not {workers}")
    if workers is not None and workers > threads:
        raise ConfigurationError(
            f"{workers} workers need a thread each, but there are {counted(threads, 'thread')}"
        )


def _default_threads(machine: Machine) -> int:
    # Performance cores only: threads wait for each other at every operation, so decoding runs at
    # the pace of the slowest, and efficiency cores would slow the others down to theirs.
    return _within_quota(machine, len(fast_cores(machine.cores)))


def _within_quota(machine: Machine, count: int) -> int:
    # Rounded down: threads beyond the quota are stopped in the middle of a step, with the barrier
    # of all others waiting.
    return count if machine.quota is None else min(count, max(1, floor(machine.quota)))


# Choosing cores: as close together as can be.


def _choose_cores(cores: Sequence[Core], count: int) -> list[Core]:
    """The best `count` cores, or all when there are fewer."""
    if count >= len(cores):
        return list(cores)
    fast = fast_cores(cores)
    if count <= len(fast):
        return _choose_close(fast, count)
    return fast + _choose_close([core for core in cores if core not in fast], count - len(fast))


def _choose_close(cores: Sequence[Core], count: int) -> list[Core]:
    """Cores that share caches: as few L3 domains as hold them, each with about as many."""
    domains = grouped(_smallest_scope(cores, count), domain_of)
    domains.sort(key=len, reverse=True)
    held = 0
    used = 0
    while held < count:
        held += len(domains[used])
        used += 1
    chosen: list[Core] = []
    for left, domain in enumerate(reversed(domains[:used])):
        # Smallest first, so that what they cannot hold goes to the larger ones.
        share = min(len(domain), (count - len(chosen)) // (used - left))
        fastest_first = sorted(domain, key=lambda core: (-core.performance, core.cpus))
        chosen += fastest_first[:share]
    return chosen


def _smallest_scope(cores: Sequence[Core], count: int) -> list[Core]:
    """The L3 domain, NUMA node or package that holds so many cores, or else all of them."""
    for key in (domain_of, node_of, package_of):
        largest = max(grouped(cores, key), key=len)
        if len(largest) >= count:
            return largest
    return list(cores)


# Grouping cores into workers.


def _join_small_domains(cores: Sequence[Core]) -> list[list[Core]]:
    """The L3 domains, those too small for a worker joined with others of their NUMA node."""
    return [group for node in grouped(cores, node_of) for group in _join_small(node)]


def _join_small(node: Sequence[Core]) -> list[list[Core]]:
    domains = grouped(node, domain_of)
    large = [domain for domain in domains if len(domain) >= _SMALLEST_BATCHING_WORKER]
    rest = [core for domain in domains if domain not in large for core in domain]
    if len(rest) >= _SMALLEST_BATCHING_WORKER or not large:
        return [*large, rest] if rest else large
    min(large, key=len).extend(rest)
    return large


_LEVELS = (package_of, node_of, domain_of, position_of)


def _divide(cores: Sequence[Core], workers: int, level: int = 0) -> list[list[Core]]:
    """`workers` groups, at most as many as cores: by package, then node, L3 domain and core."""
    groups = grouped(cores, _LEVELS[level])
    if workers <= len(groups):
        return _join(groups, workers)
    domains = [len(grouped(group, domain_of)) for group in groups]
    counts = _apportion([len(group) for group in groups], domains, workers)
    divided = (_divide(group, n, level + 1) for group, n in zip(groups, counts, strict=True))
    return [part for parts in divided for part in parts]


def _join(groups: Sequence[Sequence[_T]], count: int) -> list[list[_T]]:
    """Join neighbouring groups until `count` are left, about equal in size."""
    total = sum(map(len, groups))
    joined: list[list[_T]] = [[]]
    size = 0
    for position, group in enumerate(groups):
        aim = total * len(joined) / count
        missing = count - len(joined)
        # Begin the next where the end is closest to an even share, and while enough are left.
        due = size + len(group) / 2 > aim or len(groups) - position == missing
        if joined[-1] and missing and due:
            joined.append([])
        joined[-1].extend(group)
        size += len(group)
    return joined


def _apportion(sizes: Sequence[int], domains: Sequence[int], workers: int) -> list[int]:
    """Workers for groups of these sizes, one at least and no more than their size.

    Each next goes where L3 domains still share one, then where a worker has the most.
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
    """By place, but within an L3 domain fast cores first: workers then have cores of one kind."""
    fast = set(fast_cores(cores))
    return lambda core: (*domain_of(core), core not in fast, *core.cpus)


# From cores to CPUs.


def _seat(groups: Sequence[Sequence[Core]], threads: int) -> list[list[int]]:
    """A CPU of each core, then siblings, to the smallest groups first, for so many threads."""
    seats = [[core.cpus[0] for core in group] for group in groups]
    spare = [_spare_siblings(group) for group in groups]
    for _ in range(threads - sum(map(len, seats))):
        smallest = min((i for i, cpus in enumerate(spare) if cpus), key=lambda i: len(seats[i]))
        seats[smallest].append(spare[smallest].pop(0))
    return seats


def _spare_siblings(cores: Sequence[Core]) -> list[int]:
    """Every core's second CPU, then every third, fastest cores first."""
    siblings = [
        (turn, -core.performance, cpu)
        for core in cores
        for turn, cpu in enumerate(core.cpus)
        if turn > 0
    ]
    return [cpu for _, _, cpu in sorted(siblings)]


def _split_cores(cores: Sequence[Core], threads: int, workers: int) -> list[list[int]]:
    """More workers than cores: some must share a core, the others have theirs whole."""
    seats = _seat([[core] for core in cores], threads)
    counts = _apportion([len(cpus) for cpus in seats], [1] * len(seats), workers)
    split = (_join([[c] for c in cpus], n) for cpus, n in zip(seats, counts, strict=True))
    return [part for parts in split for part in parts]
