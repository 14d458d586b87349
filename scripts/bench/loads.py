"""The load: streams on raw sockets, all of them in one thread, which takes little CPU time.

Stream   one request and its answer, with the time at which each token was read
Clients  streams that are read together, each as soon as it has bytes
Load     what came of one request to each of many clients, or of several in a row
"""

from __future__ import annotations

import itertools
import json
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from scripts.load.answers import Answer, LineAnswer
from scripts.load.errors import BenchError
from scripts.load.server import HOST

T = TypeVar("T")

READ_SIZE = 64 * 1024
SILENCE_S = 120.0
"""Without a byte on any stream something is broken."""


class Stream:
    """One POST on a connection of its own, to which `tokens` tokens are to come."""

    def __init__(
        self, port: int, path: str, fields: Mapping[str, Any], answer: Answer, tokens: int
    ) -> None:
        body = json.dumps(fields).encode()
        self._request = (
            f"POST {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode() + body
        self._asked = tokens
        self._answer = answer
        self._reads: list[tuple[float, int]] = []  # when, and how many tokens there were then
        self.is_over = False
        self.socket = socket.create_connection((HOST, port))
        self.socket.settimeout(SILENCE_S)

    @property
    def received(self) -> int:
        """Tokens that have come."""
        return self._answer.tokens

    def send(self) -> None:
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Take what has come. False at the end; raises BenchError if that is not a whole answer."""
        data = self.socket.recv(READ_SIZE)
        now = time.monotonic()
        if not data:
            self._answer.end(self._asked)
            self.is_over = True
            return False
        self._answer.feed(data)
        self._reads.append((now, self.received))
        return True

    def arrivals(self) -> list[float]:
        """When each token was read, in time.monotonic's seconds."""
        times: list[float] = []
        for when, count in self._reads:
            times += [when] * (count - len(times))
        return times


class Clients:
    """Streams that are read together; all are closed with the context.

    In the context, an OSError is a cut stream, and becomes a BenchError.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for key in list(self._selector.get_map().values()):
            self.leave(key.data)
        self._selector.close()
        if isinstance(value, OSError):
            raise BenchError(f"a stream was cut: {value}") from value

    @property
    def are_reading(self) -> bool:
        """Whether a stream is not over."""
        return bool(self._selector.get_map())

    def add(self, stream: Stream) -> Stream:
        """Read this one too; it may be sent later."""
        self._selector.register(stream.socket, selectors.EVENT_READ, stream)
        return stream

    def start(self, stream: Stream) -> Stream:
        """Add it and send it."""
        self.add(stream).send()
        return stream

    def leave(self, stream: Stream) -> None:
        """Close its connection, whether it is over or not."""
        self._selector.unregister(stream.socket)
        stream.socket.close()

    def read(self) -> list[Stream]:
        """Wait until a stream has bytes, and take all that is there; return what ended with it."""
        ended = self._read(SILENCE_S)
        if ended is None:
            raise BenchError(f"no stream had a byte for {SILENCE_S:g} s")
        return ended

    def read_until(self, is_so: Callable[[], bool]) -> None:
        """Read until it is so. BenchError if all streams end before."""
        while not is_so():
            if not self.are_reading:
                raise BenchError("the streams ended too early: give them more tokens")
            self.read()

    def read_for(self, seconds: float) -> None:
        """Read what comes within that time."""
        end = time.monotonic() + seconds
        while self.are_reading and (rest := end - time.monotonic()) > 0:
            self._read(rest)

    def _read(self, timeout_s: float) -> list[Stream] | None:
        """Take what is there, as soon as something is; None if there was nothing until then."""
        ready = self._selector.select(timeout_s)
        ended = [key.data for key, _ in ready if not key.data.receive()]
        for stream in ended:
            self.leave(stream)
        return ended if ready else None


@dataclass(frozen=True)
class Load:
    """What came of some streams."""

    arrivals: Sequence[Sequence[float]]
    """When each token of each stream was read, in time.monotonic's seconds."""
    started: float
    """When the first request was sent, in the same seconds."""
    cpu_s: float = 0.0
    """CPU time that the clients took, in seconds."""
    chunks: int = 0
    """HTTP chunks with tokens, where they are counted."""

    @property
    def tokens(self) -> int:
        return sum(map(len, self.arrivals))

    @property
    def seconds(self) -> float:
        """From the first request's sending to the last token's arrival."""
        return max(times[-1] for times in self.arrivals) - self.started

    @property
    def rate(self) -> float:
        """Tokens per second of all streams, from the first request to the last token."""
        return self.tokens / self.seconds

    @property
    def decode_rate(self) -> float:
        """Tokens per second of the first stream after its first token.

        Tokens read together with the first do not count: nobody knows when they came. If all
        were, it is the rate from the request on.
        """
        times = self.arrivals[0]
        later = sum(when > times[0] for when in times)
        return later / (times[-1] - times[0]) if later else len(times) / self.seconds


def run_streams(
    port: int,
    fields: Mapping[str, Any],
    *,
    streams: int,
    tokens: int,
    gather_s: float = 0.0,
    in_turn: bool = False,
) -> Load:
    """Run `streams` POST /stream at once, each of `tokens` tokens, and see them to their ends.

    `gather_s`: seconds to leave what comes in the sockets before reading it: saves CPU time
    where it does not matter when a token was read. `in_turn`: each request is sent when the one
    before has its first token, so that the server numbers them in their order here.
    Raises BenchError for anything but whole answers.
    """
    whole = {**fields, "num_predict": tokens, "ignore_eos": True}
    answers = [LineAnswer() for _ in range(streams)]
    with Clients() as clients:
        opened = [clients.add(Stream(port, "/stream", whole, answer, tokens)) for answer in answers]
        started, cpu_started = time.monotonic(), time.process_time()
        _run(clients, opened, gather_s, in_turn)
        return Load(
            arrivals=[stream.arrivals() for stream in opened],
            started=started,
            cpu_s=time.process_time() - cpu_started,
            chunks=sum(answer.chunks for answer in answers),
        )


def _run(clients: Clients, streams: Sequence[Stream], gather_s: float, in_turn: bool) -> None:
    unsent = iter(streams)
    latest = next(unsent)
    latest.send()
    while clients.are_reading:
        while (not in_turn or latest.received) and (following := next(unsent, None)) is not None:
            latest = following
            latest.send()
        time.sleep(gather_s)
        clients.read()


def run_in_rows(open_stream: Callable[[T], Stream], rows: Sequence[Sequence[T]]) -> Load:
    """Run some clients at once, each with its row of requests, one after the other.

    A client opens and sends the next stream of its row as soon as the one before is whole.
    Raises BenchError for anything but whole answers.
    """
    rest_of: dict[Stream, Iterator[T]] = {}
    with Clients() as clients:

        def go_on(rest: Iterator[T]) -> None:
            for request in itertools.islice(rest, 1):
                rest_of[clients.start(open_stream(request))] = rest

        started = time.monotonic()
        for row in rows:
            go_on(iter(row))
        while clients.are_reading:
            for ended in clients.read():
                go_on(rest_of[ended])
        return Load([stream.arrivals() for stream in rest_of], started)


def longest_pause(times: Sequence[float], start: float, end: float) -> float:
    """The longest time between two tokens, in seconds, of those that overlap with [start, end].

    Without a token since `start` it is all of that time.
    """
    pairs = itertools.pairwise(times)
    pauses = [later - earlier for earlier, later in pairs if earlier < end and later > start]
    return max(pauses, default=end - start)
