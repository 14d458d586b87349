"""The OpenAPI 3.1 description of all operations, and GET /openapi.json.

    OPERATIONS beside each endpoint ─▶ Part ─▶ document

Request bodies are described by the forms that check them, errors by their classes.
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
"""The errors of every operation; ServingError is a defect of the server."""
BODY: Errors = (InvalidRequest, BodyTooLarge)
MODEL: Errors = (ModelNotFound, ModelUnavailable, NotReady, WorkerDied)
"""The errors of operations that need a loaded model."""
QUESTION: Errors = (*BODY, *MODEL, QueueFull, EngineFailed)
"""The errors of questions to a worker that are not generations."""
GENERATION: Errors = (*QUESTION, ContextTooShort, Unsupported, DeadlineExceeded)

INFO = """\
A request that is not valid HTTP or does not arrive in time gets 400, 408 or 431 with
{"error": {"code": "bad_http", "message"}}, on every path. A stream that fails after its first byte
ends with the error if its format has errors; otherwise the connection is cut. Every response has
the header x-request-id."""
HEADERS = {
    "x-request-id": {"description": "The request's id.", "schema": {"type": "string"}},
    "retry-after": {
        "description": "Seconds after which the client may try again.",
        "schema": {"type": "integer"},
    },
}
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path."""

    summary: str
    answers: Mapping[str, Schema]
    """The schemas of successful responses, by media type."""
    form: Form | None = None
    """The form of the JSON body; None: it has no body."""
    errors: Errors = ()
    """The errors besides ALWAYS."""
    parameters: Sequence[Mapping[str, Any]] = ()
    is_open: bool = False
    """It needs no API key."""


Operations = Mapping[tuple[str, str], Operation]
"""By method and path, as ("GET", "/cache/{id}")."""


@dataclass(frozen=True, slots=True)
class Part:
    """The operations of one API, whose errors have the same form."""

    name: str
    operations: Operations
    error: Schema
    statuses: Mapping[int, int] = field(default_factory=dict)
    """The HTTP statuses that replace ours, by ours; see Dialect."""


def record(optional: Mapping[str, Schema] | None = None, **fields: Schema) -> Schema:
    """The schema of an object that has all of `fields`, and may have others."""
    return {
        "type": "object",
        "properties": {**fields, **(optional or {})},
        "required": list(fields),
    }


def array(items: Schema) -> Schema:
    """The schema of a list."""
    return {"type": "array", "items": items}


def lines(description: str, line: Schema | None = None) -> Schema:
    """The schema of a text stream. `line`: the schema of each line's or event's JSON."""
    content = {"contentMediaType": "application/json", "contentSchema": line} if line else {}
    return {"type": "string", "description": description, **content}


STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
ERROR: Schema = record(error=record(code=STRING, message=STRING))
"""The schema of error_response.error_body."""
MODEL_QUERY = {
    "name": "model",
    "in": "query",
    "description": "The model's name; without it, the server's default model.",
    "schema": STRING,
}


def routes(describe: Callable[[], Mapping[str, Any]]) -> list[Route]:
    """GET /openapi.json. `describe` is called once, at the first request."""
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
    """The complete description."""
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
        "200": _response("Success.", operation.answers),
        **_failures(part, (*ALWAYS, *key, *operation.errors)),
    }
    if operation.is_open and needs_key:
        value["security"] = []
    return value


def _failures(part: Part, errors: Errors) -> dict[str, Any]:
    """The error responses, by status."""
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
    """The error's code, and its docstring without the status at the beginning."""
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
