"""The form of answers: events of a stream, or one object; errors; token counts."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from server.generation.answer import Renderer
from server.generation.task import Generation
from server.http.errors import Unauthorized
from shared.errors import ContextTooShort, ServingError
from shared.json_text import json_line, to_json
from shared.messages import Finished, Token
from shared.sampling import MAX_SEED

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"
IMPOSSIBLE = -9999.0
"""The log probability of impossible tokens: JSON has no -Infinity, and clients expect a number."""

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}
"""Error types by status; other statuses below 500 are invalid_request_error."""
CODES = {ContextTooShort: "context_length_exceeded", Unauthorized: "invalid_api_key"}
"""OpenAI's codes for errors that clients handle by code."""


def error_object(error: ServingError) -> Json:
    """{"error": {"message", "type", "param", "code"}}."""
    fault = "invalid_request_error" if error.status < 500 else "server_error"
    kind = ERROR_TYPES.get(error.status, fault)
    if isinstance(error, ContextTooShort):
        kind = "exceed_context_size_error"
    code = CODES.get(type(error), error.code)
    param = error.field
    if param is None and error.status == 400 and (found := _LEADING.match(error.message)):
        param = found[0]
    return {"error": {"message": error.message, "type": kind, "param": param, "code": code}}


_LEADING = re.compile(r"(?:prompt|grammar|json_schema|logit_bias)\b")
"""Matches the field at the beginning of a worker's message; a worker does not send it apart."""


def error_body(error: ServingError) -> bytes:
    """The error's JSON, on a line."""
    return json_line(error_object(error))


def sse(value: Json) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


def finite(logprob: float) -> float:
    """The value; IMPOSSIBLE for -infinity."""
    return logprob if math.isfinite(logprob) else IMPOSSIBLE


def repeated(task: Generation, times: int) -> tuple[Generation, ...]:
    """`times` copies of the task, with different seeds. Only the first one saves the prompt."""
    tasks = [task]
    seed = task.sampling.seed
    for index in range(1, times):
        own = None if seed is None else (seed + index) % (MAX_SEED + 1)
        tasks.append(replace(task, sampling=replace(task.sampling, seed=own), prompt_id=0))
    return tuple(tasks)


@dataclass(frozen=True, slots=True)
class Head:
    """The fields that all objects of an answer begin with."""

    id: str
    created: int
    """Unix time in seconds."""
    model: str

    @staticmethod
    def of(model: str, prefix: str) -> Head:
        """The head of a new answer, with an id that begins with `prefix`."""
        return Head(prefix + uuid.uuid4().hex, int(time.time()), model)

    def object(self, kind: str, **fields: Any) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            **fields,
        }


class Totals:
    """Token counts and times of an answer's tasks: `choices` tasks for each prompt, in order."""

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._prompts: dict[int, tuple[int, int]] = {}
        self._completion = 0
        self._times = (0.0, 0.0, 0.0)

    def add(self, index: int, event: Finished, queued_s: float) -> None:
        """A task has ended."""
        prompt, usage, timings = index // self._choices, event.usage, event.timings
        _, cached = self._prompts.get(prompt, (0, usage.cached_tokens))
        self._prompts[prompt] = usage.prompt_tokens, min(cached, usage.cached_tokens)
        self._completion += usage.completion_tokens
        times = queued_s, timings.prefill_s, timings.decode_s
        self._times = tuple(map(max, self._times, times))  # type: ignore[assignment]

    def usage(self) -> Json:
        """The token counts. A prompt counts once; cached are the fewest tokens of its choices."""
        prompt = sum(tokens for tokens, _ in self._prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._completion,
            "total_tokens": prompt + self._completion,
            "prompt_tokens_details": {
                "cached_tokens": sum(cached for _, cached in self._prompts.values())
            },
        }

    def timings(self) -> Json:
        """The longest times of all tasks, in milliseconds."""
        names = ("queued_ms", "prefill_ms", "decode_ms")
        return {
            name: round(1000 * value, 3) for name, value in zip(names, self._times, strict=True)
        }


class Choice(Protocol):
    """One choice of an answer: as chunks of a stream, and as a whole."""

    def begin(self) -> list[Json]:
        """The chunks before the first token."""

    def token(self, token: Token) -> list[Json]:
        """The chunks of a token."""

    def finished(self, event: Finished) -> list[Json]:
        """The chunks of the end."""

    def whole(self) -> Json:
        """The complete choice, after its end."""


class StreamRenderer(Renderer):
    """A stream of chunks, then [DONE]. A failed stream ends with an error instead of [DONE]."""

    media_type = "text/event-stream"

    def __init__(
        self, head: Head, kind: str, choices: Sequence[Choice], totals: Totals, *, has_usage: bool
    ) -> None:
        self._head = head
        self._kind = kind
        self._choices = choices
        self._totals = totals
        self._usage = {"usage": None} if has_usage else {}

    def begin(self) -> bytes:
        return self._chunks([piece for choice in self._choices for piece in choice.begin()])

    def tokens(self, index: int, tokens: Sequence[Token]) -> bytes:
        choice = self._choices[index]
        return self._chunks([piece for token in tokens for piece in choice.token(token)])

    def finished(self, index: int, event: Finished, queued_s: float) -> bytes:
        self._totals.add(index, event, queued_s)
        return self._chunks(self._choices[index].finished(event))

    def end(self) -> bytes:
        if not self._usage:
            return DONE
        counts = {"usage": self._totals.usage(), "timings": self._totals.timings()}
        return sse(self._head.object(self._kind, choices=[], **counts)) + DONE

    def failed(self, error: ServingError) -> bytes | None:
        return sse(error_object(error))

    def _chunks(self, pieces: Sequence[Json]) -> bytes:
        return b"".join(
            [sse(self._head.object(self._kind, choices=[piece], **self._usage)) for piece in pieces]
        )


class WholeRenderer(Renderer):
    """One object with all choices, or with those that `chosen` returns."""

    is_stream = False

    def __init__(
        self,
        head: Head,
        kind: str,
        choices: Sequence[Choice],
        totals: Totals,
        chosen: Callable[[], Sequence[Choice]] | None = None,
    ) -> None:
        self._head = head
        self._kind = kind
        self._choices = choices
        self._totals = totals
        self._chosen = chosen or (lambda: self._choices)

    def tokens(self, index: int, tokens: Sequence[Token]) -> bytes:
        for token in tokens:
            self._choices[index].token(token)
        return b""

    def finished(self, index: int, event: Finished, queued_s: float) -> bytes:
        self._totals.add(index, event, queued_s)
        self._choices[index].finished(event)
        return b""

    def end(self) -> bytes:
        choices = [
            {**choice.whole(), "index": index} for index, choice in enumerate(self._chosen())
        ]
        counts = {"usage": self._totals.usage(), "timings": self._totals.timings()}
        return to_json(self._head.object(self._kind, choices=choices, **counts))
