"""Which settings to try, in which order, and which to keep: one question after the other.

    cores ─▶ repack ─▶ kv-type ─▶ batch-size ─▶ all figures, slots ─▶ max-stall

Each question keeps what was best so far; a difference within NOISE is none, and what there would be
without a flag stays. What its user has set is not asked about.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import psutil

from server.config.specs import GivenModel, make_specs
from server.tune.measure import Figures, Gauge, StallFigure, fastest, ready_pool
from shared.errors import ConfigurationError
from shared.settings import KvType, ModelSpec
from workers.engines.memory_plan import MOST_SLOTS, MemoryPlan, can_repack, header_of, plan_memory
from workers.engines.table import ENGINES
from workers.machine.cores import Machine, counted
from workers.machine.memory import available_memory

STREAMS = (1, 4, 8, 16)
NOISE = 1.05
"""How much better something must be to be better."""
ENOUGH = 0.95
"""Of the most tokens/s: streams beyond those that bring so much gain nothing."""
STALLS_MS = (50.0, 150.0, 400.0)
LITTLE_LATER = 1.25
"""How much later a prompt's first token may come so that streams pause less."""
BATCHES = (32, 128)
"""Prompt tokens at a time, besides its own 8, for an engine that does not find out itself."""
WINDOWS = 60
"""Parts of the time; a measurement takes one, about."""
BUSY_S = 0.5
LONGEST_WINDOW_S = 2.0
SHORTEST_WINDOW_S = 0.1


@dataclass(slots=True)
class Trial:
    """Settings that were measured, and the best figures they ever had."""

    name: str
    options: argparse.Namespace
    spec: ModelSpec
    figures: Figures

    @property
    def workers(self) -> int:
        return len(self.spec.pool.workers)

    @property
    def threads(self) -> int:
        """Of all workers together."""
        return sum(len(worker.cpus) for worker in self.spec.pool.workers)


@dataclass(frozen=True, slots=True)
class Advice:
    """A flag to give, and why."""

    option: str
    value: Any
    reason: str


@dataclass(slots=True)
class Tuned:
    """All that was found."""

    memory: MemoryPlan
    available: int | None
    """Bytes that were left before anything was loaded; None: not known."""
    trials: list[Trial] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    """What was not measured, and why."""
    figures: Figures | None = None
    """Of the settings that are advised."""
    stalls: dict[float, StallFigure] = field(default_factory=dict)
    """By --max-stall, in milliseconds."""
    busy: float = 0.0
    """The share of the cores, in [0, 1], that other programs had when it began."""


def check_memory(spec: ModelSpec) -> tuple[MemoryPlan, int | None]:
    """What the model will take, and what is left. ConfigurationError where it cannot fit."""
    memory, available = plan_memory(spec.model, len(spec.pool.workers)), available_memory()
    if available is not None and memory.total_bytes > available:
        raise ConfigurationError(
            f"{spec.name} does not fit: it takes about {memory.total_bytes / 2**20:,.0f} MiB"
            f" ({memory.weight_bytes / 2**20:,.0f} of weights,"
            f" {memory.kv_bytes / 2**20:,.0f} of keys and values for"
            f" {counted(memory.slots, 'stream')}), and {available / 2**20:,.0f} MiB are left;"
            " a smaller quantization, -n or --slots takes less"
        )
    return memory, available


