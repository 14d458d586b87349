"""The relay: several streams to one answer, at once or at the end, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest
from starlette.types import Message

from server.generation.answer import Renderer
from server.generation.record import RequestRecord
from server.generation.relay import ClientLeft, client_stays, relay
from server.generation.submission import AT_ONCE, Submission, submitted
from server.generation.task import Generation
from shared.errors import EngineFailed, QueueFull, ServingError, Unsupported
from shared.messages import Embedded, Failed, Finished, Generate, Token
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.values import Timings, Usage
from tests.helpers.support import (
    first_tokens,
    model_settings,
    pool_settings,
    run,
    until,
    until_ready,
)
from workers.pool.pool import WorkerPool
from workers.pool.stream import RequestStream

ENDLESS = SamplingParams(num_predict=200_000, ignore_eos=True)


class Words(Renderer):
    """Says what it is told, in words."""

    media_type = "text/words"

    def __init__(self, *, is_stream: bool = True, last_words: bytes | None = b"failed;") -> None:
        self.is_stream = is_stream
        self._last_words = last_words

    def begin(self) -> bytes:
        return b"begin;"

    def tokens(self, index: int, tokens: Sequence[Token]) -> bytes:
        return b"".join(b"%d:%s;" % (index, token.text.encode()) for token in tokens)

    def embedded(self, index: int, vector: bytes) -> bytes:
        return b"%d=%s;" % (index, vector)

    def finished(self, index: int, event: Finished, queued_s: float) -> bytes:
        return b"%d is %s;" % (index, event.reason.encode())

    def end(self) -> bytes:
        return b"end"

    def failed(self, error: ServingError) -> bytes | None:
        return self._last_words


class Client:
    """Takes what is sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def is_complete(self) -> bool:
        return self.messages[-1].get("more_body") is False

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])


def record() -> RequestRecord:
    return RequestRecord({"type": "http", "path": "/words", "headers": []})


def stream(number: int) -> RequestStream:
    return RequestStream(Generate(number, Prompt("x"), SamplingParams()))


class Prepared:
    """Stands in for a pool: gives streams that a test fills."""

    def __init__(self, count: int) -> None:
        self.streams = [stream(number) for number in range(count)]
        self._next = iter(self.streams)

    def submit(self, *_: object, **__: object) -> RequestStream:
        return next(self._next)


def generation(text: str = "x", **params: Any) -> Generation:
    return Generation(Prompt(text), SamplingParams(**params))


def token(stream: RequestStream, text: str, position: int = 0) -> None:
    stream.put(Token(stream.request.id, 1, position, text))


def finish(stream: RequestStream) -> None:
    stream.put(Finished(stream.request.id, "stop", Usage(1, 0, 1), Timings(0.0, 0.0)))


def fail(stream: RequestStream) -> None:
    stream.put(Failed(stream.request.id, "engine_failed", "it failed"))


Story = Callable[[list[RequestStream]], Coroutine[Any, Any, None]]


def relayed(story: Story, renderer: Renderer, count: int = 2) -> Client:
    """What a client gets when this happens to so many streams."""
    client = Client()

    async def go() -> None:
        pool = Prepared(count)
        submission = Submission([generation()] * count, cast("WorkerPool", pool), "")
        submission.begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(relay(submission, renderer, client.send, record()))
            group.create_task(story(pool.streams))

    run(go())
    return client


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def both_end(streams: list[RequestStream]) -> None:
    first, second = streams
    token(first, "a")
    await settle()
    token(second, "b")
    await settle()
    finish(second)
    await settle()
    token(first, "c")
    finish(first)


def test_the_events_of_several_streams_leave_as_they_come_each_with_its_place() -> None:
    client = relayed(both_end, Words())
    assert client.body == b"begin;0:a;1:b;1 is stop;0:c;0 is stop;end"
    assert [message.get("body") for message in client.messages[1:]] == [
        b"begin;0:a;",
        b"1:b;",
        b"1 is stop;",
        b"0:c;0 is stop;end",
    ]
    assert client.is_complete
    assert client.headers[b"content-type"] == b"text/words"
    assert b"content-length" not in client.headers


def test_an_answer_that_is_no_stream_leaves_as_a_whole() -> None:
    client = relayed(both_end, Words(is_stream=False))
    assert len(client.messages) == 2
    assert client.body == b"begin;0:a;1:b;1 is stop;0:c;0 is stop;end"
    assert client.headers[b"content-length"] == str(len(client.body)).encode()


def test_a_vector_goes_to_the_renderer() -> None:
    async def story(streams: list[RequestStream]) -> None:
        streams[0].put(Embedded(0, b"vector"))
        finish(streams[0])

    assert relayed(story, Words(), 1).body == b"begin;0=vector;0 is stop;end"


def test_an_answer_without_tasks_is_its_beginning_and_its_end() -> None:
    async def story(streams: list[RequestStream]) -> None:
        pass

    for is_stream in (True, False):
        assert relayed(story, Words(is_stream=is_stream), 0).body == b"begin;end"


