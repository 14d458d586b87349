"""The published description: all of the surface is in it, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route

from server.app import api_routes, create_app, description
from server.chat.system_prompts import SystemPrompts
from server.generation.models import Models
from server.http.fields import SAMPLING, Form
from server.observe.metrics import Metrics
from shared.sampling import CHECKS, SamplingParams
from shared.validation import (
    BOOLEAN,
    TEXT,
    Check,
    integers,
    nullable,
    numbers,
    or_none,
    texts_of,
)
from tests.helpers.support import run
from workers.pool.catalog import LoadedModels, ModelStatus


def routed() -> set[tuple[str, str]]:
    models = Models(LoadedModels(()), SamplingParams(), SystemPrompts())
    routes = api_routes(models, Metrics(models.catalog, []), (), needs_key=False)
    assert all(isinstance(route, Route) for route in routes)
    return {
        (method, route.path_format)
        for route in routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }


def described(needs_key: bool = False) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, methods in description(needs_key=needs_key)["paths"].items()
        for method, operation in methods.items()
    }


def schemas() -> list[Any]:
    """All schemas of bodies and answers."""
    found = []
    for operation in described().values():
        places = [operation.get("requestBody", {}), *operation["responses"].values()]
        found += [
            media["schema"] for place in places for media in place.get("content", {}).values()
        ]
    return found


def test_every_route_is_described_and_every_description_is_routed() -> None:
    assert described().keys() == routed()


def test_all_schemas_are_json_schemas() -> None:
    assert len(schemas()) > 100
    for schema in schemas():
        Draft202012Validator.check_schema(schema)
    json.dumps(description(needs_key=True), allow_nan=False)


def test_every_sampling_field_is_described_with_its_range_and_its_meaning() -> None:
    assert {*CHECKS, "temperature"} == SAMPLING.keys()
    body = described()["POST", "/stream"]["requestBody"]["content"]["application/json"]["schema"]
    for name in SAMPLING:
        assert body["properties"][name]["description"], name
    top_k = body["properties"]["top_k"]
    assert (top_k["minimum"], top_k["maximum"]) == (0, 2**31 - 1)
    assert top_k["description"].startswith("Keep the k likeliest tokens")


def test_where_keys_are_needed_is_said() -> None:
    assert "security" not in description(needs_key=False)
    document = description(needs_key=True)
    assert document["security"] == [
        {name: []} for name in document["components"]["securitySchemes"]
    ]
    needed = {key: "401" in operation["responses"] for key, operation in described(True).items()}
    assert [key for key, is_needed in needed.items() if not is_needed] == [("GET", "/health")]
    assert described(True)["GET", "/health"]["security"] == []


def test_errors_have_the_statuses_that_the_dialects_clients_get() -> None:
    assert "429" in described()["POST", "/stream"]["responses"]
    ollama = described()["POST", "/api/chat"]["responses"]
    assert "429" not in ollama
    assert "queue_full" in ollama["503"]["description"]


class Broken(LoadedModels):
    def why_not_ready(self) -> str | None:
        raise RuntimeError("a secret")

    def statuses(self) -> list[ModelStatus]:
        raise RuntimeError("a secret")


@pytest.mark.parametrize("path", ["/ready", "/v1/models", "/api/tags"])
def test_a_mistake_of_the_server_is_a_500_in_the_shape_of_the_path(path: str) -> None:
    app = create_app(Models(Broken(()), SamplingParams(), SystemPrompts()))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    response = run(ask())
    assert response.status_code == 500
    assert "secret" not in response.text
    reference = described()["GET", path]["responses"]["500"]["content"]["application/json"]
    name = reference["schema"]["$ref"].rpartition("/")[2]
    shape = description(needs_key=False)["components"]["schemas"][name]
    Draft202012Validator(shape).validate(response.json())


# ---------------------------------------------------------------- checks and their schemas

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 5, 6, 7, 0.5, 2.5, 2**31 - 1, 2**31, 2**64, -(2**40)),
    *("", "x", "ab", "a\0b", "x" * 4, [], ["x"], ["x", ""], ["x"] * 3, [1], {}, {"x": 1}),
]


@pytest.mark.parametrize(
    "check",
    [
        integers(1),
        integers(-1, 6),
        numbers(above=0, high=1),
        numbers(low=-1),
        numbers(),
        BOOLEAN,
        TEXT,
        texts_of(2, 3),
        or_none(TEXT),
        or_none(or_none(integers(0, 5))),
        Form({"x": integers(1)}, needed=("x",)).check(),
        Form({"x": integers(1), "y": TEXT}, one_needed=("x", "y")).check(),
    ],
    ids=lambda check: json.dumps(check.schema)[:60],
)
def test_a_schema_says_what_its_check_takes(check: Check[Any]) -> None:
    validator = Draft202012Validator(check.schema)
    for value in VALUES:
        try:
            check("field", value)
        except Exception as error:
            assert "field" in str(error)
            assert not validator.is_valid(value), value
        else:
            assert validator.is_valid(value), value


def test_null_is_added_once() -> None:
    once = nullable({"type": "string"})
    assert nullable(once) == once
