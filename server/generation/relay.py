"""The one path of a generation: read the body, submit its tasks, relay their events, release them.

    body ─▶ Parse ─▶ Call.answer ─▶ Submission ─▶ RequestStream.take ─▶ Renderer ─▶ Output ─▶ send

Nothing is sent before the first event, so every failure until then is a real HTTP status. After
that the dialect decides how a failed stream ends. A client that leaves is noticed while its
request is prepared, while it waits and while it streams; its tasks are always released.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar, cast

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.generation.answer import Answer, Call, Parse, Renderer
from server.generation.models import Models
from server.generation.output import output_of
from server.generation.record import Observer, RequestRecord
from server.generation.served_model import ServedModel
from server.generation.submission import EXPIRED, Submission, submitted
from server.http.body import ClientLeft, read_body
from server.http.errors import DeadlineExceeded
from shared.errors import NotReady, ServingError, error_from_code
from shared.histogram import Histogram
from shared.messages import Embedded, Failed, Finished, Token
from workers.pool.stream import Event

T = TypeVar("T")


class GenerationEndpoint:
    """The ASGI application of one POST path.

    `refuse` makes the response of an error before the first byte. `gaps` gives the histogram of a
    model's inter-token latencies. `observers` are told of each request's end.
    """

    def __init__(
        self,
        parse: Parse,
        refuse: Callable[[ServingError], Response],
        models: Models,
        gaps: Callable[[str], Histogram],
        observers: Sequence[Observer],
    ) -> None:
        self._parse = parse
        self._refuse = refuse
        self._models = models
        self._gaps = gaps
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
            async with client_stays(receive, send) as send_on:
                call = await self._models.preparation.parsed(
                    lambda body: self._parse(body, headers), body
                )
                record.read = time.monotonic()
                deadline = None if call.timeout_s is None else arrived + call.timeout_s
                await self._answer(call, record, deadline, send_on)
        except ServingError as error:
            record.error = error
            await self._refuse(error)(scope, receive, send)

    async def _answer(
        self, call: Call, record: RequestRecord, deadline: float | None, send: Send
    ) -> None:
        """Raises ServingError only while nothing has been sent."""
        async with contextlib.AsyncExitStack() as stack:
            using = stack.enter_async_context(self._models.use(call.model))
            model, pool = await in_time(using, deadline)
            record.model = model.name
            answer = await self._prepared(call, model, deadline)
            submission = Submission(answer.tasks, pool, record.client)
            record.submits(submission, self._gaps(model.name))
            stack.enter_context(submitted(submission, deadline))
            await relay(submission, answer.renderer, send, record)

    async def _prepared(self, call: Call, model: ServedModel, deadline: float | None) -> Answer:
        """The call's answer. A template may take seconds, so it is rendered beside the loop."""
        if not call.is_chat:
            return call.answer(model)
        return await in_time(self._models.preparation.run(call.answer, model), deadline)


async def in_time(waiting: Awaitable[T], deadline: float | None) -> T:
    """Wait until `deadline`, in the loop's time. Raises DeadlineExceeded then."""
    try:
        async with asyncio.timeout_at(deadline):
            return await waiting
    except TimeoutError:
        raise DeadlineExceeded(EXPIRED) from None


@contextlib.asynccontextmanager
async def client_stays(receive: Receive, send: Send) -> AsyncIterator[Send]:
    """Within, a client that leaves cancels what is awaited; ClientLeft is raised then.

    Yields a `send` for all messages: after the last one the client is not watched any more.
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
            watcher.cancel()  # uvicorn reports a disconnect at the end of an answer, too
        await send(message)

    try:
        yield send_on
    except asyncio.CancelledError:
        if has_left and not task.uncancel():
            raise ClientLeft from None
        raise
    finally:
        watcher.cancel()


async def relay(
    submission: Submission, renderer: Renderer, send: Send, record: RequestRecord
) -> None:
    """Send the events of the submission's streams until all have ended, and record them.

    Tokens that wait together are sent together. Raises ServingError when the request fails before
    its first byte.
    """
    output = output_of(renderer, send)
    if submission.is_done:
        await output.end(b"")
    async for index, events in submission.events():
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
            body += renderer.finished(index, last, submission.streams[index].queued_s)
            try:
                submission.ended()
            except ServingError as error:
                record.error = error
                await output.cut(body, error)
                return
        if submission.is_done:
            await output.end(body)
        else:
            await output.write(body)


def tokens_of(events: Sequence[Event]) -> list[Token]:
    """The tokens among the events."""
    return [event for event in events if type(event) is Token]
