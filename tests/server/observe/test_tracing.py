"""Whether there are to be traces, by OpenTelemetry's own variables."""

from __future__ import annotations

import pytest

from server.observe.tracing import traced, why_no_traces

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    "environment",
    [
        ENDPOINT,
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
        ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
        ENDPOINT
        | {
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        },
    ],
)
def test_an_endpoint_or_an_exporter_asks_for_them(environment: dict[str, str]) -> None:
    assert why_no_traces(environment) is None


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_TRACES_EXPORTER": "none"},
        ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"},
        ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"},
    ],
)
def test_without_a_configured_exporter_there_are_no_traces_and_no_warning(
    environment: dict[str, str],
) -> None:
    assert why_no_traces(environment) == ""


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"),
    ],
)
def test_traces_that_are_not_possible_are_a_warning_and_the_server_goes_on(
    environment: dict[str, str], word: str, caplog: pytest.LogCaptureFixture
) -> None:
    with traced(environment) as observers:
        assert observers == []
    assert word in caplog.text
