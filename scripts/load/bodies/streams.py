"""Bodies of answers, as they come: how many tokens they have, and whether they are whole.

Body           what all of them are asked
PlainLines     POST /stream as text: a token a line
TokenLines     POST /stream as NDJSON
RawText        POST /token_stream: text, in which tokens cannot be told apart
Completion     OpenAI's completions, as server-sent events; Chat: the same of chats
Generated      Ollama's /api/generate; Chatted: its /api/chat

All raise StreamFailure.
"""

from __future__ import annotations

import codecs
import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from scripts.load.errors import CUT, ERROR_EVENT, WRONG, StreamFailure

Events = Literal["exact", "usual", "merged"]
"""How many events a server may write for the tokens that its usage counts: one each; one each
that completes a character; any number up to that."""
UNSHOWN = 3
"""Tokens without an event that any answer may have: one that ends the text, or those of a
character that the end has cut."""
ESCAPE = re.compile(r"\\(.)")
ESCAPED = {"n": "\n", "r": "\r"}
SHOWN_ERROR = 300
"""Characters of what a server said, in a message."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What an answer should be."""

    tokens: int
    """As many as were asked for."""
    is_exact: bool = True
    """The model cannot end the answer before."""
    events: Events = "usual"
    text: str | None = None
    """What it says; None: that is not known."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The server's own count of tokens; None: it does not tell."""

    prompt: int | None
    cached: int | None
    completion: int | None


class Body(ABC):
    """One answer's body."""

    unit = "tokens"

    def __init__(self, expected: Expected) -> None:
        self.expected = expected
        self.tokens = 0
        """Events with text, until now: what times are measured of."""
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.is_done = False
        """The end mark has come."""
        self._said = 0
        """Characters of the text, if it is known, that have come."""

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Take the next bytes, wherever they were cut."""

    @abstractmethod
    def end(self) -> None:
        """Nothing more will come."""

    def says(self, text: str) -> None:
        """The next of its text: is it what is known of it?"""
        whole = self.expected.text
        if whole is None:
            return
        if not whole.startswith(text, self._said):
            due = whole[self._said : self._said + len(text)]
            raise wrong(f"{text[:SHOWN_ERROR]!r} came where {due[:SHOWN_ERROR]!r} was due")
        self._said += len(text)

    def check_text(self) -> None:
        """Is all of its text there, if it is known?"""
        whole = self.expected.text
        if whole is not None and self._said != len(whole):
            raise wrong(f"looks finished after {self._said} of {len(whole)} characters")

    def check_length(self) -> None:
        """Every token is an event here: were all of them sent?"""
        self.check_text()
        tokens, asked = self.tokens, self.expected.tokens
        if tokens > asked or (self.expected.is_exact and tokens < asked):
            raise wrong(f"{tokens} tokens instead of {asked}")


def wrong(what: str) -> StreamFailure:
    return StreamFailure(WRONG, what)


def unescape(line: bytes) -> str:
    """The token of a line of plain text."""
    return ESCAPE.sub(lambda found: ESCAPED.get(found[1], found[1]), line.decode(errors="replace"))


class Lines(Body):
    """What ends in newlines."""

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
        """A whole line, without its end."""

    def end(self) -> None:
        if self._rest:
            raise StreamFailure(CUT, f"ended within a line after {self.tokens} tokens")


class PlainLines(Lines):
    """A token a line; the connection tells whether it is whole."""

    def feed(self, data: bytes) -> None:
        if self.expected.text is not None:
            super().feed(data)
            return
        self.tokens += data.count(b"\n")  # this is all that is to be known of them
        self._rest = data[-1:] if data[-1:] != b"\n" else b""

    def take(self, line: bytes) -> None:
        self.tokens += 1
        self.says(unescape(line))

    def end(self) -> None:
        super().end()
        self.check_length()


class RawText(Body):
    """Text only: what comes at once counts as a piece."""

    unit = "pieces"

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> None:
        self.tokens += bool(data)
        self.says(self._decoder.decode(data))

    def end(self) -> None:
        if not self.tokens:
            raise StreamFailure(CUT, "ended without a text")
        self.check_text()


class JsonLines(Lines):
    """A JSON object a line, the last one marked as such."""

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
        """A line that is no error."""

    def end(self) -> None:
        super().end()
        if not self.is_done:
            raise StreamFailure(CUT, f"ended without its last line after {self.tokens} tokens")


class TokenLines(JsonLines):
    """Our own NDJSON: tokens are numbered from 0, and each has its line."""

    def take_object(self, value: dict[str, Any]) -> None:
        if "done" not in value:
            index = value["index"]
            if index != self.tokens or not isinstance(value["token"], str):
                raise wrong(f"the token after {self.tokens} others has the index {index}")
            self.tokens += 1
            self.says(value["token"])
            return
        self.is_done = True
        self.finish_reason = value["finish_reason"]
        usage = value["usage"]
        counts = (usage[f"{kind}_tokens"] for kind in ("prompt", "cached", "completion"))
        self.usage = Usage(*counts)
        if self.usage.completion != self.tokens:
            raise wrong(f"{self.tokens} tokens came, but usage says {self.usage.completion}")

    def end(self) -> None:
        super().end()
        if self.finish_reason not in ("length", "stop"):
            raise wrong(f"finish_reason is {self.finish_reason!r}")
        self.check_length()


class Texts(Lines):
    """Answers whose events have texts, of a token or more, and a count at the end."""

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        self._held = 0
        """Tokens that may have come without an event: each ended within a character."""

    def add_text(self, text: str) -> None:
        """An event's text; an empty one is no token."""
        if not text:
            return
        if self.finish_reason is not None:
            raise wrong(f"a text after the finish reason: {text[:SHOWN_ERROR]!r}")
        self.tokens += 1
        self.says(text)
        if not text.isascii():
            self._held += len(text.encode()) - len(text)

    def check_usage(self) -> None:
        """The server's count, against the events that came."""
        if self.finish_reason is None:
            raise wrong("no finish reason came")
        counted, asked = self.tokens, self.expected.tokens
        if self.usage is not None and self.usage.completion is not None:
            counted = self.usage.completion
            self._check_events(counted)
            if self.finish_reason == "length" and counted < asked:
                raise wrong(f"usage says {counted} tokens instead of {asked}")
        if counted > asked:
            raise wrong(f"{counted} tokens instead of {asked}")
        self.check_text()

    def _check_events(self, counted: int) -> None:
        """`counted`: tokens by the server's usage."""
        unshown = {"exact": 0, "usual": self._held + UNSHOWN, "merged": counted}
        allowed = unshown[self.expected.events]
        if not counted - allowed <= self.tokens <= counted:
            raise wrong(f"{self.tokens} events came, but usage says {counted} tokens")


