"""A ServingError as HTTP, in the shape of our own endpoints."""

from __future__ import annotations

import json

from starlette.responses import Response

from shared.errors import ServingError, Unauthorized


def error_body(error: ServingError) -> bytes:
    """{"error": {"code", "message"}}, on a line."""
    value = {"error": {"code": error.code, "message": error.message}}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def error_response(error: ServingError, body: bytes) -> Response:
    """The error's status, with `body` in the dialect's own shape."""
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return Response(body, error.status, headers, media_type="application/json")
