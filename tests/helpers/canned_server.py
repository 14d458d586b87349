"""A server on a raw socket whose answers are given as bytes, with waits between them."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

HOST = "127.0.0.1"

Parts = bytes | Sequence[bytes | float]
"""What a server sends, and seconds that it waits in between. After b"" it keeps the connection open
until the client closes it."""


class CannedServer:
    """Answers one request after another. `answer` gets the number of the request, from 0."""

    def __init__(self, answer: Callable[[int], Parts]) -> None:
        self.requests: list[bytes] = []
        self.asked = threading.Event()
        """Set by the first request."""
        self._answer = answer
        self._listener = socket.create_server((HOST, 0))
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionError):  # the client may disconnect
                self.requests.append(read_request(connection))
                self.asked.set()
                answer = self._answer(len(self.requests) - 1)
                for part in [answer] if isinstance(answer, bytes) else answer:
                    if isinstance(part, bytes):
                        connection.sendall(part)
                    else:
                        time.sleep(part)
                if answer == b"":
                    connection.recv(1)


def read_request(connection: socket.socket) -> bytes:
    """A request with a Content-Length, to its end. ConnectionError: the client has closed it."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
    while len(body) < length:
        body += receive(connection)
    return head + b"\r\n\r\n" + body


def receive(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise ConnectionError("the client has closed the connection")
    return data


@contextmanager
def canned_server(answer: Callable[[int], Parts]) -> Iterator[CannedServer]:
    server = CannedServer(answer)
    try:
        yield server
    finally:
        server.close()


def http(body: bytes, status: str = "200 OK", media_type: str = "application/x-ndjson") -> bytes:
    """A complete chunked answer with this body, in one chunk."""
    return head(status, media_type) + (chunk(body) if body else b"") + LAST_CHUNK


def head(status: str = "200 OK", media_type: str = "application/x-ndjson") -> bytes:
    """The head of a chunked answer."""
    lines = f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return lines.encode()


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


LAST_CHUNK = b"0\r\n\r\n"
