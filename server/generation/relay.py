"""The one path of a generation: read the body, submit, relay the events, and let go.

    body ─▶ Dialect.parse ─▶ WorkerPool.submit ─▶ RequestStream.take ─▶ Renderer ─▶ send

Nothing is sent before the first event, so whatever goes wrong until then is a
real HTTP status. Afterwards the dialect says how a stream is cut. A client that
leaves is noticed while it waits and while it streams; `release` always runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar, cast

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from server.dialects.base import Call, Dialect, Parse, Renderer
from server.generation.models import Models
from server.generation.record import Observer, RequestRecord
from server.generation.tasks import EXPIRED, Work, begun
from server.http.body import ClientLeft, read_body
from server.http.error_response import error_response
from server.http.errors import DeadlineExceeded
from server.observe.metrics import Metrics
from shared.errors import NotReady, ServingError, error_from_code
from shared.messages import Embedded, Failed, Finished, Token
from workers.pool.stream import Event

T = TypeVar("T")


class GenerationEndpoint:
    """The ASGI application of one POST path. `observers` are told of each request's end."""

    def __init__(
        self,
        dialect: Dialect,
        parse: Parse,
        models: Models,
        metrics: Metrics,
        observers: Sequence[Observer],
    ) -> None:
        self._dialect = dialect
        self._parse = parse
        self._models = models
        self._metrics = metrics
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = RequestRecord(scope)
        try:
            await self._serve(record, scope, receive, send)
        except ClientLeft:
            record.has_left = True
        except asyncio.CancelledError:
            record.error = NotReady("the server is shutting down")
            raise
        except Exception as error:
            record.error = ServingError(f"{type(error).__name__}: {error}")
            raise
        finally:
            record.end()
            for observer in self._observers:
                observer(record)

    async def _serve(
        self, record: RequestRecord, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers, arrived = Headers(scope=scope), asyncio.get_running_loop().time()
        try:
            body = await read_body(headers, receive)
            call = self._parse(body, headers)
            record.read = time.monotonic()
            deadline = None if call.timeout_s is None else arrived + call.timeout_s
            async with client_stays(receive, send) as send_on:
                await self._answer(call, record, deadline, send_on)
        except ServingError as error:
            record.error = error
            response = error_response(error, self._dialect.error_body(error))
            status = response.status_code
            response.status_code = self._dialect.statuses.get(status, status)
            await response(scope, receive, send)

    async def _answer(
        self, call: Call, record: RequestRecord, deadline: float | None, send: Send
    ) -> None:
        """Raises ServingError only while nothing has been sent."""
        async with contextlib.AsyncExitStack() as stack:
            using = stack.enter_async_context(self._models.use(call.model))
            model, pool = await in_time(using, deadline)
            record.model = model.name
            answer = call.answer(model)
            work = Work(answer.tasks, pool, record.client)
            record.submits(work, self._metrics.gaps(model.name))
            stack.enter_context(begun(work, deadline))
            await relay(work, answer.renderer, send, record)


async def in_time(waiting: Awaitable[T], deadline: float | None) -> T:
    """`deadline`: in the loop's time. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout_at(deadline):
            return await waiting
    except TimeoutError:
        raise DeadlineExceeded(EXPIRED) from None


@contextlib.asynccontextmanager
async def client_stays(receive: Receive, send: Send) -> AsyncIterator[Send]:
    """Within, a client that leaves cancels whatever is underway. Raises ClientLeft then.

    Gives a `send` for all messages: after the last one nothing is watched any more.
    """
    task = cast("asyncio.Task[None]", asyncio.current_task())
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await receive())["type"] != "http.disconnect":
            pass
        has_left = True
        task.cancel()

    watcher = asyncio.create_task(watch())

    async def send_on(message: Message) -> None:
        if not message.get("more_body", True):
            watcher.cancel()  # at the end of an answer the server reports a disconnect, too
        await send(message)

    try:
        yield send_on
    except asyncio.CancelledError:
        if has_left and not task.uncancel():
            raise ClientLeft from None
        raise
    finally:
        watcher.cancel()


async def relay(work: Work, renderer: Renderer, send: Send, record: RequestRecord) -> None:
    """Send the events of the work's streams until all have ended, and note them.

    Tokens that wait together leave together. Raises ServingError when the
    request fails before its first byte.
    """
    output = Output(renderer, send)
    if work.is_done:
        await output.end(b"")
    async for index, events in work.events():
        tokens = tokens_of(events)
        if tokens:
            record.tokens(index, len(tokens))
        body = renderer.tokens(index, tokens)
        for event in events:
            if isinstance(event, Embedded):
                body += renderer.embedded(index, event.vector)
        last = events[-1]
        if isinstance(last, Failed):
            record.error = error_from_code(last.code, last.message)
            await output.cut(body, record.error)
            return
        if isinstance(last, Finished):
            body += renderer.finished(index, last, work.streams[index].queued_s)
            try:
                work.ended()
            except ServingError as error:
                record.error = error
                await output.cut(body, error)
                return
        if work.is_done:
            await output.end(body)
        else:
            await output.write(body)


class Output:
    """The answer's bytes on their way out: at once, or all together at the end."""

    def __init__(self, renderer: Renderer, send: Send) -> None:
        self._renderer = renderer
        self._send = send
        self._has_begun = False
        self._is_started = False
        self._held = bytearray()

    async def write(self, body: bytes) -> None:
        """More of the answer."""
        body = self._with_beginning(body)
        if not self._renderer.is_stream:
            self._held += body
        elif body:
            await self._send_start()
            await self._send(_body(body, more=True))

    async def end(self, body: bytes) -> None:
        """The last of the answer."""
        body = self._with_beginning(body) + self._renderer.end()
        await self._send_start(None if self._renderer.is_stream else len(self._held) + len(body))
        await self._send(_body(bytes(self._held) + body, more=False))

    async def cut(self, body: bytes, error: ServingError) -> None:
        """End a stream that failed. Without last words it stays unfinished: the server then closes
        the connection without the closing chunk, which every HTTP client reports.

        Raises the error while nothing has been sent.
        """
        if not self._is_started and not (body and self._renderer.is_stream):
            raise error
        await self._send_start()
        body = self._with_beginning(body)
        last_words = self._renderer.failed(error)
        if last_words is not None:
            await self._send(_body(body + last_words, more=False))
        elif body:
            await self._send(_body(body, more=True))

    async def _send_start(self, length: int | None = None) -> None:
        if self._is_started:
            return
        self._is_started = True
        headers = [
            (b"content-type", self._renderer.media_type.encode()),
            (b"cache-control", b"no-store"),
        ]
        if length is None:
            headers.append((b"x-accel-buffering", b"no"))  # nginx would collect the tokens
        else:
            headers.append((b"content-length", str(length).encode()))
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    def _with_beginning(self, body: bytes) -> bytes:
        if self._has_begun:
            return body
        self._has_begun = True
        return self._renderer.begin() + body


def tokens_of(events: Sequence[Event]) -> list[Token]:
    """The events that are tokens."""
    return [event for event in events if type(event) is Token]


def _body(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
