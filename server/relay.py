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
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import cast

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from server.dialects.base import Answer, Call, Dialect, Generation, Parse, Renderer, Task
from server.errors import error_response
from server.models import Models
from shared.errors import BodyTooLarge, QueueFull, ServingError, error_from_code
from shared.messages import Embedded, Failed, Finished, Token
from workers.pool import WorkerPool
from workers.stream import Event, RequestStream

MAX_BODY = 1024 * 1024
"""Bytes of a request's body."""

AT_ONCE = 32
"""Tasks of one answer that wait or run at a time."""

logger = logging.getLogger("tokenflume.request")


class ClientLeft(Exception):
    """The client closed its connection: nobody waits for an answer."""


class GenerationEndpoint:
    """The ASGI application of one POST path."""

    def __init__(self, dialect: Dialect, parse: Parse, models: Models) -> None:
        self._dialect = dialect
        self._parse = parse
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            body = await read_body(headers, receive)
            call = self._parse(body, headers)
            async with client_stays(receive, send) as send_on:
                await self._answer(call, send_on)
        except ServingError as error:
            response = error_response(error, self._dialect.error_body(error))
            await response(scope, receive, send)
        except ClientLeft:
            logger.info("the client left before its request was answered")

    async def _answer(self, call: Call, send: Send) -> None:
        """Raises ServingError only while nothing has been sent."""
        async with self._models.use(call.model) as (model, pool):
            answer = call.answer(model)
            with submitted(answer, pool) as work:
                await relay(work, answer.renderer, send)


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
def submitted(answer: Answer, pool: WorkerPool) -> Iterator[Work]:
    """The answer's tasks, begun; in the end nothing is left of them. Raises ServingError."""
    started = time.monotonic()
    work = Work(answer.tasks, pool)
    outcome = "client left"
    try:
        work.begin()
        yield work
        outcome = ", ".join(s.finished.reason if s.finished else "failed" for s in work.streams)
    except ServingError as error:
        outcome = error.code
        raise
    finally:
        for stream in work.streams:
            pool.release(stream)
        ids = " ".join(str(stream.request.id) for stream in work.streams)
        logger.info("request %s: %s after %.3f s", ids, outcome, time.monotonic() - started)


class Work:
    """The tasks of one answer: AT_ONCE of them at a time, so that many leave room for others."""

    def __init__(self, tasks: Sequence[Task], pool: WorkerPool) -> None:
        self._tasks = tasks
        self._pool = pool
        self._running = 0
        self.streams: list[RequestStream] = []
        """Of the tasks that were submitted, in the tasks' order."""

    @property
    def is_single(self) -> bool:
        return len(self._tasks) == 1

    @property
    def is_done(self) -> bool:
        return not self._running and len(self.streams) == len(self._tasks)

    def begin(self) -> None:
        """Submit as many tasks as may be. Raises ServingError.

        A full queue refuses none while others run: their ends are the time to try again.
        """
        try:
            while self._has_more():
                self._submit_next()
        except QueueFull:
            if not self._running:
                raise

    def ended(self) -> None:
        """One of them has ended, so others may begin. Raises ServingError."""
        self._running -= 1
        self.begin()

    def _has_more(self) -> bool:
        return self._running < AT_ONCE and len(self.streams) < len(self._tasks)

    def _submit_next(self) -> None:
        self.streams.append(submit(self._tasks[len(self.streams)], self._pool))
        self._running += 1


def submit(task: Task, pool: WorkerPool) -> RequestStream:
    """Raises ServingError."""
    if isinstance(task, Generation):
        return pool.submit(task.prompt, task.sampling, task.cache, shows_control=task.shows_control)
    return pool.embed(task.prompt)


async def relay(work: Work, renderer: Renderer, send: Send) -> None:
    """Send the events of the work's streams until all have ended.

    Tokens that wait together leave together. Raises ServingError when the
    request fails before its first byte.
    """
    output = Output(renderer, send)
    if work.is_done:
        await output.end(b"")
    async for index, events in merged(work):
        body = renderer.tokens(index, tokens_of(events))
        for event in events:
            if isinstance(event, Embedded):
                body += renderer.embedded(index, event.vector)
        last = events[-1]
        if isinstance(last, Failed):
            await output.cut(body, error_from_code(last.code, last.message))
            return
        if isinstance(last, Finished):
            body += renderer.finished(index, last, work.streams[index].queued_s)
            try:
                work.ended()
            except ServingError as error:
                await output.cut(body, error)
                return
        if work.is_done:
            await output.end(body)
        else:
            await output.write(body)


async def merged(work: Work) -> AsyncIterator[tuple[int, list[Event]]]:
    """The events of all streams as they come, each with its stream's place, until one fails."""
    if work.is_single:  # the usual case needs no tasks
        while not isinstance((events := await work.streams[0].take())[-1], Finished | Failed):
            yield 0, events
        yield 0, events
        return
    takers: dict[asyncio.Task[list[Event]], int] = {}
    known = 0
    try:
        while not work.is_done:
            for index in range(known, len(work.streams)):
                takers[asyncio.create_task(work.streams[index].take())] = index
            known = len(work.streams)
            done, _ = await asyncio.wait(takers, return_when=asyncio.FIRST_COMPLETED)
            for taker in sorted(done, key=takers.__getitem__):
                index, events = takers.pop(taker), taker.result()
                if not isinstance(events[-1], Finished | Failed):
                    takers[asyncio.create_task(work.streams[index].take())] = index
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


def _body(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
