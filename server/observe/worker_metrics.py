"""The metrics of workers: their load, tokens, steps, states and resources."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from shared.histogram import Histogram
from workers.machine.process_use import ProcessUse, Throttling, process_use, read_throttling
from workers.pool.catalog import ModelStatus
from workers.pool.status import State, WorkerStatus

PREFIX = "tokenflume_"
MODEL = "model_name"
WORKER = [MODEL, "worker"]
Buckets = list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """The resources in use at one moment, as the kernel reports them."""

    processes: Mapping[int, ProcessUse] = field(default_factory=dict)
    """The workers' processes by their ids; without those that have ended."""
    throttling: Throttling | None = None
    front: Sequence[Metric] = ()
    """The metrics of this process, under Prometheus's usual names."""

    @classmethod
    def read(cls, pids: Sequence[int]) -> ResourceUse:
        """Read the kernel's files, which takes some milliseconds for large processes."""
        uses = {pid: process_use(pid) for pid in pids}
        known = {pid: use for pid, use in uses.items() if use is not None}
        front = tuple(ProcessCollector(registry=None).collect())
        return cls(known, read_throttling(Path("/")), front)


def worker_families(statuses: Sequence[ModelStatus], resources: ResourceUse) -> Iterator[Metric]:
    """The metric families of all workers."""
    workers = [(status.spec.name, worker) for status in statuses for worker in status.pool.workers]
    yield from _load(statuses)
    yield from _tokens(workers)
    yield from _steps(workers)
    yield from _lives(workers)
    yield from _use(workers, resources.processes)
    if resources.throttling is not None:
        yield from _throttling(resources.throttling)


def histogram_buckets(histogram: Histogram) -> Buckets:
    """Prometheus's cumulative buckets: each counts all values up to its bound."""
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(map(float, histogram.counts)), strict=True))


Workers = Sequence[tuple[str, WorkerStatus]]
"""Each worker's status with its model's name."""


def _load(statuses: Sequence[ModelStatus]) -> Iterator[Metric]:
    running = _gauge("num_requests_running", "Requests that have a slot.", [MODEL])
    waiting = _gauge(
        "num_requests_waiting", "Requests that wait for a slot or for their model to load.", [MODEL]
    )
    slots = _gauge("slots", "Requests that can run at the same time.", [MODEL])
    loaded = _gauge("model_loaded_ratio", "Share of the model that is loaded, 0 to 1.", [MODEL])
    for status in statuses:
        labels = [status.spec.name]
        running.add_metric(labels, status.pool.active)
        waiting.add_metric(labels, status.waiting)
        slots.add_metric(labels, _slots_of(status))
        loaded.add_metric(labels, status.pool.loaded)
    yield from (running, waiting, slots, loaded)


def _slots_of(status: ModelStatus) -> int:
    return sum(worker.slots for worker in status.pool.workers if worker.state == "ready")


def _tokens(workers: Workers) -> Iterator[Metric]:
    prompts = _counter("prompt_tokens", "Prompt tokens of completed requests.", WORKER)
    cached = _counter(
        "prompt_tokens_cached",
        "Prompt tokens of completed requests that were in the KV cache or in a saved prompt.",
        WORKER,
    )
    generated = _counter("generation_tokens", "Generated tokens.", WORKER)
    for model, worker in workers:
        labels, counters = [model, str(worker.index)], worker.counters
        prompts.add_metric(labels, counters.prompt_tokens)
        cached.add_metric(labels, counters.cached_tokens)
        generated.add_metric(labels, counters.generated_tokens)
    yield from (prompts, cached, generated)


def _steps(workers: Workers) -> Iterator[Metric]:
    labels = [*WORKER, "kind"]
    seconds = HistogramMetricFamily(
        PREFIX + "iteration_time_seconds",
        "Time that the engine computes in a step, by the kind of the step.",
        labels=labels,
    )
    tokens = HistogramMetricFamily(
        PREFIX + "iteration_tokens",
        "Tokens that a step processes; in a decode step, the sequences of its batch.",
        labels=labels,
    )
    for model, worker in workers:
        for family, histograms in (
            (seconds, worker.counters.steps.seconds),
            (tokens, worker.counters.steps.tokens),
        ):
            for kind, histogram in histograms.items():
                names = [model, str(worker.index), kind]
                family.add_metric(names, histogram_buckets(histogram), histogram.total)
    yield from (seconds, tokens)


def _lives(workers: Workers) -> Iterator[Metric]:
    states = _gauge("worker_state", "1 for the worker's current state.", [*WORKER, "state"])
    active = _gauge("worker_requests_running", "Requests that have a slot in the worker.", WORKER)
    deaths = _counter(
        "worker_deaths", "Worker processes that crashed or were killed, by cause.",
        [*WORKER, "cause"],
    )  # fmt: skip
    for model, worker in workers:
        labels = [model, str(worker.index)]
        for state in get_args(State):
            states.add_metric([*labels, state], worker.state == state)
        active.add_metric(labels, worker.active)
        for cause, count in worker.counters.deaths.items():
            deaths.add_metric([*labels, cause], count)
    yield from (states, active, deaths)


def _use(workers: Workers, processes: Mapping[int, ProcessUse]) -> Iterator[Metric]:
    resident = _gauge(
        "worker_resident_memory_bytes",
        "Resident memory of the worker's process, shared memory included (RSS).", WORKER,
    )  # fmt: skip
    proportional = _gauge(
        "worker_proportional_memory_bytes",
        "Resident memory of the worker's process, with its share of shared memory (PSS).", WORKER,
    )  # fmt: skip
    cpu = _counter("worker_cpu_seconds", "CPU time of the worker's process.", WORKER)
    for model, worker in workers:
        use = processes.get(worker.pid or 0)
        if use is None:
            continue
        labels = [model, str(worker.index)]
        resident.add_metric(labels, use.resident)
        cpu.add_metric(labels, use.cpu_s)
        if use.proportional is not None:
            proportional.add_metric(labels, use.proportional)
    yield from (resident, proportional, cpu)


def _throttling(throttling: Throttling) -> Iterator[Metric]:
    periods = _counter(
        "cgroup_throttled_periods", "Quota periods in which a CPU quota throttled the server.", []
    )
    periods.add_metric([], throttling.periods)
    seconds = _counter("cgroup_throttled_seconds", "Time that CPU quotas throttled the server.", [])
    seconds.add_metric([], throttling.seconds)
    yield from (periods, seconds)


def _gauge(name: str, text: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, labels=labels)


def _counter(name: str, text: str, labels: Sequence[str]) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, text, labels=labels)
