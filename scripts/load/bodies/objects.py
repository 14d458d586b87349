"""Answers that come at once, as one JSON object; vectors and tokens too.

A vector's and a list of tokens' known text is the prompt that they are of.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from scripts.load.bodies.streams import Body, Expected, Reading, Usage, parse_object, wrong
from scripts.load.errors import CUT, StreamFailure
from workers.engines.echo import EMBEDDING

CLOSE = 1e-4
"""Of a number of a vector, and of its length."""


class Whole(Body):
    """A JSON object."""

    unit = "bytes"

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data

    def end(self) -> None:
        if not self._data:
            raise StreamFailure(CUT, "ended without an answer")
        value = parse_object(bytes(self._data))
        with Reading(bytes(self._data)):
            self.take_object(value)

    @abstractmethod
    def take_object(self, value: dict[str, Any]) -> None:
        """The answer."""


class WholeText(Whole):
    """A text and its counts."""

    def take_object(self, value: dict[str, Any]) -> None:
        self.finish_reason, self.usage = self.counts_of(value)
        self.says(self.text_of(value))
        self.check_text()
        if self.finish_reason not in ("length", "stop"):
            raise wrong(f"the finish reason is {self.finish_reason!r}")
        counted, asked = self.usage.completion or 0, self.expected.tokens
        if counted > asked or (self.finish_reason == "length" and counted < asked):
            raise wrong(f"usage says {counted} tokens instead of {asked}")

    @abstractmethod
    def text_of(self, value: dict[str, Any]) -> str:
        """The answer's text."""

    @abstractmethod
    def counts_of(self, value: dict[str, Any]) -> tuple[str, Usage]:
        """Why it ended, and the counts."""


class WholeCompletion(WholeText):
    """Of /v1/completions."""

    def text_of(self, value: dict[str, Any]) -> str:
        return str(value["choices"][0]["text"])

    def counts_of(self, value: dict[str, Any]) -> tuple[str, Usage]:
        usage = value["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        counts = Usage(usage["prompt_tokens"], cached, usage["completion_tokens"])
        return value["choices"][0]["finish_reason"], counts


class WholeChat(WholeCompletion):
    """Of /v1/chat/completions."""

    def text_of(self, value: dict[str, Any]) -> str:
        return str(value["choices"][0]["message"]["content"])


class WholeGenerated(WholeText):
    """Of /api/generate."""

    def text_of(self, value: dict[str, Any]) -> str:
        return str(value["response"])

    def counts_of(self, value: dict[str, Any]) -> tuple[str, Usage]:
        if not value["done"]:
            raise wrong("the only object is not the last one")
        return value["done_reason"], Usage(value["prompt_eval_count"], None, value["eval_count"])


class WholeChatted(WholeGenerated):
    """Of /api/chat."""

    def text_of(self, value: dict[str, Any]) -> str:
        return str(value["message"]["content"])


class Vector(Whole):
    """Of /v1/embeddings, as numbers."""

    def take_object(self, value: dict[str, Any]) -> None:
        vector = self.vector_of(value)
        if not math.isclose(math.hypot(*vector), 1.0, abs_tol=CLOSE):
            raise wrong(f"a vector of the length {math.hypot(*vector):g}")
        if self.expected.text is not None:
            due = echo_vector(self.expected.text)
            if len(due) != len(vector) or math.dist(due, vector) > CLOSE:
                raise wrong("the vector of another text")

    def vector_of(self, value: dict[str, Any]) -> list[float]:
        return list(map(float, value["data"][0]["embedding"]))


class OllamaVector(Vector):
    """Of /api/embed."""

    def vector_of(self, value: dict[str, Any]) -> list[float]:
        return list(map(float, value["embeddings"][0]))


class TokenIds(Whole):
    """Of /tokenize."""

    def take_object(self, value: dict[str, Any]) -> None:
        tokens = value["tokens"]
        if not tokens:
            raise wrong("a text without tokens")
        if self.expected.text is not None and tokens != list(self.expected.text.encode()):
            raise wrong("the tokens of another text")


def echo_vector(text: str) -> list[float]:
    """What the echo engine makes of a text: how often each byte comes, at length 1."""
    counts = [0] * EMBEDDING
    for byte in text.encode():
        counts[byte % EMBEDDING] += 1
    length = math.hypot(*counts)
    return [count / length for count in counts]
