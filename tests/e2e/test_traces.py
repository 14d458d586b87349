"""Spans, as a collector gets them from the real server."""

from __future__ import annotations

import gzip
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.helpers.running import RunningServer

WAIT_S = 20.0
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes spans over HTTP."""

    def __init__(self) -> None:
        self.requests: queue.Queue[ExportTraceServiceRequest] = queue.Queue()
        self.url = ""

    def span(self) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """The next batch's only span, its attributes, and its resource's."""
        request = self.requests.get(timeout=WAIT_S)
        (resource,) = request.resource_spans
        (scope,) = resource.scope_spans
        (span,) = scope.spans
        return span, values(span.attributes), values(resource.resource.attributes)


def values(attributes: Any) -> dict[str, Any]:
    return {pair.key: value_of(pair.value) for pair in attributes}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [value_of(item) for item in found.values] if kind == "array_value" else found


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collector.requests.put(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture
def server(collector: Collector) -> Iterator[RunningServer]:
    with RunningServer(
        "--engine", "echo", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="50"
    ) as running:
        yield running


def test_a_span_goes_from_arrival_to_the_last_token_within_the_clients_trace(
    server: RunningServer, collector: Collector
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    before = time.time_ns()
    server.client.post("/stream", json={"prompt": "abc", "num_predict": 2}, headers=headers)
    after = time.time_ns()

    span, attributes, resource = collector.span()
    assert resource["service.name"] == "tokenflume"
    assert span.name == "generate echo"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert [event.name for event in span.events] == ["queued", "slot", "first token"]
    times = [
        span.start_time_unix_nano,
        *(event.time_unix_nano for event in span.events),
        span.end_time_unix_nano,
    ]
    assert times == sorted(times)
    clocks_ns = 5_000_000  # two clocks are read one after the other
    assert before - clocks_ns <= times[0] < times[-1] <= after + clocks_ns
    wanted = {
        "tokenflume.request_id": "mine",
        "tokenflume.outcome": "finished",
        "tokenflume.workers": [0],
        "url.path": "/stream",
        "gen_ai.response.model": "echo",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
    }
    assert {name: attributes[name] for name in wanted} == wanted
    assert "abc" not in str(attributes)


def test_a_failed_request_is_an_error_and_a_trace_of_its_own(
    server: RunningServer, collector: Collector
) -> None:
    server.post(prompt="x[[prefill fail]]")
    span, attributes, _ = collector.span()
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes["error.type"] == "engine_failed"
    assert not span.parent_span_id
    assert [event.name for event in span.events] == ["queued", "slot"]


def test_a_trace_that_its_client_does_not_sample_is_not_sent(
    server: RunningServer, collector: Collector
) -> None:
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00", "x-request-id": "unsampled"}
    server.client.post("/stream", json={"prompt": "abc"}, headers=unsampled)
    server.client.post("/stream", json={"prompt": "abc"}, headers={"x-request-id": "next"})
    assert collector.span()[1]["tokenflume.request_id"] == "next"


def test_the_last_span_is_sent_when_the_server_ends(collector: Collector) -> None:
    with RunningServer(
        "--engine", "echo",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME="mine",
    ) as server:  # fmt: skip
        server.post(prompt="abc")
    assert collector.span()[2]["service.name"] == "mine"


def test_a_collector_that_is_not_there_holds_up_neither_requests_nor_the_end() -> None:
    with RunningServer(
        "--engine", "echo",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_BSP_SCHEDULE_DELAY="50",
    ) as server:  # fmt: skip
        assert server.post(prompt="abc").status_code == 200
        started = time.monotonic()
    assert server.process.returncode == 0
    assert time.monotonic() - started < 15


def test_without_the_variables_nothing_of_it_is_imported() -> None:
    with RunningServer("--engine", "echo", PYTHONVERBOSE="1") as server:
        server.post(prompt="abc")
    assert not [line for line in server.log if "opentelemetry" in line]
