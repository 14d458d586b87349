"""The OpenAPI 3.1 description of all that is answered, and GET /openapi.json.

Forms say what is taken, as they are what checks it; classes of errors say their own status.

OPERATIONS beside each endpoint ─▶ Part ─▶ document
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.http.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    ForeignHost,
    ForeignOrigin,
    Unauthorized,
)
from server.http.fields import Form
from server.version import VERSION
from shared.errors import (
    ContextTooShort,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    NotReady,
    QueueFull,
    ServingError,
    Unsupported,
    WorkerDied,
)
from shared.json_text import to_json
from shared.validation import Schema

Error = type[ServingError]
Errors = tuple[Error, ...]
ALWAYS: Errors = (ForeignHost, ForeignOrigin, ServingError)
"""What any request may be refused for; the last where the server has made a mistake."""
BODY: Errors = (InvalidRequest, BodyTooLarge)
MODEL: Errors = (ModelNotFound, ModelUnavailable, NotReady, WorkerDied)
"""Of what needs a model that is loaded."""
QUESTION: Errors = (*BODY, *MODEL, QueueFull, EngineFailed)
"""Of what a worker is asked besides its generations."""
GENERATION: Errors = (*QUESTION, ContextTooShort, Unsupported, DeadlineExceeded)

INFO = """\
Requests that are no valid HTTP, or do not arrive in time, get 400, 408 or 431 with
{"error": {"code": "bad_http", "message"}} at all paths. A stream that fails after its first byte
ends as its format can say it, or is cut. All answers have the header x-request-id."""
HEADERS = {
    "x-request-id": {"description": "The request's name.", "schema": {"type": "string"}},
    "retry-after": {"description": "Seconds.", "schema": {"type": "integer"}},
}
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """What can be done at a path with a method."""

    summary: str
    answers: Mapping[str, Schema]
    """Of a success: schemas by media type."""
    form: Form | None = None
    """Of the JSON body; None: there is none."""
    errors: Errors = ()
    """Besides ALWAYS."""
    parameters: Sequence[Mapping[str, Any]] = ()
    is_open: bool = False
    """No key is needed."""


Operations = Mapping[tuple[str, str], Operation]
"""By method and path, as ("GET", "/cache/{id}")."""


@dataclass(frozen=True, slots=True)
class Part:
    """Operations whose errors look alike: an API."""

    name: str
    operations: Operations
    error: Schema
    statuses: Mapping[int, int] = field(default_factory=dict)
    """As Dialect.statuses."""


def record(optional: Mapping[str, Schema] | None = None, **fields: Schema) -> Schema:
    """An object that has all of `fields`, and may have others."""
    return {
        "type": "object",
        "properties": {**fields, **(optional or {})},
        "required": list(fields),
    }


def array(items: Schema) -> Schema:
    """A list of such."""
    return {"type": "array", "items": items}


def lines(description: str, line: Schema | None = None) -> Schema:
    """A stream of text; `line` is the JSON of each line or event."""
    content = {"contentMediaType": "application/json", "contentSchema": line} if line else {}
    return {"type": "string", "description": description, **content}


STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
ERROR: Schema = record(error=record(code=STRING, message=STRING))
"""As server.http.error_response has it."""
MODEL_QUERY = {
    "name": "model",
    "in": "query",
    "description": "A model's name; without it the server's default.",
    "schema": STRING,
}


def routes(describe: Callable[[], Mapping[str, Any]]) -> list[Route]:
    """GET /openapi.json. `describe` is called once, when it is first asked for."""
    made: list[bytes] = []

    async def openapi(_: Request) -> Response:
        if not made:
            made.append(to_json(describe()))
        return Response(made[0], media_type="application/json")

    return [Route("/openapi.json", openapi)]


OPERATIONS: Operations = {
    ("GET", "/openapi.json"): Operation("This description.", {"application/json": OBJECT}),
}


def document(parts: Sequence[Part], *, needs_key: bool) -> dict[str, Any]:
    """The whole description."""
    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for part in parts:
        for (method, path), operation in part.operations.items():
            described = _operation(part, operation, needs_key=needs_key)
            paths[path][method.lower()] = described
    value: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "tokenflume", "version": VERSION, "description": INFO},
        "paths": paths,
        "components": {
            "headers": HEADERS,
            "schemas": {_error_name(part): part.error for part in parts},
        },
    }
    if needs_key:
        value["security"] = [{name: []} for name in SCHEMES]
        value["components"]["securitySchemes"] = SCHEMES
    return value


def _operation(part: Part, operation: Operation, *, needs_key: bool) -> dict[str, Any]:
    value: dict[str, Any] = {"tags": [part.name], "summary": operation.summary}
    if operation.parameters:
        value["parameters"] = list(operation.parameters)
    if operation.form is not None:
        content = {"application/json": {"schema": operation.form.schema()}}
        value["requestBody"] = {"required": True, "content": content}
    key: Errors = () if operation.is_open or not needs_key else (Unauthorized,)
    value["responses"] = {
        "200": _response("It is done.", operation.answers),
        **_failures(part, (*ALWAYS, *key, *operation.errors)),
    }
    if operation.is_open and needs_key:
        value["security"] = []
    return value


def _failures(part: Part, errors: Errors) -> dict[str, Any]:
    """A response for each status."""
    by_status: defaultdict[int, list[Error]] = defaultdict(list)
    for error in errors:
        by_status[part.statuses.get(error.status, error.status)].append(error)
    content = {"application/json": {"$ref": f"#/components/schemas/{_error_name(part)}"}}
    return {
        str(status): _response(
            " ".join(map(_meaning, by_status[status])),
            content,
            is_retried=any(error.retry_after_s is not None for error in by_status[status]),
        )
        for status in sorted(by_status)
    }


def _meaning(error: Error) -> str:
    """Its code, and its docstring without the status that it begins with."""
    return f"{error.code}: {(inspect.getdoc(error) or '').removeprefix(f'{error.status}: ')}"


def _error_name(part: Part) -> str:
    return f"{part.name}-error"


def _response(
    description: str, content: Mapping[str, Schema], *, is_retried: bool = False
) -> dict[str, Any]:
    names = ["x-request-id", *(["retry-after"] if is_retried else [])]
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": {media_type: {"schema": schema} for media_type, schema in content.items()},
    }
