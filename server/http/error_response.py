"""A ServingError as HTTP, in the shape of our own endpoints."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.http.body import discard_body
from server.http.errors import (
    BodyTooLarge,
    ForeignHost,
    ForeignOrigin,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
)
from shared.errors import ServingError
from shared.json_text import json_line

UNREAD = (BodyTooLarge, ForeignHost, ForeignOrigin, MethodNotAllowed, NotFound, Unauthorized)
"""Errors of requests whose body has not been read."""
LINGER_S = 2.0
"""For the rest of such a body to come."""


class EarlyResponse(Response):
    """An answer to a request that may not have come to its end.

    The connection is kept until it has, for LINGER_S seconds: if it were closed with bytes that
    nobody has read, the kernel would reset it, and the client might never see the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await discard_body(receive)
        await send({"type": "http.response.body", "body": b""})


def error_body(error: ServingError) -> bytes:
    """{"error": {"code", "message"}}, on a line."""
    value = {"error": {"code": error.code, "message": error.message}}
    return json_line(value)


def error_response(error: ServingError, body: bytes) -> Response:
    """The error's status, with `body` in the dialect's own shape."""
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    kind = EarlyResponse if isinstance(error, UNREAD) else Response
    return kind(body, error.status, headers, media_type="application/json")
