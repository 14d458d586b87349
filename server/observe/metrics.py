"""GET /metrics: counters, histograms and gauges for Prometheus.

    relay ─▶ RequestRecord ─▶ Metrics.ended ──┐
    catalog.statuses() ───▶ worker_metrics ───┴─▶ CollectorRegistry ─▶ text

After the prefix, a metric that vLLM has too has vLLM's name and unit. All values are plain numbers
that only the event loop changes; they become Prometheus's metrics when these are requested.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.generation.record import RequestRecord
from server.http.openapi import Operation, Operations
from server.observe.worker_metrics import (
    MODEL,
    PREFIX,
    ResourceUse,
    histogram_buckets,
    worker_families,
)
from server.version import VERSION
from shared.histogram import Histogram
from workers.pool.catalog import Catalog

GAPS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2,
    5, 10,
)  # fmt: skip
"""Bounds in seconds. CPUs generate 1 to 1000 tokens/s; 0.15 is the default of --max-stall."""
WAITS = (
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300,
    600,
)  # fmt: skip
"""Bounds in seconds. Prefill of a long prompt takes a CPU a minute, a full queue takes longer."""
WHOLES = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600, 1800)
"""Bounds in seconds, for complete requests."""
LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Bounds in tokens."""
OTHER_PATHS = "other"


class ModelHistograms:
    """A metric with one histogram for each model."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = PREFIX + name
        self._text = text
        self._bounds = bounds
        self._histograms: dict[str, Histogram] = {}

    def of(self, model: str) -> Histogram:
        histogram = self._histograms.get(model)
        if histogram is None:
            histogram = self._histograms[model] = Histogram(self._bounds)
        return histogram

    def observe(self, model: str, value: float | None) -> None:
        """Count the value; None: there is none."""
        if value is not None:
            self.of(model).observe(value)

    def family(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(self._name, self._text, labels=[MODEL])
        for model, histogram in self._histograms.items():
            family.add_metric([model], histogram_buckets(histogram), histogram.total)
        return family


class Metrics(Collector):
    """Counts requests. `paths`: the values of the label; all other paths are OTHER_PATHS, because
    clients could invent any number of them."""

    def __init__(self, catalog: Catalog, paths: Collection[str]) -> None:
        self._catalog = catalog
        self._paths = paths
        self._resources = ResourceUse()
        self._requests: Counter[tuple[str, str, str, str]] = Counter()
        self._first_token = ModelHistograms(
            "time_to_first_token_seconds",
            "Time from a request's arrival to its first token (TTFT).",
            WAITS,
        )
        self._gaps = ModelHistograms(
            "inter_token_latency_seconds",
            "Time between two tokens of an answer; tokens that are sent together have equal shares"
            " of the time since the ones before.",
            GAPS,
        )
        self._total = ModelHistograms(
            "e2e_request_latency_seconds",
            "Time from a request's arrival to its last byte.",
            WHOLES,
        )
        self._queued = ModelHistograms(
            "request_queue_time_seconds",
            "Time from when a request has been read to its first slot: its model's loading, the"
            " rendering of its chat and the wait in the queue.",
            WAITS,
        )
        self._prefill = ModelHistograms(
            "request_prefill_time_seconds", "Time from a task's slot to its first token.", WAITS
        )
        self._decode = ModelHistograms(
            "request_decode_time_seconds", "Time from a task's first token to its end.", WHOLES
        )
        self._prompts = ModelHistograms(
            "request_prompt_tokens", "Tokens of a task's prompt.", LENGTHS
        )
        self._answers = ModelHistograms(
            "request_generation_tokens", "Tokens of a task's answer.", LENGTHS
        )
        self._by_model = (
            self._first_token, self._gaps, self._total, self._queued, self._prefill, self._decode,
            self._prompts, self._answers,
        )  # fmt: skip
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def gaps(self, model: str) -> Histogram:
        """The histogram of a model's inter-token latencies in seconds."""
        return self._gaps.of(model)

    def ended(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        path = record.path if record.path in self._paths else OTHER_PATHS
        self._requests[path, record.model, record.outcome, record.reason] += 1
        model = record.model
        if not model:
            return
        self._first_token.observe(model, record.first_token_s)
        self._queued.observe(model, record.queued_s)
        if record.outcome == "finished":
            self._total.observe(model, record.total_s)
        for end in record.ends:
            self._prefill.observe(model, end.timings.prefill_s)
            self._decode.observe(model, end.timings.decode_s)
            self._prompts.observe(model, end.usage.prompt_tokens)
            self._answers.observe(model, end.usage.completion_tokens)

    def collect(self) -> Iterator[Metric]:
        """All metric families."""
        info = InfoMetricFamily(PREFIX + "build", "Version of the server.")
        info.add_metric([], {"version": VERSION})
        yield info
        requests = CounterMetricFamily(
            PREFIX + "requests",
            "Requests that have ended, by path (which tells the API), outcome and reason.",
            labels=["path", MODEL, "outcome", "reason"],
        )
        for labels, count in self._requests.items():
            requests.add_metric(labels, count)
        yield requests
        for histograms in self._by_model:
            yield histograms.family()
        yield from worker_families(self._catalog.statuses(), self._resources)
        yield from self._resources.front

    async def text(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that an Accept header asks for, and its content type."""
        await self._catalog.refresh()
        pids = [
            worker.pid
            for status in self._catalog.statuses()
            for worker in status.pool.workers
            if worker.pid is not None
        ]
        # In a thread: reading the kernel's files may take milliseconds, and streams must not wait.
        self._resources = await asyncio.to_thread(ResourceUse.read, pids)
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


OPERATIONS: Operations = {
    ("GET", "/metrics"): Operation(
        "The metrics, for Prometheus.", {"text/plain": {"type": "string"}}
    ),
}


def routes(metrics: Metrics) -> list[Route]:
    """The route."""

    async def scrape(request: Request) -> Response:
        body, content_type = await metrics.text(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})

    return [Route("/metrics", scrape)]