class EventStream(Texts):
    """Server-sent events of OpenAI's format, to [DONE]."""

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
            self.add_text(self.text_of(choice))
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if usage := value.get("usage"):
            details = usage.get("prompt_tokens_details") or {}
            prompt, cached = usage.get("prompt_tokens"), details.get("cached_tokens")
            self.usage = Usage(prompt, cached, usage["completion_tokens"])

    @abstractmethod
    def text_of(self, choice: dict[str, Any]) -> str:
        """What a choice of an event adds to the answer."""

    def end(self) -> None:
        super().end()
        if not self.is_done:
            raise StreamFailure(CUT, f"ended without [DONE] after {self.tokens} tokens")
        self.check_usage()


class Completion(EventStream):
    """Of /v1/completions."""

    def text_of(self, choice: dict[str, Any]) -> str:
        return str(choice["text"] or "")


class Chat(EventStream):
    """Of /v1/chat/completions; what a model thinks before its answer counts too."""

    def text_of(self, choice: dict[str, Any]) -> str:
        delta = choice["delta"]
        return (delta.get("content") or "") + (delta.get("reasoning_content") or "")


class OllamaLines(JsonLines, Texts):
    """Ollama's lines, to the one that is done."""

    def take_object(self, value: dict[str, Any]) -> None:
        self.add_text(self.text_of(value))
        if value["done"]:
            self.is_done = True
            self.finish_reason = value["done_reason"]
            self.usage = Usage(value.get("prompt_eval_count"), None, value.get("eval_count"))

    @abstractmethod
    def text_of(self, value: dict[str, Any]) -> str:
        """What a line adds to the answer."""

    def end(self) -> None:
        super().end()
        self.check_usage()


class Generated(OllamaLines):
    """Of /api/generate."""

    def text_of(self, value: dict[str, Any]) -> str:
        return str(value["response"] + (value.get("thinking") or ""))


class Chatted(OllamaLines):
    """Of /api/chat."""

    def text_of(self, value: dict[str, Any]) -> str:
        message = value["message"]
        return str(message["content"] + (message.get("thinking") or ""))


# ---------------------------------------------------------------- reading JSON


class Reading:
    """A context in which a value that has not the format's shape is a StreamFailure."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, value: Any, traceback: Any) -> None:
        if isinstance(value, KeyError | TypeError | AttributeError):
            raise wrong(f"not of this format: {shown(self._data)}") from value


def parse_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        raise wrong(f"not JSON: {shown(data)}") from None
    if not isinstance(value, dict):
        raise wrong(f"not an object: {shown(data)}")
    return value


def error_event(error: Any) -> StreamFailure:
    return StreamFailure(ERROR_EVENT, error_message(error))


def error_message(error: Any) -> str:
    """Of an error as any of the formats has it: a text, or an object with a message."""
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:SHOWN_ERROR]


def refusal(body: bytes) -> str:
    """What a server said that refused a request, in its format or any other."""
    text = body.decode(errors="replace").strip()
    try:
        return error_message(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text[:SHOWN_ERROR] or "without a reason"


def shown(data: bytes) -> str:
    """Some of it, on a line."""
    return repr(data.decode(errors="replace")[:SHOWN_ERROR])
