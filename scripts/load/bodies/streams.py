"""Answers that are streamed: their tokens are counted as they arrive.

PlainLines     POST /stream as text: one line for each token
TokenLines     POST /stream as NDJSON
RawText        POST /token_stream: text, in which tokens cannot be told apart
Completion     OpenAI's completions, as server-sent events; Chat: OpenAI's chat completions
Generated      Ollama's /api/generate; Chatted: its /api/chat
"""

from __future__ import annotations

import codecs
import re
from abc import abstractmethod
from typing import Any

from scripts.load.bodies.body import Body, Expected, Usage
from scripts.load.bodies.reading import (
    SHOWN_LENGTH,
    Reading,
    error_event,
    parse_object,
    shown,
    wrong,
)
from scripts.load.errors import CUT, StreamFailure

MOST_UNSHOWN_TOKENS = 3
"""Tokens without an event that any answer may have: the one that ends the text, or those of a
character that the end of the answer cuts."""
ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|(.))")
ESCAPED = {"n": "\n", "r": "\r"}


def unescape(line: bytes) -> str:
    """The token that a line of plain text stands for."""
    return ESCAPE.sub(
        lambda found: chr(int(found[1], 16)) if found[1] else ESCAPED.get(found[2], found[2]),
        line.decode(errors="replace"),
    )


class Lines(Body):
    """A format whose units end in newlines."""

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        self._rest = b""

    def feed(self, data: bytes) -> None:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self.take(line)

    @abstractmethod
    def take(self, line: bytes) -> None:
        """Read a complete line, which comes without its newline."""

    def end(self) -> None:
        if self._rest:
            raise StreamFailure(CUT, f"ended within a line after {self.tokens} tokens")


class PlainLines(Lines):
    """One line for each token. Only HTTP tells whether the answer is complete."""

    def feed(self, data: bytes) -> None:
        if self.expected.text is not None or self.expected.keeps_text:
            super().feed(data)
            return
        self.tokens += data.count(b"\n")  # the number of lines is all that can be checked
        self._rest = data[-1:] if data[-1:] != b"\n" else b""

    def take(self, line: bytes) -> None:
        self.tokens += 1
        self.take_text(unescape(line))

    def end(self) -> None:
        super().end()
        self.check_length()


class RawText(Body):
    """Text only: each read counts as one piece."""

    unit = "pieces"

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> None:
        self.tokens += bool(data)
        self.take_text(self._decoder.decode(data))

    def end(self) -> None:
        if not self.tokens:
            raise StreamFailure(CUT, "ended without a text")
        self.check_text()


class JsonLines(Lines):
    """One JSON object a line; the last one is marked as such."""

    def take(self, line: bytes) -> None:
        if self.is_done:
            raise wrong(f"a line after the last one: {shown(line)}")
        value = parse_object(line)
        if value.get("error"):
            raise error_event(value["error"])
        with Reading(line):
            self.take_object(value)

    @abstractmethod
    def take_object(self, value: dict[str, Any]) -> None:
        """Read a line that is not an error."""

    def end(self) -> None:
        super().end()
        if not self.is_done:
            raise StreamFailure(CUT, f"ended without its last line after {self.tokens} tokens")


class TokenLines(JsonLines):
    """The server's own NDJSON: one line for each token, numbered from 0."""

    def take_object(self, value: dict[str, Any]) -> None:
        if "done" not in value:
            index = value["index"]
            if index != self.tokens or not isinstance(value["token"], str):
                raise wrong(f"the token after {self.tokens} others has the index {index}")
            self.tokens += 1
            self.take_text(value["token"])
            return
        self.is_done = True
        self.finish_reason = value["finish_reason"]
        usage = value["usage"]
        counts = (usage[f"{kind}_tokens"] for kind in ("prompt", "cached", "completion"))
        self.usage = Usage(*counts)
        if self.usage.completion != self.tokens:
            raise wrong(f"{self.tokens} tokens arrived, but usage says {self.usage.completion}")

    def end(self) -> None:
        super().end()
        if self.finish_reason not in ("length", "stop"):
            raise wrong(f"finish_reason is {self.finish_reason!r}")
        self.check_length()


