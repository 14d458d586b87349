"""The queues of a worker over real pipes: nothing is lost or out of order, and a death is an EOF.

The front's ends run on asyncio's own loop and on uvloop, which is the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import FrameError
from shared.messages import Cancel, Failed, Generate, Heartbeat, Message, Token, Tokens
from shared.prompt import Prompt
from shared.queues import READ_SIZE, RequestReceiver, RequestSender, TokenReceiver, TokenSender
from shared.sampling import SamplingParams
from shared.wire import MAX_FRAME, encode_frame

T = TypeVar("T")
TIMEOUT_S = 20.0
"""A test that takes this long has failed."""
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
OVERSIZED = struct.pack(">I", 2**32 - 1)
GARBAGE = struct.pack(">I", 4) + b"\xc1\xff\x00\xc1"
CAPACITY = 1024 * 1024
"""Bytes; larger than any pipe's buffer here."""

Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run[Any]:
    """Run a coroutine on the loop; fail rather than hang."""

    def run_bounded(coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(TIMEOUT_S):
                return await coroutine

        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(bounded())

    return run_bounded


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    """The reading and the writing end."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    yield reader, writer
    for end in (reader, writer):
        with contextlib.suppress(OSError):  # a transport has closed it
            end.close()


def in_thread(function: Callable[[], T]) -> Future[T]:
    """Run the function in a thread; the future gets its result or exception."""
    future: Future[T] = Future()

    def target() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=target, daemon=True).start()
    return future


def tokens(count: int, text: str = " upon") -> list[Message]:
    return [Tokens((Token(1, 7, position, text),)) for position in range(count)]


def generate(number: int, size: int = 10) -> Generate:
    return Generate(number, Prompt("x" * size), SamplingParams(stop=("end",)))


def is_full(writer: Connection) -> bool:
    poll = select.poll()
    poll.register(writer.fileno(), select.POLLOUT)
    return not poll.poll(0)


async def until_full(writer: Connection) -> None:
    """Wait for a full pipe by looking: it raises no event."""
    while not is_full(writer):
        await asyncio.sleep(0.001)


class Front:
    """Records the callbacks of a TokenReceiver."""

    def __init__(self) -> None:
        self.batches: list[list[Message]] = []
        self.ends: list[FrameError | None] = []
        self.receiver = TokenReceiver(self._on_messages, self._on_end)
        self._changed = asyncio.Event()

    @property
    def messages(self) -> list[Message]:
        return list(itertools.chain(*self.batches))

    def _on_messages(self, batch: list[Message]) -> None:
        self.batches.append(batch)
        self._changed.set()

    def _on_end(self, error: FrameError | None) -> None:
        self.ends.append(error)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()
            self._changed.clear()

    async def until_end(self) -> None:
        await self.until(lambda: bool(self.ends))


async def settle() -> None:
    """Let the loop look at its descriptors a few times."""
    for _ in range(5):
        await asyncio.sleep(0)


# ---------------------------------------------------------------- token queue: to the front


def test_messages_come_in_the_order_in_which_they_were_sent_within_a_batch_and_across(
    run: Run[None], pipe: tuple[Connection, Connection]
) -> None:
    reader, writer = pipe
    batches = [[*tokens(3), Failed(1, "engine_failed", "no")], [Heartbeat()], tokens(2)]

    async def go() -> None:
        front, sender = Front(), TokenSender(writer)
        await front.receiver.open(reader)
        for batch in batches:
            sender.send(batch)
        writer.close()
        await front.until_end()

        assert front.messages == list(itertools.chain(*batches))
        assert front.ends == [None]
        assert front.receiver.is_at_end

    run(go())


def test_the_front_waits_for_the_rest_of_a_frame_without_blocking(
    run: Run[None], pipe: tuple[Connection, Connection]
) -> None:
    reader, writer = pipe
    first, second = encode_frame([Cancel(1)]), encode_frame([Cancel(2), Cancel(3)])

    async def go() -> None:
        front = Front()
        await front.receiver.open(reader)

        os.write(writer.fileno(), first + second[:6])
        await front.until(lambda: bool(front.messages))
        await settle()
        assert front.messages == [Cancel(1)]

        os.write(writer.fileno(), second[6:])
        await front.until(lambda: len(front.messages) > 1)
        assert front.messages == [Cancel(1), Cancel(2), Cancel(3)]

        assert front.ends == []
        front.receiver.close()
        await front.until_end()

    run(go())


def test_a_frame_may_come_a_byte_at_a_time(
    run: Run[None], pipe: tuple[Connection, Connection]
) -> None:
    reader, writer = pipe
    batch = [*tokens(1), Heartbeat()]

    async def go() -> None:
        front = Front()
        await front.receiver.open(reader)
        for byte in encode_frame(batch):
            assert front.batches == []
            os.write(writer.fileno(), bytes([byte]))
            await settle()
        await front.until(lambda: bool(front.batches))
        assert front.batches == [batch]
        front.receiver.close()
        await front.until_end()

    run(go())


def start_dying(writer: Connection, last_words: bytes) -> subprocess.Popen[bytes]:
    """A process that writes to the pipe and is killed."""
    fd = writer.fileno()
    program = f"import os; os.write({fd}, {last_words!r}); os.kill(os.getpid(), 9)"
    return subprocess.Popen([sys.executable, "-SEc", program], pass_fds=[fd])


def test_half_a_frame_of_a_worker_that_was_killed_is_dropped(
    run: Run[None], pipe: tuple[Connection, Connection]
) -> None:
    reader, writer = pipe
    whole, half = encode_frame(tokens(2)), encode_frame(tokens(5))[:-3]

    async def go() -> None:
        front = Front()
        await front.receiver.open(reader)
        child = start_dying(writer, whole + half)
        writer.close()
        await front.until_end()

        assert front.messages == tokens(2)
        assert front.ends == [None]
        assert child.wait() == -signal.SIGKILL

    run(go())


@pytest.mark.parametrize("rubbish", [GARBAGE, OVERSIZED], ids=["garbage", "oversized"])
def test_a_bad_frame_closes_the_queue_and_the_worker_finds_nobody_there(
    run: Run[None], pipe: tuple[Connection, Connection], rubbish: bytes
) -> None:
    reader, writer = pipe

    async def go() -> None:
        front, sender = Front(), TokenSender(writer)
        await front.receiver.open(reader)
        sender.send([Cancel(1)])
        await front.until(lambda: bool(front.messages))

        os.write(writer.fileno(), rubbish)
        await front.until_end()

        assert [type(end) for end in front.ends] == [FrameError]
        assert front.receiver.is_at_end
        await settle()
        with pytest.raises(BrokenPipeError):
            sender.send([Cancel(2)])
        front.receiver.close()
        await settle()
        assert front.messages == [Cancel(1)]
        assert len(front.ends) == 1

    run(go())


def test_the_end_is_told_once_when_the_front_closes_the_queue_itself(
    run: Run[None], pipe: tuple[Connection, Connection]
) -> None:
    reader, writer = pipe

    async def go() -> None:
        front = Front()
        front.receiver.close()  # not open yet: nothing to close
        await front.receiver.open(reader)
        assert not front.receiver.is_at_end
        front.receiver.close()
        front.receiver.close()
        await front.until_end()
        await settle()
        assert front.ends == [None]
        with pytest.raises(BrokenPipeError):
            TokenSender(writer).send([Heartbeat()])

    run(go())


def test_a_worker_waits_while_the_front_is_slow_and_no_token_is_lost(
    run: Run[None], pipe: tuple[Connection, Connection]
) -> None:
    reader, writer = pipe
    count = 2 * CAPACITY // 1000
    sent = []

    def send_all() -> None:
        sender = TokenSender(writer)
        for message in tokens(count, text="x" * 1000):
            sender.send([message])
            sent.append(message)

    async def go() -> None:
        worker = in_thread(send_all)
        await until_full(writer)
        assert len(sent) < count
        assert not worker.done()

        front = Front()
        await front.receiver.open(reader)
        await front.until(lambda: len(front.messages) >= count)

        assert front.messages == tokens(count, text="x" * 1000)
        await asyncio.wrap_future(worker)
        front.receiver.close()
        await front.until_end()

    run(go())


def test_a_frame_larger_than_the_pipe_arrives_whole(
    run: Run[None], pipe: tuple[Connection, Connection]
) -> None:
    reader, writer = pipe
    message = Failed(1, "engine_failed", "x" * (3 * CAPACITY))

    async def go() -> None:
        worker = in_thread(lambda: TokenSender(writer).send([message]))
        front = Front()
        await front.receiver.open(reader)
        await front.until(lambda: bool(front.messages))
        assert front.messages == [message]
        await asyncio.wrap_future(worker)
        front.receiver.close()
        await front.until_end()

    run(go())


def test_a_worker_without_a_front_gets_a_broken_pipe(pipe: tuple[Connection, Connection]) -> None:
    reader, writer = pipe
    reader.close()

    with pytest.raises(BrokenPipeError):
        TokenSender(writer).send([Heartbeat()])


def test_a_worker_that_waits_for_a_slow_front_gets_a_broken_pipe_when_that_dies(
    run: Run[None], pipe: tuple[Connection, Connection]
) -> None:
    reader, writer = pipe
    message = Failed(1, "engine_failed", "x" * (3 * CAPACITY))

    async def go() -> None:
        worker = in_thread(lambda: TokenSender(writer).send([message]))
        await until_full(writer)
        reader.close()
        with pytest.raises(BrokenPipeError):
            await asyncio.wrap_future(worker)

    run(go())


def test_a_frame_over_the_limit_is_not_begun(pipe: tuple[Connection, Connection]) -> None:
    reader, writer = pipe

    with pytest.raises(FrameError):
        TokenSender(writer).send([Failed(1, "c", "x" * MAX_FRAME)])

    assert not reader.poll(0)


# ---------------------------------------------------------------- request queue: from the front


def test_a_request_goes_down_and_cancels_follow_in_their_order(
    run: Run[None], pipe: tuple[Connection, Connection]
) -> None:
    reader, writer = pipe
    sent = [generate(1), generate(2), Cancel(1), Cancel(2)]

    async def go() -> None:
        sender = await RequestSender.open(writer)
        for message in sent:
            sender.send(message)
        assert await asyncio.to_thread(receive_all, RequestReceiver(reader), len(sent)) == sent
        sender.close()

    run(go())


def receive_all(receiver: RequestReceiver, count: int) -> list[Message]:
    messages: list[Message] = []
    deadline = time.monotonic() + TIMEOUT_S
    while len(messages) < count and time.monotonic() < deadline:
        messages += receiver.receive(1.0)
    return messages


def test_the_front_goes_on_while_a_worker_does_not_read_and_no_request_is_lost(
    run: Run[None], pipe: tuple[Connection, Connection]
) -> None:
    reader, writer = pipe
    sent = [generate(number, 10_000) for number in range(3 * CAPACITY // 10_000)]

    async def go() -> None:
        sender = await RequestSender.open(writer)
        for message in sent:
            sender.send(message)  # would block for ever here, with nobody reading
        assert is_full(writer)
        assert await asyncio.to_thread(receive_all, RequestReceiver(reader), len(sent)) == sent
        sender.close()

    run(go())


def test_messages_for_a_dead_worker_go_nowhere_in_silence(
    run: Run[None], pipe: tuple[Connection, Connection], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = pipe

    async def go() -> None:
        sender = await RequestSender.open(writer)
        reader.close()
        for number in range(20):
            sender.send(generate(number))
            await settle()
        sender.close()
        sender.close()

    run(go())
    assert caplog.records == []


def test_after_close_the_worker_sees_the_end_and_sends_are_ignored(
    run: Run[None], pipe: tuple[Connection, Connection]
) -> None:
    reader, writer = pipe
    receiver = RequestReceiver(reader)

    async def go() -> None:
        sender = await RequestSender.open(writer)
        sender.send(Cancel(1))
        assert receiver.receive(TIMEOUT_S) == [Cancel(1)]
        sender.close()
        sender.send(Cancel(2))
        with pytest.raises(EOFError):
            await asyncio.to_thread(receive_all, receiver, 1)

    run(go())


def test_a_request_over_the_limit_is_refused_and_the_queue_stays_usable(
    run: Run[None], pipe: tuple[Connection, Connection]
) -> None:
    reader, writer = pipe

    async def go() -> None:
        sender = await RequestSender.open(writer)
        with pytest.raises(FrameError):
            sender.send(generate(1, MAX_FRAME))
        sender.send(Cancel(2))
        assert await asyncio.to_thread(receive_all, RequestReceiver(reader), 1) == [Cancel(2)]
        sender.close()

    run(go())


# ---------------------------------------------------------------- request queue: the worker's end


def test_a_busy_worker_is_told_at_once_that_there_is_nothing(
    pipe: tuple[Connection, Connection],
) -> None:
    reader, _ = pipe
    receiver = RequestReceiver(reader)

    assert in_thread(lambda: receiver.receive(0)).result(TIMEOUT_S) == []


def test_an_idle_worker_waits_as_long_as_it_was_told_to(
    pipe: tuple[Connection, Connection],
) -> None:
    reader, _ = pipe
    receiver = RequestReceiver(reader)
    started = time.monotonic()

    assert in_thread(lambda: receiver.receive(0.05)).result(TIMEOUT_S) == []
    assert time.monotonic() - started >= 0.045


def test_an_idle_worker_wakes_for_a_message(pipe: tuple[Connection, Connection]) -> None:
    reader, writer = pipe
    receiver = RequestReceiver(reader)

    waiting = in_thread(lambda: receiver.receive(10 * TIMEOUT_S))
    os.write(writer.fileno(), encode_frame([Cancel(5)]))

    assert waiting.result(TIMEOUT_S) == [Cancel(5)]


def test_an_idle_worker_wakes_when_the_front_is_gone(pipe: tuple[Connection, Connection]) -> None:
    reader, writer = pipe
    receiver = RequestReceiver(reader)

    waiting = in_thread(lambda: receiver.receive(10 * TIMEOUT_S))
    writer.close()

    with pytest.raises(EOFError):
        waiting.result(TIMEOUT_S)


def test_what_was_sent_before_the_front_went_is_still_received(
    pipe: tuple[Connection, Connection],
) -> None:
    reader, writer = pipe
    receiver = RequestReceiver(reader)
    os.write(writer.fileno(), encode_frame([Cancel(1)]) + encode_frame([Cancel(2)])[:-1])
    writer.close()

    assert receiver.receive(0) == [Cancel(1)]
    with pytest.raises(EOFError):
        receiver.receive(0)


def test_a_worker_goes_on_with_its_step_when_only_half_a_frame_has_come(
    pipe: tuple[Connection, Connection],
) -> None:
    reader, writer = pipe
    receiver = RequestReceiver(reader)
    stream = encode_frame([generate(1)])
    os.write(writer.fileno(), stream[:9])

    assert in_thread(lambda: receiver.receive(TIMEOUT_S)).result(TIMEOUT_S) == []
    assert in_thread(lambda: receiver.receive(0)).result(TIMEOUT_S) == []

    os.write(writer.fileno(), stream[9:])
    assert receiver.receive(0) == [generate(1)]


@pytest.mark.parametrize("rubbish", [GARBAGE, OVERSIZED], ids=["garbage", "oversized"])
def test_rubbish_from_the_front_is_a_frame_error(
    pipe: tuple[Connection, Connection], rubbish: bytes
) -> None:
    reader, writer = pipe
    os.write(writer.fileno(), rubbish)

    with pytest.raises(FrameError):
        RequestReceiver(reader).receive(0)


def test_more_than_one_read_takes_is_received_in_several_calls(
    pipe: tuple[Connection, Connection],
) -> None:
    reader, writer = pipe
    message = generate(1, 3 * READ_SIZE)
    front = in_thread(lambda: TokenSender(writer).send([message, Cancel(1)]))

    assert receive_all(RequestReceiver(reader), 2) == [message, Cancel(1)]
    front.result(TIMEOUT_S)


@given(st.lists(st.integers(1, 12), max_size=15))
@settings(max_examples=25)
def test_a_worker_gets_every_message_once_whatever_it_reads_at_a_time(sizes: list[int]) -> None:
    sent = [Cancel(number) for number in range(6)]
    stream = b"".join(encode_frame([message]) for message in sent)
    reader, writer = multiprocessing.Pipe(duplex=False)
    with reader, writer:
        receiver = RequestReceiver(reader)
        received: list[Message] = []
        for size in [*sizes, len(stream)]:
            piece, stream = stream[:size], stream[size:]
            os.write(writer.fileno(), piece)
            received += receiver.receive(0)
        assert received == sent