async def one_fails_late(streams: list[RequestStream]) -> None:
    token(streams[0], "a")
    await settle()
    fail(streams[1])


def test_one_streams_failure_ends_the_answer_with_its_last_words() -> None:
    client = relayed(one_fails_late, Words())
    assert client.body == b"begin;0:a;failed;"
    assert client.is_complete


def test_without_last_words_a_failed_answer_stays_incomplete() -> None:
    client = relayed(one_fails_late, Words(last_words=None))
    assert client.body == b"begin;0:a;"
    assert not client.is_complete


def test_tokens_that_come_with_a_failure_are_sent_before_it() -> None:
    async def story(streams: list[RequestStream]) -> None:
        token(streams[0], "a")
        fail(streams[0])

    assert relayed(story, Words(), 1).body == b"begin;0:a;failed;"


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_failure_before_the_first_byte_is_raised(is_stream: bool) -> None:
    async def story(streams: list[RequestStream]) -> None:
        if not is_stream:
            token(streams[0], "a")
            await settle()
        fail(streams[1])

    with pytest.raises(ExceptionGroup) as caught:
        relayed(story, Words(is_stream=is_stream))
    assert caught.group_contains(EngineFailed, match="it failed")


# ---------------------------------------------------------------- submitting


def test_tasks_for_which_there_is_no_room_yet_begin_when_others_end() -> None:
    async def go() -> None:
        async with WorkerPool(pool_settings(model_settings(slots=1), queue=0)) as pool:
            await until_ready(pool)
            submission, client = Submission([generation("a"), generation("b")], pool, ""), Client()
            with submitted(submission):
                assert len(submission.streams) == 1
                await relay(submission, Words(), client.send, record())
            assert client.body == b"begin;0:a;0 is stop;1:b;1 is stop;end"

    run(go())


def test_where_there_is_no_room_for_the_first_task_the_queue_is_full() -> None:
    async def go() -> None:
        async with WorkerPool(pool_settings(model_settings(slots=1), queue=0)) as pool:
            await until_ready(pool)
            held = pool.submit(Prompt("x"), ENDLESS)
            await first_tokens(held)
            with pytest.raises(QueueFull), submitted(Submission([generation()], pool, "")):
                raise AssertionError("there was no slot")
            pool.release(held)

    run(go())


def test_many_tasks_of_one_answer_leave_room_for_others() -> None:
    async def go() -> None:
        async with WorkerPool(pool_settings(queue=100)) as pool:
            await until_ready(pool)
            submission = Submission([Generation(Prompt("x"), ENDLESS)] * (AT_ONCE + 5), pool, "")
            with submitted(submission):
                assert len(submission.streams) == AT_ONCE

    run(go())


def test_a_task_that_cannot_be_honoured_releases_those_before_it() -> None:
    async def go() -> None:
        async with WorkerPool(pool_settings()) as pool:
            await until_ready(pool)
            submission = Submission([generation(), generation(logprobs=1)], pool, "")
            with pytest.raises(Unsupported), submitted(submission):
                raise AssertionError("the echo engine has no log probabilities")
            await until(lambda: pool.status().active == 0)

    run(go())


def test_the_streams_of_an_answer_are_released_however_it_ends() -> None:
    async def go() -> None:
        async with WorkerPool(pool_settings()) as pool:
            await until_ready(pool)
            submission = Submission([Generation(Prompt("x"), ENDLESS)] * 2, pool, "")
            with pytest.raises(RuntimeError, match="on the way"), submitted(submission):
                for taken in submission.streams:
                    await first_tokens(taken)
                raise RuntimeError("on the way")
            await until(lambda: pool.status().active == 0)

    run(go())


# ---------------------------------------------------------------- clients that leave


class Connection(Client):
    """A client that may leave."""

    def __init__(self) -> None:
        super().__init__()
        self._news: asyncio.Queue[Message] = asyncio.Queue()

    async def receive(self) -> Message:
        return await self._news.get()

    def leave(self) -> None:
        self._news.put_nowait({"type": "http.disconnect"})


def test_a_client_that_leaves_ends_what_is_underway() -> None:
    async def go() -> None:
        client = Connection()
        with pytest.raises(ClientLeft):
            async with client_stays(client.receive, client.send):
                client.leave()
                await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # and nothing is left of the cancellation

    run(go())


def test_a_disconnect_after_the_last_byte_ends_nothing() -> None:
    """At the end of an answer the HTTP server reports one in any case."""

    async def go() -> None:
        client = Connection()
        async with client_stays(client.receive, client.send) as send:
            await send({"type": "http.response.body", "body": b"x", "more_body": False})
            client.leave()
            await asyncio.sleep(0.02)

    run(go())


def test_another_cancellation_is_passed_on() -> None:
    async def go() -> None:
        client, entered = Connection(), asyncio.Event()

        async def serve() -> None:
            async with client_stays(client.receive, client.send):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(serve())
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(go())
