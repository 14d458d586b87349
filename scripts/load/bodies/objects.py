"""Answers that are one JSON object: texts that are not streamed, vectors and tokens.

The expected text of a vector, or of a list of tokens, is the prompt that was sent.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from scripts.load.bodies.body import Body, Expected, Usage
from scripts.load.bodies.reading import Reading, parse_object, wrong
from scripts.load.errors import CUT, StreamFailure
from workers.engines.echo import EMBEDDING

TOLERANCE = 1e-4
"""Largest accepted error of a vector's length, and distance from the expected vector."""


class ObjectBody(Body):
    """One JSON object."""

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
        """Check the object."""


class TextObject(ObjectBody):
    """A text and its token counts."""

    def take_object(self, value: dict[str, Any]) -> None:
        self.finish_reason, self.usage = self.counts_of(value)
        self.take_text(self.text_of(value))
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
        """The finish reason and the token counts."""


class CompletionObject(TextObject):
    """An answer of /v1/completions."""

    def text_of(self, value: dict[str, Any]) -> str:
        return str(value["choices"][0]["text"])

    def counts_of(self, value: dict[str, Any]) -> tuple[str, Usage]:
        usage = value["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        counts = Usage(usage["prompt_tokens"], cached, usage["completion_tokens"])
        return value["choices"][0]["finish_reason"], counts


class ChatObject(CompletionObject):
    """An answer of /v1/chat/completions."""

    def text_of(self, value: dict[str, Any]) -> str:
        return str(value["choices"][0]["message"]["content"])


class GeneratedObject(TextObject):
    """An answer of /api/generate."""

    def text_of(self, value: dict[str, Any]) -> str:
        return str(value["response"])

    def counts_of(self, value: dict[str, Any]) -> tuple[str, Usage]:
        if not value["done"]:
            raise wrong("the only object is not marked as the last one")
        return value["done_reason"], Usage(value["prompt_eval_count"], None, value["eval_count"])


class ChattedObject(GeneratedObject):
    """An answer of /api/chat."""

    def text_of(self, value: dict[str, Any]) -> str:
        return str(value["message"]["content"])


class Vector(ObjectBody):
    """An answer of /v1/embeddings, as numbers."""

    def take_object(self, value: dict[str, Any]) -> None:
        vector = self.vector_of(value)
        if not math.isclose(math.hypot(*vector), 1.0, abs_tol=TOLERANCE):
            raise wrong(f"a vector of the length {math.hypot(*vector):g}")
        if self.expected.text is not None:
            due = echo_vector(self.expected.text)
            if len(due) != len(vector) or math.dist(due, vector) > TOLERANCE:
                raise wrong("the vector of another text")

    def vector_of(self, value: dict[str, Any]) -> list[float]:
        return list(map(float, value["data"][0]["embedding"]))


class OllamaVector(Vector):
    """An answer of /api/embed."""

    def vector_of(self, value: dict[str, Any]) -> list[float]:
        return list(map(float, value["embeddings"][0]))


class TokenIds(ObjectBody):
    """An answer of /tokenize."""

    def take_object(self, value: dict[str, Any]) -> None:
        tokens = value["tokens"]
        if not tokens:
            raise wrong("a text without tokens")
        if self.expected.text is not None and tokens != list(self.expected.text.encode()):
            raise wrong("the tokens of another text")


def echo_vector(text: str) -> list[float]:
    """The echo engine's vector of a text: how often each byte occurs, scaled to length 1."""
    counts = [0] * EMBEDDING
    for byte in text.encode():
        counts[byte % EMBEDDING] += 1
    length = math.hypot(*counts)
    return [count / length for count in counts]
