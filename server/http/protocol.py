"""uvicorn's HTTP protocol, with limits for a request's head and for the time until it has arrived.

    connection ─▶ head, within HEAD_S and MAX_HEAD_BYTES ─▶ body, within `request_s` ─▶ the app

httptools rejects requests that could be smuggled past a proxy (two lengths, a length with chunked
encoding, a bare line feed). It limits no head and requires no Host header, and uvicorn has no
timeout for slow requests.
"""

from __future__ import annotations

import asyncio
import http
import logging
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from server.http.send_deadline import SendDeadline

MAX_HEAD_BYTES = 64 * 1024
"""Maximum bytes of a request line with its headers."""
MAX_HEADERS = 128
LARGE_HEAD = f"the request's headers are over {MAX_HEAD_BYTES} bytes"
HEAD_S = 10.0
"""Seconds from the connection, or from a request's first byte, to the end of its headers."""

logger = logging.getLogger("tokenflume.http")


class Refused(Exception):
    """The request is refused; the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StrictProtocol(SendDeadline):
    """`request_s`: seconds from the end of a request's headers to its last byte. For the rest, see
    SendDeadline."""

    def __init__(self, *args: Any, request_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._request_s = request_s
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_head = True
        self._head_bytes = 0
        self._unparsed_bytes = 0  # received of a head that is not complete, parsed or not
        self._refusal: Refused | None = None
        self._cycles: list[RequestResponseCycle] = []

    # ------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._end_answers()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self._end_answers()  # the event loop closes the connection now

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._timer is None and self._is_in_head:
            self._start_timer(HEAD_S)
        try:
            self._unparsed_bytes += len(data)
            self.parser.feed_data(data)
            if self._unparsed_bytes > MAX_HEAD_BYTES and self._is_in_head:
                raise Refused(431, LARGE_HEAD)
        except httptools.HttpParserUpgrade:
            self._refuse(Refused(400, "this server does not support protocol upgrades"))
        except httptools.HttpParserCallbackError:
            self._refuse(self._refusal or Refused(400, "the request is not valid HTTP"))
        except httptools.HttpParserError:
            self._refuse(Refused(400, "the request is not valid HTTP"))
        except Refused as refusal:
            self._refuse(refusal)

    # ------------------------------------------------------------ callbacks of the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._checked(partial(self._count_head, len(url)))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._checked(partial(self._check_header, len(name) + len(value)))

    def on_headers_complete(self) -> None:
        self._checked(self._check_host)
        self._is_in_head = False
        self._unparsed_bytes = 0
        self._start_timer(self._request_s)
        super().on_headers_complete()
        self._cycles = [*self._unanswered(), self.cycle]

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._is_in_head = True
        self._unparsed_bytes = 0
        super().on_message_complete()

    # ------------------------------------------------------------ limits

    def _checked(self, check: Any) -> None:
        """Run a check in a callback of the parser, which replaces exceptions by its own."""
        try:
            check()
        except Refused as refusal:
            self._refusal = refusal
            raise

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise Refused(431, LARGE_HEAD)

    def _check_header(self, size: int) -> None:
        self._count_head(size)
        if len(self.headers) > MAX_HEADERS:
            raise Refused(431, f"the request has more than {MAX_HEADERS} headers")

    def _check_host(self) -> None:
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() != "1.0"):
            raise Refused(400, "the request must have one Host header")

    # ------------------------------------------------------------ time

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._on_timeout, seconds)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self, seconds: float) -> None:
        self._refuse(Refused(408, f"the request did not arrive within {seconds:g} s"))

    def _refuse(self, refusal: Refused) -> None:
        """Send the refusal, unless an answer has begun, and close the connection."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        logger.info("refused a request: %s", refusal)
        if not any(cycle.response_started for cycle in self._unanswered()):
            self.transport.write(_answer(refusal))
        self._end_answers()
        self.transport.close()

    # ------------------------------------------------------------ answers

    def _unanswered(self) -> list[RequestResponseCycle]:
        """The requests without a complete answer: several with pipelining. uvicorn informs only
        the last one that the connection has ended."""
        return [cycle for cycle in self._cycles if not cycle.response_complete]

    def _end_answers(self) -> None:
        """Cancel the requests: nobody reads their answers."""
        for cycle in self._unanswered():
            cycle.disconnected = True
            cycle.message_event.set()


def _answer(refusal: Refused) -> bytes:
    body = b'{"error":{"code":"bad_http","message":"%s"}}\n' % str(refusal).encode()
    reason = http.HTTPStatus(refusal.status).phrase.encode()
    return b"\r\n".join(
        (
            b"HTTP/1.1 %d %s" % (refusal.status, reason),
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
            b"",
            body,
        )
    )