class Texts(Lines):
    """A format whose events have texts of one or more tokens, and a token count at the end."""

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        self._within_character = 0
        """Tokens that may have arrived without an event, because each ended within a character."""

    def take_event(self, text: str) -> None:
        """Read an event's text. An event with an empty text is not a token."""
        if not text:
            return
        if self.finish_reason is not None:
            raise wrong(f"a text after the finish reason: {text[:SHOWN_LENGTH]!r}")
        self.tokens += 1
        self.take_text(text)
        if not text.isascii():
            self._within_character += len(text.encode()) - len(text)

    def check_usage(self) -> None:
        """Compare the server's token count with the events, and with what was asked for."""
        if self.finish_reason is None:
            raise wrong("no finish reason arrived")
        counted, asked = self.tokens, self.expected.tokens
        if self.usage is not None and self.usage.completion is not None:
            counted = self.usage.completion
            self._check_events(counted)
            if self.finish_reason == "length" and counted < asked:
                raise wrong(f"usage says {counted} tokens instead of {asked}")
        elif self.expected.needs_usage:
            raise wrong(f"{self.tokens} tokens arrived without a usage")
        if counted > asked:
            raise wrong(f"{counted} tokens instead of {asked}")
        self.check_text()

    def _check_events(self, counted: int) -> None:
        """`counted`: tokens by the server's usage."""
        unshown = {
            "exact": 0,
            "usual": self._within_character + MOST_UNSHOWN_TOKENS,
            "merged": counted,
        }
        allowed = unshown[self.expected.events]
        if not counted - allowed <= self.tokens <= counted:
            raise wrong(f"{self.tokens} events arrived, but usage says {counted} tokens")


class EventStream(Texts):
    """Server-sent events of OpenAI's format. The last one is [DONE]."""

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        self._id: str | None = None

    def take(self, line: bytes) -> None:
        if not line.startswith(b"data:"):  # a comment, the end of an event, or its name
            return
        data = line[len(b"data:") :].strip()
        if self.is_done:
            raise wrong(f"an event after [DONE]: {shown(data)}")
        if data == b"[DONE]":
            self.is_done = True
            return
        value = parse_object(data)
        if value.get("error"):
            raise error_event(value["error"])
        with Reading(data):
            self._take_chunk(value)

    def _take_chunk(self, value: dict[str, Any]) -> None:
        if self._id is None:
            self._id = value.get("id")
        elif value.get("id") != self._id:
            raise wrong(f"an event of another answer: {value.get('id')!r} in {self._id!r}")
        for choice in value["choices"]:
            self.take_event(self.text_of(choice))
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if usage := value.get("usage"):
            details = usage.get("prompt_tokens_details") or {}
            timings = value.get("timings") or {}  # llama-server's
            cached = details.get("cached_tokens", timings.get("cache_n"))
            self.usage = Usage(usage.get("prompt_tokens"), cached, usage["completion_tokens"])

    @abstractmethod
    def text_of(self, choice: dict[str, Any]) -> str:
        """The text that a choice of an event adds to the answer."""

    def end(self) -> None:
        super().end()
        if not self.is_done:
            raise StreamFailure(CUT, f"ended without [DONE] after {self.tokens} tokens")
        self.check_usage()


class Completion(EventStream):
    """Events of /v1/completions."""

    def text_of(self, choice: dict[str, Any]) -> str:
        return str(choice["text"] or "")


class Chat(EventStream):
    """Events of /v1/chat/completions. Reasoning before the answer counts as text too."""

    def text_of(self, choice: dict[str, Any]) -> str:
        delta = choice["delta"]
        return (delta.get("content") or "") + (delta.get("reasoning_content") or "")


class OllamaLines(JsonLines, Texts):
    """Ollama's lines. The last one has `done`."""

    def take_object(self, value: dict[str, Any]) -> None:
        self.take_event(self.text_of(value))
        if value["done"]:
            self.is_done = True
            self.finish_reason = value["done_reason"]
            self.usage = Usage(value.get("prompt_eval_count"), None, value.get("eval_count"))

    @abstractmethod
    def text_of(self, value: dict[str, Any]) -> str:
        """The text that a line adds to the answer."""

    def end(self) -> None:
        super().end()
        self.check_usage()


class Generated(OllamaLines):
    """Lines of /api/generate."""

    def text_of(self, value: dict[str, Any]) -> str:
        return str(value["response"] + (value.get("thinking") or ""))


class Chatted(OllamaLines):
    """Lines of /api/chat."""

    def text_of(self, value: dict[str, Any]) -> str:
        message = value["message"]
        return str(message["content"] + (message.get("thinking") or ""))
