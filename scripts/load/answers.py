"""Answers as they come off a socket: counting their tokens, and whether they are whole."""

from __future__ import annotations

from typing import Protocol

import httptools

from scripts.load.bodies.streams import Completion, Expected
from scripts.load.errors import BenchError

HEAD_SIZE = 1000
LAST_CHUNK = b"\r\n0\r\n\r\n"
OK = 200


class Answer(Protocol):
    """An answer to one request."""

    @property
    def tokens(self) -> int:
        """How many have come."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes, wherever they were cut. BenchError for what cannot be one."""

    def end(self, asked: int) -> None:
        """No more will come. BenchError unless it is whole, with as many tokens as were asked."""


class LineCounter:
    """Counts the lines of a plain text answer as it comes off the socket, chunk framing and all.

    HTTP's own lines end in \\r\\n; a token's line ends in \\n alone, and holds no \\r, which is
    escaped. So tokens are the \\n that follow no \\r, wherever reads cut the bytes.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.http_lines = 0
        self._after_return = False

    def feed(self, data: bytes) -> None:
        http_lines = data.count(b"\r\n") + (self._after_return and data.startswith(b"\n"))
        self.http_lines += http_lines
        self.tokens += data.count(b"\n") - http_lines
        if data:
            self._after_return = data.endswith(b"\r")


class LineAnswer:
    """Of POST /stream: a token a line. Its chunks are not parsed, only counted: it is cheap."""

    def __init__(self) -> None:
        self._counter = LineCounter()
        self._head = self._tail = b""

    @property
    def tokens(self) -> int:
        return self._counter.tokens

    @property
    def chunks(self) -> int:
        """HTTP chunks with tokens in a whole answer; a chunk is what the server sent at once."""
        head, _, _ = self._head.partition(b"\r\n\r\n")
        head_lines = head.count(b"\r\n") + 2
        return (self._counter.http_lines - head_lines) // 2 - 1  # the last one is empty

    def feed(self, data: bytes) -> None:
        self._counter.feed(data)
        if len(self._head) < HEAD_SIZE:
            self._head += data[:HEAD_SIZE]
        self._tail = (self._tail + data)[-len(LAST_CHUNK) :]

    def end(self, asked: int) -> None:
        if not self._head.startswith(b"HTTP/1.1 200 "):
            raise refused(self._head)
        if self._tail != LAST_CHUNK:
            raise cut(self.tokens, asked)
        check_count(self.tokens, asked)


class EventAnswer:
    """Of an OpenAI endpoint: server-sent events, one with a text for each token.

    It must end with [DONE] and HTTP's last chunk, and the server's own count, its `usage`,
    must be the same. A server that holds back the bytes of half a character has fewer events
    than tokens, which is an error here: the models that are measured write whole characters.
    """

    def __init__(self) -> None:
        self._head = b""
        self._body = Completion(Expected(tokens=0))
        self._is_whole = False
        self._parser = httptools.HttpResponseParser(self)

    @property
    def tokens(self) -> int:
        return self._body.tokens

    def feed(self, data: bytes) -> None:
        if len(self._head) < HEAD_SIZE:
            self._head += data[:HEAD_SIZE]
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise BenchError(f"an event is none of a completion: {error.__context__}") from None
        except httptools.HttpParserError as error:
            raise BenchError(f"an answer is not HTTP: {error}") from None

    def end(self, asked: int) -> None:
        if not self._head or self._parser.get_status_code() != OK:
            raise refused(self._head)
        if not (self._body.is_done and self._is_whole):
            raise cut(self.tokens, asked)
        check_count(self.tokens, asked)
        usage = self._body.usage and self._body.usage.completion
        if usage != self.tokens:
            raise BenchError(f"a stream had {self.tokens} tokens, but its usage says {usage}")

    # What the parser calls.

    def on_body(self, body: bytes) -> None:
        self._body.feed(body)

    def on_message_complete(self) -> None:
        self._is_whole = True


def refused(head: bytes) -> BenchError:
    answer = head.decode(errors="replace") or "nothing"
    return BenchError(f"the server refused a stream; it answered {answer}")


def cut(tokens: int, asked: int) -> BenchError:
    return BenchError(f"a stream was cut after {tokens} of {asked} tokens")


def check_count(tokens: int, asked: int) -> None:
    if tokens != asked:
        raise BenchError(f"a stream had {tokens} tokens instead of {asked}")