class Tuner:
    """Measures one model. `given`: options that stay as they are. `seconds`: to take, about.

    `tell` gets a few words on what is being measured.
    """

    def __init__(
        self,
        file: GivenModel,
        options: argparse.Namespace,
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
        self._window_s = min(LONGEST_WINDOW_S, max(SHORTEST_WINDOW_S, seconds / WINDOWS))
        self._costs_s: list[float] = []
        spec = self._spec(options)
        self._tuned = Tuned(*check_memory(spec))
        self._header = header_of(spec.model)

    @property
    def memory(self) -> MemoryPlan:
        """What the model will take as it is asked for, which fits."""
        return self._tuned.memory

    @property
    def available(self) -> int | None:
        """Bytes that are left; None: not known."""
        return self._tuned.available

    async def run(self) -> Tuned:
        """Raises ConfigurationError when the model cannot be loaded or fails."""
        self._tell("what else runs")
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
        for threads, workers in self._seatings(best.threads, best.workers):
            best = await self._better(best, "", num_threads=threads, workers=workers)
        if len(self._tuned.trials) > 1:
            is_same = best is first
            reason = "nothing is faster" if is_same else _gain(best, first)
            self._advise("num_threads", best.threads, reason)
            self._advise("workers", best.workers, reason)
        return best

    def _seatings(self, threads: int, workers: int) -> list[tuple[int, int]]:
        """Threads and workers that may be better than these."""
        usable = self._machine.allowed
        if self._machine.quota is not None:
            usable = min(usable, max(1, math.floor(self._machine.quota)))
        batches = ENGINES[self._file.engine].batches
        wanted = [(threads, 1), (threads, 2), (usable, 1)]
        wanted += [(threads // 2, 1)] if threads >= 4 else []
        wanted += [] if batches else [(threads, threads), (usable, usable)]
        seatings = []
        for n, count in wanted:
            asked = {"num_threads": n != threads, "workers": count != workers}
            is_new = (n, count) != (threads, workers) and (n, count) not in seatings
            if (
                is_new
                and count <= n
                and not any(asked[name] for name in asked if self._is_set(name))
            ):
                seatings.append((n, count))
        return seatings

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
        """Only where the memory holds too few streams is there something to gain."""
        kv_type: KvType = "q8_0"
        slots = plan_memory(best.spec.model, best.workers).slots
        is_short = slots < MOST_SLOTS * best.workers and best.spec.model.slots is None
        if self._file.engine != "llama_cpp" or self._is_set("kv_type") or not is_short:
            return best
        first = best
        best = await self._better(best, f"the same, kv-type {kv_type}", kv_type=kv_type)
        if best is not first:
            self._advise("kv_type", kv_type, f"more streams fit, {_gain(best, first)}")
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
        """From the rates: no slots that bring nothing."""
        if self._is_set("slots") or not ENGINES[self._file.engine].batches:
            return
        rates = best.figures.rates
        if not all(rates.values()):
            self._tuned.untried.append("slots: some streams brought too few tokens to tell")
            return
        most = max(rates.values())
        streams = min(n for n, rate in rates.items() if rate >= ENOUGH * most)
        fit = plan_memory(best.spec.model, best.workers).slots
        slots = math.ceil(min(streams, fit) / best.workers)
        if streams > fit:
            reason = f"as many as fit; {streams} streams would be faster together"
        elif streams == max(rates):
            reason = f"{streams} streams together are faster than fewer"
        else:
            reason = f"more than {streams} streams are no faster together, only each slower"
        self._advise("slots", slots, reason)

    async def _ask_stall(self, best: Trial) -> None:
        """The smallest limit with which prompts come little later than with any."""
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
        reason = "prompts come little later than with more"
        if limit == max(found):
            reason = "with less, prompts come much later"
        self._advise("max_stall", limit, reason)

    # ---------------------------------------------------------------- measuring

    async def _better(self, best: Trial, name: str, **changes: Any) -> Trial:
        """The trial of the changes, if it is better; else `best`."""
        options = argparse.Namespace(**{**vars(best.options), **changes})
        name = name or _name(self._spec(options))
        reason = self._why_not(options)
        if reason:
            self._tuned.untried.append(f"{name}: {reason}")
            return best
        trial = await self._measure(name, options, STREAMS)
        self._tuned.trials.append(trial)
        if score(trial.figures, best.figures) <= NOISE:
            return best
        if self._has_time(2):  # it may have been the other one's bad luck
            again = await self._measure(best.name, best.options, STREAMS)
            best.figures = fastest(best.figures, again.figures)
        return trial if score(trial.figures, best.figures) > NOISE else best

    def _why_not(self, options: argparse.Namespace) -> str:
        """Why these are not measured, in words; empty if they can be."""
        try:
            check_memory(self._spec(options))
        except ConfigurationError as error:
            return str(error)
        return "" if self._has_time(2) else "no time was left"  # one is for the stall

    def _has_time(self, measurements: int) -> bool:
        """For so many more like the longest until now."""
        return time.monotonic() + measurements * max(self._costs_s) <= self._ends

    async def _measure(
        self, name: str, options: argparse.Namespace, streams: tuple[int, ...]
    ) -> Trial:
        self._tell(name)
        spec, started = self._spec(options), time.monotonic()
        async with ready_pool(spec.pool) as (pool, load_s):
            figures = await Gauge(pool, self._window_s).figures(load_s, streams)
        self._costs_s.append(time.monotonic() - started)
        return Trial(name, options, spec, figures)

    async def _measure_stall(self, best: Trial, limit: float) -> None:
        name = f"the same, max-stall {limit:g} ms"
        if limit != best.options.max_stall and not self._has_time(1):
            self._tuned.untried.append(f"{name}: no time was left")
            return
        self._tell(name)
        options = argparse.Namespace(**{**vars(best.options), "max_stall": limit})
        async with ready_pool(self._spec(options).pool) as (pool, _):
            gauge = Gauge(pool, self._window_s)
            if gauge.slots > 1:
                self._tuned.stalls[limit] = await gauge.stall()

    def _spec(self, options: argparse.Namespace) -> ModelSpec:
        specs, _ = make_specs([self._file], options, self._machine)
        return specs[0]

    def _is_set(self, option: str) -> bool:
        return option in self._given

    def _advise(self, option: str, value: Any, reason: str) -> None:
        if not self._is_set(option):
            self._tuned.advice.append(Advice(option, value, reason))


def score(figures: Figures, before: Figures) -> float:
    """How much better these are, as a factor: the geometric mean of all rates and of the prompt's
    speed."""
    pairs = [(figures.rates[n], rate) for n, rate in before.rates.items()]
    pairs.append((1 / figures.prompt.seconds, 1 / before.prompt.seconds))
    ratios = [after / earlier for after, earlier in pairs if after > 0 and earlier > 0]
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0


def busy_share(machine: Machine) -> float:
    """Of the machine's cores, what is in use now: it looks for BUSY_S seconds."""
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
