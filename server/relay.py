"""The one path of a generation: read the body, submit, relay the events, and let go.

    body ─▶ Dialect.parse ─▶ WorkerPool.submit ─▶ RequestStream.take ─▶ Renderer ─▶ send

Nothing is sent before the first event, so whatever goes wrong until then is a
real HTTP status. Afterwards the dialect says how a stream is cut. A client that
leaves is noticed while it waits and while it streams; `release` always runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from typing import TypeVar, cast

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from server.dialects.base import Answer, Call, Dialect, Embedding, Parse, Renderer, Task
from server.errors import error_response
from server.models import Models
from server.request_body import ClientLeft, read_body
from shared.errors import DeadlineExceeded, ServingError, error_from_code
from shared.messages import Embedded, Failed, Finished, Token
from workers.pool import WorkerPool
from workers.stream import Event, RequestStream

EXPIRED = "the request was not answered within its timeout_s"

T = TypeVar("T")

logger = logging.getLogger("tokenflume.request")


class GenerationEndpoint:
    """The ASGI application of one POST path."""

    def __init__(self, dialect: Dialect, parse: Parse, models: Models) -> None:
        self._dialect = dialect
        self._parse = parse
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, arrived = Headers(scope=scope), asyncio.get_running_loop().time()
        try:
            body = await read_body(headers, receive)
            call = self._parse(body, headers)
            deadline = None if call.timeout_s is None else arrived + call.timeout_s
            async with client_stays(receive, send) as send_on:
                await self._answer(call, client_of(scope), deadline, send_on)
        except ServingError as error:
            response = error_response(error, self._dialect.error_body(error))
            status = response.status_code
            response.status_code = self._dialect.statuses.get(status, status)
            await response(scope, receive, send)
        except ClientLeft:
            logger.debug("a client left before its request was answered")

    async def _answer(self, call: Call, client: str, deadline: float | None, send: Send) -> None:
        """Raises ServingError only while nothing has been sent."""
        async with contextlib.AsyncExitStack() as stack:
            using = stack.enter_async_context(self._models.use(call.model))
            model, pool = await in_time(using, deadline)
            answer = call.answer(model)
            streams = stack.enter_context(submitted(answer, pool, client))
            stack.enter_context(expiring(streams, deadline))
            await relay(streams, answer.renderer, send)


def client_of(scope: Scope) -> str:
    """Who asks: requests of one are served in turn with those of others."""
    address = scope.get("client")
    return address[0] if address else ""


async def in_time(waiting: Awaitable[T], deadline: float | None) -> T:
    """`deadline`: in the loop's time. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout_at(deadline):
            return await waiting
    except TimeoutError:
        raise DeadlineExceeded(EXPIRED) from None


@contextlib.contextmanager
def expiring(streams: Sequence[RequestStream], deadline: float | None) -> Iterator[None]:
    """Streams that are still open at the deadline, in the loop's time, fail."""

    def expire() -> None:
        for stream in streams:
            stream.put(Failed(stream.request.id, DeadlineExceeded.code, EXPIRED))

    if deadline is None:
        yield
        return
    timer = asyncio.get_running_loop().call_at(deadline, expire)
    try:
        yield
    finally:
        timer.cancel()


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


@contextlib.contextmanager
def submitted(answer: Answer, pool: WorkerPool, client: str) -> Iterator[list[RequestStream]]:
    """The streams of the answer's tasks: all are taken, or none; in the end none is left."""
    started = time.monotonic()
    streams: list[RequestStream] = []
    outcome = "client left"
    try:
        for task in answer.tasks:
            streams.append(submit(task, pool, client))  # noqa: PERF401  one that is refused ends those before
        yield streams
        outcome = ", ".join(s.finished.reason if s.finished else "failed" for s in streams)
    except ServingError as error:
        outcome = error.code
        raise
    finally:
        for stream in streams:
            pool.release(stream)
        ids = " ".join(str(stream.request.id) for stream in streams)
        logger.info("request %s: %s after %.3f s", ids, outcome, time.monotonic() - started)


def submit(task: Task, pool: WorkerPool, client: str) -> RequestStream:
    """Raises ServingError."""
    if isinstance(task, Embedding):
        return pool.embed(task.prompt, client)
    return pool.submit(
        task.prompt, task.sampling, task.cache, shows_control=task.shows_control, client=client
    )


async def relay(streams: Sequence[RequestStream], renderer: Renderer, send: Send) -> None:
    """Send the streams' events until all have ended.

    Tokens that wait together leave together. Raises ServingError when the
    request fails before its first byte.
    """
    output = Output(renderer, send)
    unfinished = len(streams)
    if not unfinished:
        await output.end(b"")
    async for index, events in merged(streams):
        body = renderer.tokens(index, tokens_of(events))
        for event in events:
            if isinstance(event, Embedded):
                body += renderer.embedded(index, event.vector)
        last = events[-1]
        if isinstance(last, Failed):
            await output.cut(body, error_from_code(last.code, last.message))
            return
        if isinstance(last, Finished):
            body += renderer.finished(index, last, streams[index].queued_s)
            unfinished -= 1
        if unfinished:
            await output.write(body)
        else:
            await output.end(body)


async def merged(streams: Sequence[RequestStream]) -> AsyncIterator[tuple[int, list[Event]]]:
    """The events of all streams as they come, each with its stream's place."""
    if len(streams) == 1:  # the usual case needs no tasks
        while not isinstance((events := await streams[0].take())[-1], Finished | Failed):
            yield 0, events
        yield 0, events
        return
    takers = {asyncio.create_task(stream.take()): i for i, stream in enumerate(streams)}
    try:
        while takers:
            done, _ = await asyncio.wait(takers, return_when=asyncio.FIRST_COMPLETED)
            for taker in sorted(done, key=takers.__getitem__):
                index, events = takers.pop(taker), taker.result()
                if not isinstance(events[-1], Finished | Failed):
                    takers[asyncio.create_task(streams[index].take())] = index
                yield index, events
    finally:
        for taker in takers:
            taker.cancel()


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
