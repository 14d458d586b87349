"""One request on a connection of its own.

bytes ─▶ HTTP parser ─▶ Body ─▶ Record
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import cast

import httptools

from scripts.load.bodies.body import Body
from scripts.load.bodies.reading import refusal
from scripts.load.errors import CONNECTION, CUT, OTHER_FORMAT, StreamFailure, status_kind
from scripts.load.record import Record, State
from scripts.load.request import Request
from scripts.load.target import Target

OK = 200
LONGEST_ERROR_BYTES = 2000
"""Part of an error's body that is kept."""


class Exchange(asyncio.Protocol):
    """A request and its answer. The record has the outcome once `over` is done."""

    def __init__(self, target: Target, request: Request, record: Record) -> None:
        self.record = record
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last_seen = time.monotonic()
        """When the request was sent, or when the last byte was received."""
        self._target = target
        self._request = request
        self._body: Body = target.dialect.body(target.expected(request))
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._error = b""
        self._media_type = ""
        self._has_length = False
        self._has_head = False
        self._is_complete = False
        self._transport: asyncio.Transport | None = None
        self._awaited_tokens = sys.maxsize
        self._reached: asyncio.Future[None] | None = None

    def send(self) -> None:
        """Send the request; does nothing if the connection could not be made."""
        if self.over.done() or self._transport is None:
            return
        self.last_seen = time.monotonic()
        self._transport.write(self._target.encode(self._request))
        if self._request.cancel_after_tokens == 0:
            self._end(State.CANCELLED)
        elif self._request.cancel_after_s is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self._request.cancel_after_s, self._end, State.CANCELLED)

    async def until_tokens(self, tokens: int) -> None:
        """Wait until that number of tokens has arrived, or until the request is over."""
        if self._body.tokens >= tokens:
            return
        self._awaited_tokens = tokens
        self._reached = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._reached, self.over), return_when=asyncio.FIRST_COMPLETED)

    def fail(self, failure: StreamFailure) -> None:
        """End the request with this failure, unless it is over."""
        if not self.over.done():
            self.record.failure = failure
            self._end(State.FAILED)

    def close(self) -> None:
        """Close the connection, if the request is not over."""
        self._end(State.OPEN)

    # The event loop calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        if self._request.receive_buffer_bytes is not None:
            connection = transport.get_extra_info("socket")
            size = self._request.receive_buffer_bytes
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

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
            elif self._request.read_pause_s:
                self._pause()
        except httptools.HttpParserError as error:
            self.fail(StreamFailure(OTHER_FORMAT, f"the answer is not HTTP: {error}"))
        except StreamFailure as failure:
            self.fail(failure)

    def connection_lost(self, error: Exception | None) -> None:
        if self.over.done():
            return
        ends_at_close = self._has_head and not self._has_length and error is None
        try:
            if not ends_at_close:
                raise self._lost(error)
            self._finish()
        except StreamFailure as failure:
            self.fail(failure)

    # The HTTP parser calls these.

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-type":
                self._media_type = value.decode("latin-1").partition(";")[0].strip().lower()
            case b"content-length" | b"transfer-encoding":
                self._has_length = True
            case b"retry-after":
                self.record.has_retry_after = True

    def on_headers_complete(self) -> None:
        self._has_head = True

    def on_chunk_header(self) -> None:
        self.record.chunks += 1

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._is_complete = True

    # What arrives.

    def _take(self, data: bytes) -> None:
        self._pieces.clear()
        if self._parser.get_status_code() != OK:
            self._error = (self._error + data)[:LONGEST_ERROR_BYTES]
            return
        self._check_media_type()
        body, arrivals = self._body, self.record.arrivals
        body.feed(data)
        new = body.tokens - len(arrivals)
        if new:
            arrivals.extend([self.last_seen] * new)
        if body.tokens >= self._awaited_tokens and self._reached is not None:
            self._awaited_tokens = sys.maxsize
            self._reached.set_result(None)
        cancel_after = self._request.cancel_after_tokens
        if cancel_after is not None and body.tokens >= cancel_after and not body.is_done:
            self._end(State.CANCELLED)

    def _pause(self) -> None:
        """Stop reading for a while."""
        if self._transport is not None and not self.over.done():
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(self._request.read_pause_s, self._resume)

    def _resume(self) -> None:
        if self._transport is not None and not self.over.done():
            self._transport.resume_reading()

    def _finish(self) -> None:
        """Check the answer, which has arrived completely."""
        if self.over.done():
            return
        if (status := self._parser.get_status_code()) != OK:
            raise StreamFailure(status_kind(status), refusal(self._error))
        self._check_media_type()
        self._body.end()
        self._end(State.COMPLETED)

    def _end(self, state: State) -> None:
        if self.over.done():
            return
        self.record.state = state
        self.record.ended = time.monotonic()
        self.record.usage = self._body.usage
        self.record.text = self._body.text
        self.over.set_result(None)
        if self._transport is not None:
            self._transport.abort() if state is State.FAILED else self._transport.close()

    def _check_media_type(self) -> None:
        expected = self._target.dialect.media_type
        if self._media_type != expected:
            found = self._media_type or "of no type"
            raise StreamFailure(OTHER_FORMAT, f"the answer is {found}, not {expected}")

    def _lost(self, error: Exception | None) -> StreamFailure:
        why = f": {error}" if error else ""
        if not self._has_head:
            return StreamFailure(CONNECTION, f"closed before an answer{why}")
        return StreamFailure(CUT, f"cut after {self._body.tokens} {self._body.unit}{why}")
