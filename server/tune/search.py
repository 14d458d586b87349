"""Which options to try, in which order, and which to keep: one question after the other.

    cores ─▶ repack ─▶ kv-type ─▶ batch-size ─▶ all figures, slots ─▶ max-stall

Each question keeps the best options so far. A value replaces the default only if it is faster by
more than NOISE. Options that the user has set are not tried.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from server.config.options import Options
from server.config.specs import GivenModel, make_specs
from server.tune.measure import Figures, Gauge, StallFigure, fastest, ready_pool
from shared.errors import ConfigurationError
from shared.settings import KvType, ModelSpec
from workers.engines.memory_plan import MOST_SLOTS, MemoryPlan, can_repack, header_of, plan_memory
from workers.engines.table import ENGINES
from workers.machine.cores import Machine, counted
from workers.machine.memory import available_memory

STREAMS = (1, 4, 8, 16)
"""Numbers of streams whose throughput is measured."""
NOISE = 1.05
"""A score must be larger than this factor to count as faster."""
ENOUGH = 0.95
"""Share of the highest throughput: more streams than bring this share gain nothing."""
STALLS_MS = (50.0, 150.0, 400.0)
"""Values of --max-stall to try."""
LITTLE_LATER = 1.25
"""Factor by which a first token may come later in exchange for shorter pauses."""
BATCHES = (32, 128)
"""Values of --batch-size to try, for an engine that does not choose it by measuring."""
WINDOWS = 60
"""The duration is divided into this number of windows; a measurement takes about one."""
BUSY_S = 0.5
"""Time over which the load by other programs is measured."""
MAX_WINDOW_S = 2.0
MIN_WINDOW_S = 0.1


@dataclass(slots=True)
class Trial:
    """Options that were measured, and their best figures."""

    name: str
    options: Options
    spec: ModelSpec
    figures: Figures

    @property
    def workers(self) -> int:
        return len(self.spec.pool.workers)

    @property
    def threads(self) -> int:
        """Threads of all workers together."""
        return sum(len(worker.cpus) for worker in self.spec.pool.workers)


@dataclass(frozen=True, slots=True)
class Advice:
    """An option to set, and why."""

    option: str
    value: Any
    reason: str


@dataclass(slots=True)
class Tuned:
    """The result of a search."""

    memory: MemoryPlan
    available: int | None
    """Bytes of memory that were free before anything was loaded; None: not known."""
    trials: list[Trial] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    """What was not measured, and why."""
    figures: Figures | None = None
    """Figures of the recommended options."""
    stalls: dict[float, StallFigure] = field(default_factory=dict)
    """By the value of --max-stall, in milliseconds."""
    busy: float = 0.0
    """Share of the cores that other programs used at the start, 0 to 1."""


def check_memory(spec: ModelSpec) -> tuple[MemoryPlan, int | None]:
    """The memory that the model takes, and the free memory (None: not known), in bytes.

    Raises ConfigurationError for a model that does not fit.
    """
    memory, available = plan_memory(spec.model, len(spec.pool.workers)), available_memory()
    if available is not None and memory.total_bytes > available:
        raise ConfigurationError(
            f"{spec.name} does not fit: it takes about {memory.total_bytes / 2**20:,.0f} MiB"
            f" ({memory.weight_bytes / 2**20:,.0f} of weights,"
            f" {memory.kv_bytes / 2**20:,.0f} of KV cache for"
            f" {counted(memory.slots, 'stream')}), and {available / 2**20:,.0f} MiB are free;"
            " a smaller quantization, -n or --slots takes less"
        )
    return memory, available


class Tuner:
    """Searches the fastest options for one model.

    `given`: names of options that keep their values. `seconds`: approximate duration. `tell` is
    called with a few words about each measurement, before it starts.
    """

    def __init__(
        self,
        file: GivenModel,
        options: Options,
        given: Collection[str],
        machine: Machine,
        seconds: float,
        tell: Callable[[str], None],
    ) -> None:
        self._file = file
        self._best_options = options
        self._given = given
        self._machine = machine
        self._tell = tell
        self._ends = time.monotonic() + seconds
        self._window_s = min(MAX_WINDOW_S, max(MIN_WINDOW_S, seconds / WINDOWS))
        self._costs_s: list[float] = []
        spec = self._spec(options)
        self._tuned = Tuned(*check_memory(spec))
        self._header = header_of(spec.model)

    @property
    def memory(self) -> MemoryPlan:
        """The memory that the model takes with the given options."""
        return self._tuned.memory

    @property
    def available(self) -> int | None:
        """Bytes of free memory; None: not known."""
        return self._tuned.available

    async def run(self) -> Tuned:
        """Raises ConfigurationError if the model cannot be loaded, or a request fails."""
        self._tell("load by other programs")
        self._tuned.busy = await asyncio.to_thread(busy_share, self._machine)
        spec = self._spec(self._best_options)
        best = await self._measure(_name(spec), self._best_options, STREAMS)
        self._tuned.trials.append(best)
        best = await self._ask_cores(best)
        best = await self._ask_repack(best)
        best = await self._ask_kv_type(best)
        best = await self._ask_batch(best)
        self._tuned.figures = best.figures
        self._ask_slots(best)
        await self._ask_stall(best)
        return self._tuned

    # ---------------------------------------------------------------- the questions

    async def _ask_cores(self, best: Trial) -> Trial:
        first = best
        for threads, workers in self._alternatives(best.threads, best.workers):
            best = await self._better(best, "", num_threads=threads, workers=workers)
        if len(self._tuned.trials) > 1:
            is_same = best is first
            reason = "nothing is faster" if is_same else _gain(best, first)
            self._advise("num_threads", best.threads, reason)
            self._advise("workers", best.workers, reason)
        return best

    def _alternatives(self, threads: int, workers: int) -> list[tuple[int, int]]:
        """Other pairs of threads and workers that may be faster than this one."""
        usable = self._machine.allowed
        if self._machine.quota is not None:
            usable = min(usable, max(1, math.floor(self._machine.quota)))
        batches = ENGINES[self._file.engine].batches
        wanted = [(threads, 1), (threads, 2), (usable, 1)]
        wanted += [(threads // 2, 1)] if threads >= 4 else []
        wanted += [] if batches else [(threads, threads), (usable, usable)]
        alternatives = []
        for n, count in wanted:
            asked = {"num_threads": n != threads, "workers": count != workers}
            is_new = (n, count) != (threads, workers) and (n, count) not in alternatives
            if (
                is_new
                and count <= n
                and not any(asked[name] for name in asked if self._is_set(name))
            ):
                alternatives.append((n, count))
        return alternatives

    async def _ask_repack(self, best: Trial) -> Trial:
        if self._is_set("repack") or not can_repack(best.spec.model, self._header):
            return best
        is_on = best.spec.model.repack
        other, tried = "off" if is_on else "on", len(self._tuned.trials)
        first = best
        best = await self._better(best, f"the same, repack {other}", repack=other)
        if best is not first:
            self._advise("repack", other, _gain(best, first))
        elif len(self._tuned.trials) > tried:
            self._advise("repack", "on" if is_on else "off", f"{other} is no faster")
        return best

    async def _ask_kv_type(self, best: Trial) -> Trial:
        """A smaller KV cache only helps if the memory is short of slots."""
        kv_type: KvType = "q8_0"
        slots = plan_memory(best.spec.model, best.workers).slots
        is_short = slots < MOST_SLOTS * best.workers and best.spec.model.slots is None
        if self._file.engine != "llama_cpp" or self._is_set("kv_type") or not is_short:
            return best
        first = best
        best = await self._better(best, f"the same, kv-type {kv_type}", kv_type=kv_type)
        if best is not first:
            self._advise("kv_type", kv_type, f"more streams fit; {_gain(best, first)}")
        return best

    async def _ask_batch(self, best: Trial) -> Trial:
        entry = ENGINES[self._file.engine]
        if entry.measured or self._file.engine == "echo" or self._is_set("batch_size"):
            return best
        first = best
        for size in BATCHES:
            best = await self._better(best, f"the same, batch-size {size}", batch_size=size)
        if best is not first:
            self._advise("batch_size", best.options.batch_size, _gain(best, first))
        return best

    def _ask_slots(self, best: Trial) -> None:
        """Advise no more slots than increase the throughput that was measured."""
        if self._is_set("slots") or not ENGINES[self._file.engine].batches:
            return
        rates = best.figures.rates
        if not all(rates.values()):
            self._tuned.untried.append("slots: too few tokens were generated to compare")
            return
        most = max(rates.values())
        streams = min(n for n, rate in rates.items() if rate >= ENOUGH * most)
        fit = plan_memory(best.spec.model, best.workers).slots
        slots = math.ceil(min(streams, fit) / best.workers)
        if streams > fit:
            reason = f"as many as fit into memory; {streams} streams would have more throughput"
        elif streams == max(rates):
            reason = f"{streams} streams have more throughput than fewer"
        else:
            reason = f"more than {streams} streams add no throughput and slow each other down"
        self._advise("slots", slots, reason)

    async def _ask_stall(self, best: Trial) -> None:
        """Advise the smallest limit with which first tokens come little later than at best."""
        if not ENGINES[self._file.engine].measured:
            return
        own = best.options.max_stall
        limits = [own] if self._is_set("max_stall") else [own, *(x for x in STALLS_MS if x != own)]
        for limit in limits:
            await self._measure_stall(best, limit)
        found = self._tuned.stalls
        if len(found) < 2:
            return
        soonest = min(figure.prompt.seconds for figure in found.values())
        limit = min(x for x in found if found[x].prompt.seconds <= LITTLE_LATER * soonest)
        reason = "a higher limit makes first tokens little faster"
        if limit == max(found):
            reason = "a lower limit makes first tokens much slower"
        self._advise("max_stall", limit, reason)

    # ---------------------------------------------------------------- measuring

    async def _better(self, best: Trial, name: str, **changes: Any) -> Trial:
        """A trial with the changes, if it is faster; otherwise `best`."""
        options = replace(best.options, **changes)
        name = name or _name(self._spec(options))
        reason = self._why_not(options)
        if reason:
            self._tuned.untried.append(f"{name}: {reason}")
            return best
        trial = await self._measure(name, options, STREAMS)
        self._tuned.trials.append(trial)
        if score(trial.figures, best.figures) <= NOISE:
            return best
        if self._has_time(2):  # `best` may have been disturbed: measure it again
            again = await self._measure(best.name, best.options, STREAMS)
            best.figures = fastest(best.figures, again.figures)
        return trial if score(trial.figures, best.figures) > NOISE else best

    def _why_not(self, options: Options) -> str:
        """Why these options cannot be measured, in a sentence; empty if they can."""
        try:
            check_memory(self._spec(options))
        except ConfigurationError as error:
            return str(error)
        return "" if self._has_time(2) else "no time left"  # the second is for max-stall

    def _has_time(self, measurements: int) -> bool:
        """Whether there is time for this number of measurements, as long as the longest one."""
        return time.monotonic() + measurements * max(self._costs_s) <= self._ends

    async def _measure(self, name: str, options: Options, streams: tuple[int, ...]) -> Trial:
        self._tell(name)
        spec, started = self._spec(options), time.monotonic()
        async with ready_pool(spec.pool) as (pool, load_s):
            figures = await Gauge(pool, self._window_s).figures(load_s, streams)
        self._costs_s.append(time.monotonic() - started)
        return Trial(name, options, spec, figures)

    async def _measure_stall(self, best: Trial, limit: float) -> None:
        name = f"the same, max-stall {limit:g} ms"
        if limit != best.options.max_stall and not self._has_time(1):
            self._tuned.untried.append(f"{name}: no time left")
            return
        self._tell(name)
        options = replace(best.options, max_stall=limit)
        async with ready_pool(self._spec(options).pool) as (pool, _):
            gauge = Gauge(pool, self._window_s)
            if gauge.slots > 1:
                self._tuned.stalls[limit] = await gauge.stall()

    def _spec(self, options: Options) -> ModelSpec:
        specs, _ = make_specs([self._file], options, self._machine)
        return specs[0]

    def _is_set(self, option: str) -> bool:
        return option in self._given

    def _advise(self, option: str, value: Any, reason: str) -> None:
        if not self._is_set(option):
            self._tuned.advice.append(Advice(option, value, reason))


def score(figures: Figures, before: Figures) -> float:
    """How much faster these figures are, as a factor: the geometric mean of the ratios of all
    rates and of the prompt's speed. Rates that could not be measured are left out."""
    pairs = [(figures.rates[n], rate) for n, rate in before.rates.items()]
    pairs.append((1 / figures.prompt.seconds, 1 / before.prompt.seconds))
    ratios = [after / earlier for after, earlier in pairs if after > 0 and earlier > 0]
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0


def busy_share(machine: Machine) -> float:
    """Share of the machine's cores that is in use, 0 to 1. Takes BUSY_S seconds."""
    cpus = [cpu for core in machine.cores for cpu in core.cpus]
    shares = psutil.cpu_percent(BUSY_S, percpu=True)
    used = [shares[cpu] for cpu in cpus if cpu < len(shares)]
    return sum(used) / len(used) / 100 if used else 0.0


def _name(spec: ModelSpec) -> str:
    workers = spec.pool.workers
    threads = sum(len(worker.cpus) for worker in workers)
    return f"{counted(len(workers), 'worker')}, {counted(threads, 'thread')}"


def _gain(best: Trial, first: Trial) -> str:
    return f"{score(best.figures, first.figures) - 1:.0%} faster"
