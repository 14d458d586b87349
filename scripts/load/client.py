"""The client: each request on a connection of its own, all of them in one event loop.

Target     a server, its dialect, and what goes into every request
Record     what came of a request: the time of each token, and how it ended
Exchange   a request on its connection: bytes ─▶ HTTP parser ─▶ Body ─▶ Record
Client     sends requests, and sees to it that none waits for ever
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
import urllib.parse
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

import httptools

from scripts.load.bodies.streams import Body, Events, Expected, Usage, refusal
from scripts.load.dialects import LoadDialect
from scripts.load.errors import CONNECTION, CUT, OTHER_FORMAT, TIMEOUT, StreamFailure, status_kind
from scripts.loadtest.plan import Ask

OK = 200
SWEEP_S = 0.25
"""Between two looks for streams that have been silent for too long."""
LONGEST_ERROR = 2000
"""Bytes of an error's body that are kept."""
SLOW_BUFFER = 4096
"""Bytes that the kernel takes for a slow reader."""
PORTS = {"http": 80, "https": 443}


class BadTarget(Exception):
    """There is no such server, or it speaks something else; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what goes into every request."""

    url: str
    dialect: LoadDialect
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the body."""
    may_end: bool = False
    """The model may end its answer."""
    events: Events = "usual"

    def expected(self, ask: Ask) -> Expected:
        """What the answer should be."""
        is_exact = bool(self.dialect.endless) and not self.may_end
        return Expected(ask.tokens, is_exact, self.events, ask.text)

    def request(self, ask: Ask) -> bytes:
        """The request, as it goes over the wire."""
        parts = urllib.parse.urlsplit(self.url)
        key = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        body = json.dumps(self._body(ask), ensure_ascii=False).encode()
        headers = {
            "Host": parts.netloc,
            "Content-Type": "application/json",
            "Accept": self.dialect.media_type,
            **key,
            "Content-Length": len(body),
            "Connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        path = parts.path.rstrip("/") + self.dialect.path
        return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body

    def _body(self, ask: Ask) -> dict[str, Any]:
        model = {} if self.model is None else {"model": self.model}
        endless = {} if self.may_end else self.dialect.endless
        return {**model, **self.dialect.fields(ask), **endless, **self.fields, **ask.fields}


class State(StrEnum):
    """What became of a request."""

    OPEN = "open"
    """It was running when the measurement was ended."""
    WHOLE = "whole"
    LEFT = "left"
    """The client closed it, as the plan says."""
    FAILED = "failed"


@dataclass(slots=True)
class Record:
    """What came of one request. Times are of time.monotonic, in seconds."""

    stream: int
    """Which of the streams it is of."""
    asked: int
    begun: float
    """When it was to begin: waiting for this client or for its connection counts."""
    counts: bool
    """It is no warm-up."""
    arrivals: array[float] = field(default_factory=lambda: array("d"))
    """When each token was read."""
    state: State = State.OPEN
    ended: float = 0.0
    failure: StreamFailure | None = None
    usage: Usage | None = None
    says_retry_after: bool = False


class Exchange(asyncio.Protocol):
    """One request on its connection."""

    def __init__(self, target: Target, ask: Ask, record: Record) -> None:
        self.over = asyncio.get_running_loop().create_future()
        self.last_seen = time.monotonic()
        """When a byte came."""
        self._target = target
        self._ask = ask
        self._record = record
        self._body: Body = target.dialect.body(target.expected(ask))
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._error = b""
        self._media_type = ""
        self._has_length = False
        self._has_head = False
        self._is_complete = False
        self._transport: asyncio.Transport | None = None

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if self._ask.pause_s:
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
        self._transport.write(self._target.request(self._ask))
        if self._ask.leaves_after == 0:
            self._end(State.LEFT)
        elif self._ask.leaves_after_s is not None:
            asyncio.get_running_loop().call_later(self._ask.leaves_after_s, self._leave)

    def data_received(self, data: bytes) -> None:
        if self.over.done():
            return
        self.last_seen = time.monotonic()
        try:
            self._parser.feed_data(data)
            if self._pieces:
                self._take(b"".join(self._pieces))
            if self._is_complete:
                self._finish()
            elif self._ask.pause_s:
                self._pause()
        except httptools.HttpParserError as error:
            self.fail(StreamFailure(OTHER_FORMAT, f"the answer is not HTTP: {error}"))
        except StreamFailure as failure:
            self.fail(failure)

    def connection_lost(self, error: Exception | None) -> None:
        if self.over.done():
            return
        is_closed_to_the_end = self._has_head and not self._has_length and error is None
        try:
            if not is_closed_to_the_end:
                raise self._lost(error)
            self._finish()
        except StreamFailure as failure:
            self.fail(failure)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-type":
                self._media_type = value.decode("latin-1").partition(";")[0].strip().lower()
            case b"content-length" | b"transfer-encoding":
                self._has_length = True
            case b"retry-after":
                self._record.says_retry_after = True

    def on_headers_complete(self) -> None:
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._is_complete = True

    # The rest.

    def fail(self, failure: StreamFailure) -> None:
        """End it so, unless it is over."""
        if not self.over.done():
            self._record.failure = failure
            self._end(State.FAILED)

    def close(self) -> None:
        """Close the connection, whatever has come."""
        if not self.over.done():
            self._end(State.OPEN)

    def _leave(self) -> None:
        if not self.over.done():
            self._end(State.LEFT)

    def _pause(self) -> None:
        """Read nothing for a while."""
        if self._transport is not None and not self.over.done():
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(self._ask.pause_s, self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and not self.over.done():
            self._transport.resume_reading()

    def _take(self, data: bytes) -> None:
        self._pieces.clear()
        if self._parser.get_status_code() != OK:
            self._error = (self._error + data)[:LONGEST_ERROR]
            return
        if self._media_type != self._target.dialect.media_type:
            raise StreamFailure(OTHER_FORMAT, self._other_type())
        body, arrivals = self._body, self._record.arrivals
        body.feed(data)
        new = body.tokens - len(arrivals)
        if new:
            arrivals.extend([self.last_seen] * new)
        leaves_after = self._ask.leaves_after
        if leaves_after is not None and body.tokens >= leaves_after and not body.is_done:
            self._end(State.LEFT)

    def _finish(self) -> None:
        """All of the answer is there."""
        if self.over.done():
            return
        if (status := self._parser.get_status_code()) != OK:
            raise StreamFailure(status_kind(status), refusal(self._error))
        if self._media_type != self._target.dialect.media_type:
            raise StreamFailure(OTHER_FORMAT, self._other_type())
        self._body.end()
        self._end(State.WHOLE)

    def _end(self, state: State) -> None:
        self._record.state = state
        self._record.ended = time.monotonic()
        self._record.usage = self._body.usage
        self.over.set_result(None)
        if self._transport is not None:
            self._transport.abort() if state is State.FAILED else self._transport.close()

    def _other_type(self) -> str:
        expected = self._target.dialect.media_type
        return f"the answer is {self._media_type or 'of no type'}, not {expected}"

    def _lost(self, error: Exception | None) -> StreamFailure:
        why = f": {error}" if error else ""
        if not self._has_head:
            return StreamFailure(CONNECTION, f"closed before an answer{why}")
        return StreamFailure(CUT, f"cut after {self._body.tokens} {self._body.unit}{why}")


class Client:
    """Sends requests to a target. A context; leaving it closes what is open."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        parts = urllib.parse.urlsplit(target.url)
        self.target = target
        self.tokens = 0
        """Of all requests that are over, until now."""
        self.records: list[Record] = []
        self._timeout_s = timeout_s
        self._host = parts.hostname or ""
        self._port = parts.port or PORTS[parts.scheme]
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address = ""
        self._open: dict[Exchange, Record] = {}
        self._sweeper: asyncio.Task[None]

    async def __aenter__(self) -> Client:
        """Raises BadTarget for a host that is not known."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise BadTarget(f"{self._host} is not known: {error.strerror}") from None
        self._address = await self._reachable([str(entry[4][0]) for entry in found])
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sweeper.cancel()
        for exchange in list(self._open):
            exchange.close()

    @property
    def open(self) -> int:
        """Requests that run."""
        return len(self._open)

    def received(self) -> int:
        """Tokens of all requests until now."""
        return self.tokens + sum(len(record.arrivals) for record in self._open.values())

    async def ask(self, ask: Ask, *, stream: int, begun: float, counts: bool) -> Record:
        """Send it, and see it to its end. What goes wrong is in the record."""
        record = Record(stream, ask.tokens, begun, counts)
        self.records.append(record)
        exchange = Exchange(self.target, ask, record)
        self._open[exchange] = record
        try:
            await self._connect(exchange)
            await exchange.over
        finally:
            exchange.close()
            del self._open[exchange]
            self.tokens += len(record.arrivals)
        return record

    async def _connect(self, exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        name = self._host if self._tls else None
        try:
            async with asyncio.timeout(self._timeout_s):
                await loop.create_connection(
                    lambda: exchange, self._address, self._port, ssl=self._tls, server_hostname=name
                )
        except TimeoutError:
            exchange.fail(StreamFailure(TIMEOUT, f"no connection in {self._timeout_s:g} s"))
        except OSError as error:
            exchange.fail(StreamFailure(CONNECTION, f"no connection: {error.strerror or error}"))

    async def _reachable(self, addresses: Sequence[str]) -> str:
        """The first that takes a connection: localhost may be two, of which a server has one."""
        for address in addresses[:-1]:
            try:
                async with asyncio.timeout(self._timeout_s):
                    _, writer = await asyncio.open_connection(address, self._port)
            except (OSError, TimeoutError):
                continue
            writer.close()
            return address
        return addresses[-1]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            silent_since = time.monotonic() - self._timeout_s
            for exchange in list(self._open):
                if exchange.last_seen < silent_since:
                    exchange.fail(StreamFailure(TIMEOUT, f"silent for {self._timeout_s:g} s"))
