"""The reader of the request queue on a real pipe, and what it puts into the inbox."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from shared.errors import FrameError
from shared.messages import Cancel, Generate, Message, Shutdown
from shared.prompt import Prompt
from shared.queues import RequestReceiver
from shared.sampling import SamplingParams
from shared.wire import encode_frame
from tests.helpers.support import TIMEOUT_S
from workers.child.inbox import Arrival, Inbox
from workers.child.preparer import Request
from workers.child.reader import RequestReader


class Bench:
    """A reader with its inbox, and the other end of its pipe. Requests need no preparation."""

    def __init__(self) -> None:
        self.reader, self.writer = Pipe(duplex=False)
        self.cancelled: list[int] = []
        self.was_cancelled = threading.Event()
        before = set(threading.enumerate())
        self.inbox = Inbox()
        RequestReader(RequestReceiver(self.reader), self.inbox, self.inbox.put, self._on_cancel)
        (self.thread,) = set(threading.enumerate()) - before

    def _on_cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)
        self.was_cancelled.set()

    def reads_no_more(self) -> None:
        """Wait until the thread has ended."""
        self.thread.join(TIMEOUT_S)
        assert not self.thread.is_alive()

    def send(self, *messages: Message) -> None:
        write(self.writer, encode_frame(messages))

    def take(self, count: int) -> list[Arrival]:
        taken: list[Arrival] = []
        while len(taken) < count:
            arrived = self.inbox.take(TIMEOUT_S)
            assert arrived, "nothing arrived"
            taken += arrived
        return taken


def write(connection: Connection, data: bytes) -> None:
    with open(connection.fileno(), "wb", closefd=False) as pipe:
        pipe.write(data)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    if not bench.writer.closed:
        bench.writer.close()


def test_messages_come_in_order(bench: Bench) -> None:
    generate = Generate(1, Prompt("x"), SamplingParams())
    bench.send(generate, Cancel(1))
    bench.send(Shutdown())
    assert bench.take(3) == [generate, Cancel(1), Shutdown()]


def test_without_a_timeout_the_inbox_does_not_wait(bench: Bench) -> None:
    assert bench.inbox.take(0) == []


def test_a_wait_ends_without_a_message_too(bench: Bench) -> None:
    assert bench.inbox.take(0.01) == []


def test_a_cancel_is_reported_while_the_loop_is_busy_and_is_in_the_inbox_then(bench: Bench) -> None:
    bench.send(Generate(7, Prompt("x"), SamplingParams()), Cancel(7))
    assert bench.was_cancelled.wait(TIMEOUT_S)  # nothing was taken from the inbox
    assert bench.cancelled == [7]
    assert Cancel(7) in bench.inbox.take(0)


def test_the_fronts_end_comes_after_its_last_message(bench: Bench) -> None:
    bench.send(Cancel(1))
    assert bench.take(1) == [Cancel(1)]
    bench.writer.close()
    with pytest.raises(EOFError):
        bench.inbox.take(TIMEOUT_S)


@pytest.mark.parametrize(
    ("rubbish", "error"), [(b"", EOFError), (b"\0\0\0\1\xc1", FrameError)], ids=["end", "rubbish"]
)
def test_what_came_before_the_end_is_not_lost(
    bench: Bench, rubbish: bytes, error: type[Exception]
) -> None:
    bench.send(Shutdown(), Cancel(1))
    assert bench.was_cancelled.wait(TIMEOUT_S)
    write(bench.writer, rubbish)
    bench.writer.close()
    bench.reads_no_more()
    assert bench.inbox.take(0) == [Shutdown(), Cancel(1)]
    for _ in range(2):  # nothing can come any more
        with pytest.raises(error):
            bench.inbox.take(TIMEOUT_S)


def test_a_wait_ends_when_a_message_arrives(bench: Bench) -> None:
    taken: list[Arrival] = []
    waiting = threading.Thread(target=lambda: taken.extend(bench.inbox.take(2 * TIMEOUT_S)))
    waiting.start()
    bench.send(Shutdown())
    waiting.join(TIMEOUT_S)
    assert not waiting.is_alive()
    assert taken == [Shutdown()]


def test_only_a_cancel_is_reported(bench: Bench) -> None:
    bench.send(Generate(1, Prompt("x"), SamplingParams()), Shutdown(), Cancel(2), Cancel(3))
    bench.take(4)
    bench.writer.close()
    bench.reads_no_more()
    assert bench.cancelled == [2, 3]


def test_a_message_larger_than_a_pipe_arrives_whole(bench: Bench) -> None:
    large = Generate(1, Prompt("é" * 300_000), SamplingParams())
    bench.send(large, Shutdown())
    assert bench.take(2) == [large, Shutdown()]


def test_rubbish_is_a_frame_error(bench: Bench) -> None:
    write(bench.writer, b"\0\0\0\1\xc1")
    with pytest.raises(FrameError):
        bench.inbox.take(TIMEOUT_S)


def test_an_error_that_ends_the_thread_ends_the_loop() -> None:
    """Otherwise the worker would go on, and receive nothing more."""
    reader, writer = Pipe(duplex=False)

    def submit(request: Request) -> None:
        raise MemoryError

    inbox = Inbox()
    RequestReader(RequestReceiver(reader), inbox, submit, lambda request_id: None)
    generate = Generate(1, Prompt("x"), SamplingParams())
    os.write(writer.fileno(), encode_frame([generate]))
    with pytest.raises(MemoryError):
        inbox.take(TIMEOUT_S)
    writer.close()
    reader.close()
