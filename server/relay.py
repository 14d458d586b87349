"""The one path of a generation: read the body, submit, relay the events, and let go.

    body ─▶ Dialect.parse ─▶ WorkerPool.submit ─▶ RequestStream.take ─▶ Renderer ─▶ send

Nothing is sent before the first event, so whatever goes wrong until then is a
real HTTP status. Afterwards the dialect says how a stream is cut. A client that
leaves is noticed while it waits and while it streams; `release` always runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from server.dialects.base import Call, Dialect, Parse, Renderer
from server.errors import error_response
from shared.errors import BodyTooLarge, ServingError, error_from_code
from shared.messages import Failed, Finished, Token
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from workers.pool import WorkerPool
from workers.stream import Event, RequestStream

MAX_BODY = 1024 * 1024
"""Bytes of a request's body."""

logger = logging.getLogger("tokenflume.request")


class ClientLeft(Exception):
    """The client closed its connection before its whole request was read."""


class GenerationEndpoint:
    """The ASGI application of one POST path."""

    def __init__(
        self, dialect: Dialect, parse: Parse, pool: WorkerPool, defaults: SamplingParams
    ) -> None:
        self._dialect = dialect
        self._parse = parse
        self._pool = pool
        self._defaults = defaults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            body = await read_body(headers, receive)
            call = self._parse(body, headers, self._defaults)
            await self._generate(call, receive, send)
        except ServingError as error:
            response = error_response(error, self._dialect.error_body(error))
            await response(scope, receive, send)
        except ClientLeft:
            logger.info("the client left before its request was whole")

    async def _generate(self, call: Call, receive: Receive, send: Send) -> None:
        """Raises ServingError only while nothing has been sent."""
        started = time.monotonic()
        stream = self._pool.submit(Prompt(call.prompt), call.sampling, call.cache)
        watcher = asyncio.create_task(abandon_on_disconnect(stream, receive))
        outcome = "client left"
        try:
            outcome = await relay(stream, call.renderer, send)
        except ServingError as error:
            outcome = error.code
            raise
        finally:
            watcher.cancel()
            self._pool.release(stream)
            seconds = time.monotonic() - started
            logger.info("request %d: %s after %.3f s", stream.request.id, outcome, seconds)


async def relay(stream: RequestStream, renderer: Renderer, send: Send) -> str:
    """Send the stream's events until its end; return the outcome in a word, for the log.

    Tokens that wait together leave together. Raises ServingError when the
    request fails before its first byte.
    """
    events = await stream.take()
    if events and isinstance(events[0], Failed):
        raise error_from_code(events[0].code, events[0].message)
    if events:
        await send(_start(renderer.media_type))
    while events:
        last = events[-1]
        body = renderer.tokens(tokens_of(events))
        if isinstance(last, Finished):
            body += renderer.finished(last, stream.queued_s)
            await send(_body(body, more=False))
            return last.reason
        if isinstance(last, Failed):
            await _cut(body, renderer.failed(error_from_code(last.code, last.message)), send)
            return last.code
        await send(_body(body, more=True))
        events = await stream.take()
    return "client left"


async def _cut(body: bytes, last_words: bytes | None, send: Send) -> None:
    """End a stream that failed. Without last words it stays unfinished: the server then closes
    the connection without the closing chunk, which every HTTP client reports."""
    if last_words is not None:
        await send(_body(body + last_words, more=False))
    elif body:
        await send(_body(body, more=True))


def tokens_of(events: Sequence[Event]) -> list[Token]:
    """The events that are tokens."""
    return [event for event in events if type(event) is Token]


async def abandon_on_disconnect(stream: RequestStream, receive: Receive) -> None:
    """Wake the relay with nothing when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.abandon()


async def read_body(headers: Headers, receive: Receive) -> bytes:
    """The request's whole body, of at most MAX_BODY bytes. Raises BodyTooLarge, ClientLeft."""
    announced = headers.get("content-length", "")
    if announced.isdigit() and len(announced) < 20 and int(announced) > MAX_BODY:
        raise BodyTooLarge(f"the body has {announced} bytes; at most {MAX_BODY} are accepted")
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            raise BodyTooLarge(f"the body has over {MAX_BODY} bytes, the most that are accepted")
    return bytes(body)


def _start(media_type: str) -> Message:
    headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-store")]
    headers.append((b"x-accel-buffering", b"no"))  # nginx would collect the tokens
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _body(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
