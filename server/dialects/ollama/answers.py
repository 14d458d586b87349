"""Ollama's answers: a JSON object for each piece of an answer, one in a line, or one for all of it.

tokens ─▶ TextReader ─▶ Part ─▶ a line, or a part of the one object
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from server.dialects.ollama.parts import Part, TextReader, joined
from server.generation.answer import Renderer
from shared.errors import ServingError
from shared.json_text import json_line
from shared.messages import Finished, Token
from shared.values import Logprobs

NDJSON = "application/x-ndjson"
IMPOSSIBLE = -9999.0
"""The log probability of impossible tokens: JSON has no -Infinity, and clients expect a number."""


@dataclass(frozen=True, slots=True)
class Head:
    """What all objects of an answer have in common. Times are seconds of time.monotonic."""

    model: str
    """The model's name."""
    asked: float
    """When the request had been read."""
    ready: float
    """When the model was loaded."""

    def line(self, **fields: Any) -> dict[str, Any]:
        """An object with the common fields and these."""
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return {"model": self.model, "created_at": now, **fields}

    def durations(self) -> dict[str, int]:
        """The total and the load time in nanoseconds, as fields."""
        return {
            "total_duration": nanoseconds(time.monotonic() - self.asked),
            "load_duration": nanoseconds(self.ready - self.asked),
        }


Shape = Callable[[Part], dict[str, Any]]
"""Converts a part to the fields of an endpoint."""


def generated(part: Part) -> dict[str, Any]:
    """The fields of a part in /api/generate."""
    return {"response": part.text, **_thinking(part)}


def message(part: Part) -> dict[str, Any]:
    """The fields of a part in /api/chat."""
    calls = {"tool_calls": part.calls} if part.calls else {}
    return {"message": {"role": "assistant", "content": part.text, **_thinking(part), **calls}}


def _thinking(part: Part) -> dict[str, str]:
    return {"thinking": part.thinking} if part.thinking else {}


class TextRenderer(Renderer):
    """The answer of one generation."""

    def __init__(self, head: Head, shape: Shape, reader: TextReader, *, is_stream: bool) -> None:
        self.is_stream = is_stream
        self.media_type = NDJSON if is_stream else Renderer.media_type
        self._head = head
        self._shape = shape
        self._reader = reader
        self._held: list[Part] = []

    def tokens(self, index: int, tokens: Sequence[Token]) -> bytes:
        return b"".join([self._part(self._read(token)) for token in tokens])

    def finished(self, index: int, event: Finished, queued_s: float) -> bytes:
        rest = self._part(self._reader.finish())
        usage, timings = event.usage, event.timings
        end = {
            "done": True,
            "done_reason": event.reason,
            **self._head.durations(),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": nanoseconds(timings.prefill_s),
            "eval_count": usage.completion_tokens,
            "eval_duration": nanoseconds(timings.decode_s),
        }
        return rest + json_line(self._head.line(**self._look(joined(self._held)), **end))

    def failed(self, error: ServingError) -> bytes | None:
        return error_body(error)

    def _read(self, token: Token) -> Part:
        part = self._reader.feed(token.text)
        if token.logprobs is not None:
            part = replace(part, logprobs=[_logprob(token.text, token.logprobs)])
        return part

    def _part(self, part: Part) -> bytes:
        if not self.is_stream:
            self._held.append(part)
            return b""
        if part.is_empty():  # the token ends within a character
            return b""
        return json_line(self._head.line(**self._look(part), done=False))

    def _look(self, part: Part) -> dict[str, Any]:
        logprobs = {"logprobs": part.logprobs} if part.logprobs else {}
        return {**self._shape(part), **logprobs}


class ObjectRenderer(Renderer):
    """An answer that is one object, without text."""

    is_stream = False

    def __init__(self, head: Head) -> None:
        self._head = head


class LoadedRenderer(ObjectRenderer):
    """The answer to a request that only loads the model."""

    def __init__(self, head: Head, shape: Shape, *, is_stream: bool) -> None:
        super().__init__(head)
        self._shape = shape
        self.media_type = NDJSON if is_stream else Renderer.media_type

    def end(self) -> bytes:
        fields = {**self._shape(Part()), "done": True, "done_reason": "load"}
        return json_line(self._head.line(**fields, **self._head.durations()))


class VectorsRenderer(ObjectRenderer):
    """The answer of /api/embed. `dimensions`: the length of each vector; None: the model's."""

    def __init__(self, head: Head, dimensions: int | None) -> None:
        super().__init__(head)
        self._dimensions = dimensions
        self._vectors: dict[int, list[float]] = {}
        self._prompt_tokens = 0

    def embedded(self, index: int, vector: bytes) -> bytes:
        self._vectors[index] = shortened(numbers_of(vector), self._dimensions)
        return b""

    def finished(self, index: int, event: Finished, queued_s: float) -> bytes:
        self._prompt_tokens += event.usage.prompt_tokens
        return b""

    def end(self) -> bytes:
        return json_line(
            {
                "model": self._head.model,
                "embeddings": [self._vectors[index] for index in sorted(self._vectors)],
                **self._head.durations(),
                "prompt_eval_count": self._prompt_tokens,
            }
        )


class VectorRenderer(ObjectRenderer):
    """The answer of /api/embeddings, the older endpoint."""

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self._vector: list[float] = []

    def embedded(self, index: int, vector: bytes) -> bytes:
        self._vector = numbers_of(vector)
        return b""

    def end(self) -> bytes:
        return json_line({"embedding": self._vector})


def error_body(error: ServingError) -> bytes:
    """{"error": text}, on a line."""
    return json_line({"error": error.message})


def nanoseconds(seconds: float) -> int:
    """The time in whole nanoseconds."""
    return round(seconds * 1e9)


def numbers_of(vector: bytes) -> list[float]:
    """The numbers of a vector: little-endian float32."""
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def shortened(vector: list[float], dimensions: int | None) -> list[float]:
    """The first numbers of the vector, normalized."""
    if dimensions is None or dimensions >= len(vector):
        return vector
    length = math.hypot(*vector[:dimensions])
    return [number / length for number in vector[:dimensions]] if length else vector[:dimensions]


def _logprob(token: str, logprobs: Logprobs) -> dict[str, Any]:
    top = [
        _one_logprob(candidate.piece.decode(errors="replace"), candidate.piece, candidate.logprob)
        for candidate in logprobs.top
    ]
    chosen = _one_logprob(token, token.encode(), logprobs.logprob)
    return {**chosen, "top_logprobs": top} if top else chosen


def _one_logprob(token: str, piece: bytes, logprob: float) -> dict[str, Any]:
    finite = logprob if math.isfinite(logprob) else IMPOSSIBLE
    return {"token": token, "bytes": list(piece), "logprob": finite}
