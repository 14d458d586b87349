"""Traces for OpenTelemetry: one span for each request, made when the request has ended.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 tokenflume

Only OpenTelemetry's own environment variables configure it, and it is imported only if one of
CONFIGURING is set. The SDK sends spans in a thread of its own; requests do not wait for a
collector.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from server.generation.record import Observer, RequestRecord
from server.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

CONFIGURING = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)
"""Without one of these variables there are no traces."""
PROTOCOL_NAMES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
"""The supported protocol."""
CLOSE_S = 3.0
"""Seconds for sending the last spans when the server stops."""

logger = logging.getLogger("tokenflume")


@contextmanager
def traced(environment: Mapping[str, str]) -> Iterator[list[Observer]]:
    """Yields the observers that make traces; none if traces are not configured or not possible.

    That they are not possible is only a warning: such variables are often set for all programs of
    a machine.
    """
    why_not = why_no_traces(environment)
    if why_not is None:
        provider = make_provider(environment)
        if provider is not None:
            try:
                yield [Tracing(provider)]
            finally:
                closing = threading.Thread(target=provider.shutdown, daemon=True)
                closing.start()
                closing.join(CLOSE_S)
            return
        why_not = "OpenTelemetry is not installed: pip install 'tokenflume[otel]'"
    if why_not:
        logger.warning("no traces: %s", why_not)
    yield []


def why_no_traces(environment: Mapping[str, str]) -> str | None:
    """Why there are no traces; empty if none are configured. None: there are traces."""
    if not any(environment.get(name) for name in CONFIGURING):
        return ""
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    if exporter != "otlp":
        return f"OTEL_TRACES_EXPORTER is {exporter!r}; only otlp is supported"
    given = (environment[name] for name in PROTOCOL_NAMES if environment.get(name))
    protocol = next(given, PROTOCOL)
    if protocol != PROTOCOL:
        return f"the protocol is {protocol!r}; only {PROTOCOL} is supported"
    return None


def make_provider(environment: Mapping[str, str]) -> TracerProvider | None:
    """OpenTelemetry's SDK, configured by its variables; None: it is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        return None
    attributes = {"service.version": VERSION}
    names_service = "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not names_service and not environment.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = "tokenflume"
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """Makes spans. The client's `traceparent` is a span's parent, and decides if it is sampled."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("tokenflume", VERSION)
        self._context = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    def __call__(self, record: RequestRecord) -> None:
        offset = time.time_ns() - round(time.monotonic() * 1e9)

        def at(seconds: float) -> int:
            """Nanoseconds since 1970."""
            return round(seconds * 1e9) + offset

        headers = {"traceparent": record.trace.parent, "tracestate": record.trace.state}
        span = self._tracer.start_span(
            f"generate {record.model}".strip(),
            context=self._context.extract(headers),
            kind=self._kind,
            attributes=attributes_of(record),
            start_time=at(record.arrived),
        )
        events = {"queued": record.read, "slot": record.slot, "first token": record.first_token}
        for name, seconds in events.items():
            if seconds is not None:
                span.add_event(name, timestamp=at(seconds))
        if record.outcome == "failed":
            span.set_status(self._failed)
        span.end(at(record.arrived + record.total_s))


def attributes_of(record: RequestRecord) -> dict[str, str | int | list[int] | list[str]]:
    """The span's attributes, with OpenTelemetry's names for generative AI where they exist."""
    usage = record.usage
    attributes: dict[str, str | int | list[int] | list[str]] = {
        "http.request.method": "POST",
        "url.path": record.path,
        "client.address": record.address,
        "gen_ai.provider.name": "tokenflume",
        "gen_ai.response.finish_reasons": [record.reason],
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "tokenflume.request_id": record.id,
        "tokenflume.outcome": record.outcome,
        "tokenflume.workers": record.workers,
    }
    if record.owner is not None:
        attributes["enduser.id"] = record.owner
    if record.model:
        attributes["gen_ai.response.model"] = record.model
    if record.ends:
        attributes["gen_ai.usage.input_tokens"] = usage.prompt_tokens
        attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    if record.outcome in ("failed", "refused"):
        attributes["error.type"] = record.reason
    return attributes
