"""The real server against its own description: whatever is sent, the answers are as it says."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.app import description
from tests.helpers.running import RunningServer

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
DOCUMENT = description(needs_key=False)
OPERATIONS = [
    f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods
]
BODIES = {
    path: methods["post"]["requestBody"]["content"]["application/json"]["schema"]
    for path, methods in DOCUMENT["paths"].items()
    if "post" in methods
}
SMALL = settings(max_examples=20, suppress_health_check=list(HealthCheck))
HELLO = [{"role": "user", "content": "Hello"}]
NEEDED: dict[str, dict[str, Any]] = {
    "/stream": {"prompt": "x"},
    "/token_stream": {"query": "x"},
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/embeddings": {"input": "x"},
    "/api/show": {"model": "echo"},
    "/tokenize": {"content": "x"},
    "/detokenize": {"tokens": [1]},
    "/apply-template": {"messages": HELLO},
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--engine", "echo", "-n", "256") as running:
        yield running


@pytest.fixture(scope="module")
def api(server: RunningServer) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def still_serves(server: RunningServer) -> None:
    """No worker has died, and nothing in the log is worth a warning."""
    assert server.post(prompt="hello", num_predict=9).status_code == 200
    wrong = [line for line in server.log if re.search(r" (WARNING|ERROR) |Traceback", line)]
    assert len(wrong) <= 1, wrong  # that there is no chat template


def test_the_server_describes_itself(server: RunningServer) -> None:
    response = server.client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == DOCUMENT


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_fits_the_description_is_answered_as_described(
    server: RunningServer, api: Any, operation: str
) -> None:
    method, path = operation.split()
    statuses: Counter[int] = Counter()

    @SMALL
    @given(case=api[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def check(case: Any) -> None:
        response = case.call_and_validate(checks=CHECKS)
        statuses[response.status_code] += 1

    check()
    assert statuses.keys() <= {200, 400, 404, 504}  # as a timeout_s may be short
    still_serves(server)


@pytest.mark.parametrize("path", BODIES)
def test_what_does_not_fit_is_refused_as_described(
    server: RunningServer, api: Any, path: str
) -> None:
    @settings(SMALL, max_examples=8)
    @given(case=api[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def check(case: Any) -> None:
        response = case.call_and_validate(checks=[*CHECKS, negative_data_rejection])
        assert 400 <= response.status_code < 500

    check()
    still_serves(server)


# ---------------------------------------------------------------- names of fields

ALL_NAMES = sorted({name for schema in BODIES.values() for name in schema["properties"]})


@pytest.mark.parametrize("path", BODIES)
def test_a_field_is_known_where_it_is_described_and_nowhere_else(
    server: RunningServer, path: str
) -> None:
    known = set()
    for name in [*ALL_NAMES, "bogus"]:
        for value in (None, 0):
            body = {**NEEDED.get(path, {}), name: value}
            response = server.client.post(path, json=body)
            assert response.status_code in (200, 400, 404)
            if f"unknown field: '{name}'" not in response.text:
                known.add(name)
    assert known == BODIES[path]["properties"].keys()


# ---------------------------------------------------------------- any JSON, any method, any type

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["\ud800", "\0", 10**400, 2**63, "x" * 70_000, HELLO, [[[]]], "echo"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from(ALL_NAMES), inner, max_size=3)
    ),
    max_leaves=8,
)


def error_shape(path: str) -> Draft202012Validator:
    name = (
        "openai" if path.startswith("/v1/") else "ollama" if path.startswith("/api/") else "native"
    )
    return Draft202012Validator(DOCUMENT["components"]["schemas"][f"{name}-error"])


@pytest.mark.parametrize("path", BODIES)
def test_any_json_is_answered_or_refused_in_the_shape_of_the_path(
    server: RunningServer, path: str
) -> None:
    fields = sorted(BODIES[path]["properties"])

    @SMALL
    @given(st.dictionaries(st.sampled_from(fields), JSON, max_size=4) | JSON, st.booleans())
    def check(body: Any, is_filled: bool) -> None:
        if is_filled and isinstance(body, dict):
            body = NEEDED.get(path, {}) | body
        content = json.dumps(body).encode()
        response = server.client.post(path, content=content)
        assert response.status_code in (200, 400, 404, 504)
        if response.status_code != 200:
            error_shape(path).validate(response.json())

    check()
    still_serves(server)


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_a_method_that_is_not_described_is_a_405_in_the_shape_of_the_path(
    server: RunningServer, path: str
) -> None:
    described = {method.upper() for method in DOCUMENT["paths"][path]}
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "HEAD"} - described:
        response = server.client.request(method, path.replace("{id}", "1"))
        if method == "HEAD":
            assert response.status_code in (200, 404, 405)
            continue
        assert response.status_code == 405, method
        error_shape(path).validate(response.json())
