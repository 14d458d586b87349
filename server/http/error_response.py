"""The HTTP response of an error, in the form of our own endpoints."""

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
"""Errors that are raised before the request's body has been read."""
LINGER_S = 2.0
"""Seconds in which the rest of such a body is read."""


class EarlyResponse(Response):
    """A response to a request whose body may not have arrived completely.

    The rest of the body is read and dropped, for at most LINGER_S seconds: if the connection were
    closed with unread bytes, the kernel would reset it and the client might not get the response.
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
    """{"error": {"code", "message"}} and a newline."""
    value = {"error": {"code": error.code, "message": error.message}}
    return json_line(value)


def error_response(error: ServingError, body: bytes) -> Response:
    """The response with the error's status and headers, and `body` in the dialect's form."""
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    kind = EarlyResponse if isinstance(error, UNREAD) else Response
    return kind(body, error.status, headers, media_type="application/json")
