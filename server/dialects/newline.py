"""Our own API: POST /stream continues a prompt, POST /token_stream asks a chat model.

/stream sends one token in each line:

    text/plain (default)    the token's text; `\\` is written `\\\\`, a newline `\\n`, a carriage
                            return `\\r`, another character that ends a line `\\u2028` etc.
    application/x-ndjson    {"token", "index", "id"}, with {"logprob", "top_logprobs"} if they were
                            requested; the last line has "done" or "error"

/token_stream sends the text of the answer as it comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from server.dialects.base import Dialect
from server.generation.answer import Answer, Call, Renderer
from server.generation.served_model import ServedModel
from server.generation.task import Generation
from server.http.error_response import error_body
from server.http.fields import CACHE, MODEL, SAMPLING, TIMEOUT, Form, sampling_of
from server.http.openapi import (
    ERROR,
    GENERATION,
    INTEGER,
    NUMBER,
    OBJECT,
    STRING,
    Operation,
    Operations,
    array,
    lines,
    record,
)
from shared.errors import InvalidRequest, ServingError
from shared.json_text import ESCAPES, json_line
from shared.messages import Finished, Token
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.validation import MAX_INTEGER, TEXT, nullable, or_none
from shared.values import Candidate

NDJSON = "application/x-ndjson"
PLAIN_ESCAPES = {**ESCAPES, **str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})}


SYSTEM = or_none(TEXT).saying(
    "Name or text of a system prompt. With it, the prompt is a question to a chat model."
)
COMMON = {"model": MODEL, "system": SYSTEM, "cache": CACHE, "timeout_s": TIMEOUT, **SAMPLING}
STREAM = Form({"prompt": TEXT, **COMMON}, needed=("prompt",), is_null_absent=False)
TOKEN_STREAM = Form({"query": TEXT, **COMMON}, needed=("query",), is_null_absent=False)


def parse_stream(body: bytes, headers: Mapping[str, str]) -> Call:
    """Parse a body of /stream. Raises InvalidRequest, which names the field."""
    given = STREAM.read(body)
    prompt, prompt_id, system = given["prompt"], given.get("cache", 0), given.get("system")
    fields = sampling_of(given)  # checked here, before a model is loaded
    renderer = renderer_for(headers.get("accept", ""))

    def answer(served: ServedModel) -> Answer:
        sampling = served.defaults.from_fields(fields)
        if sampling.logprobs is not None and not isinstance(renderer, NdjsonRenderer):
            raise InvalidRequest(f"logprobs: plain text cannot show them; send `Accept: {NDJSON}`")
        if system is None:
            return Answer((Generation(Prompt(prompt), sampling, prompt_id),), renderer)
        return Answer((_chat(served, system, prompt, sampling, prompt_id),), renderer)

    return Call(given.get("model"), answer, given.get("timeout_s"), is_chat=system is not None)


def parse_token_stream(body: bytes, headers: Mapping[str, str]) -> Call:
    """Parse a body of /token_stream. Raises InvalidRequest, which names the field."""
    given = TOKEN_STREAM.read(body)
    query, prompt_id, system = given["query"], given.get("cache", 0), given.get("system")
    fields = sampling_of(given)

    def answer(served: ServedModel) -> Answer:
        defaults = replace(served.defaults, num_predict=MAX_INTEGER)
        sampling = defaults.from_fields(fields)
        if sampling.logprobs is not None:
            raise InvalidRequest("logprobs: raw text cannot show them; POST /stream can")
        return Answer((_chat(served, system, query, sampling, prompt_id),), RawTextRenderer())

    return Call(given.get("model"), answer, given.get("timeout_s"), is_chat=True)


def _chat(
    served: ServedModel, system: str | None, query: str, sampling: SamplingParams, prompt_id: int
) -> Generation:
    """The task of answering one question, with a system prompt, in the model's chat format."""
    messages = served.with_system([{"role": "user", "content": query}], system)
    return replace(served.reply(messages, sampling), prompt_id=prompt_id)


def renderer_for(accept: str) -> Renderer:
    """NDJSON if the Accept header names it, otherwise plain text."""
    names = (part.split(";")[0].strip().lower() for part in accept.split(","))
    return NdjsonRenderer() if NDJSON in names else PlainTextRenderer()


def escape(token: str) -> str:
    """The token's text without line breaks; see the module's docstring."""
    return token.translate(PLAIN_ESCAPES)


class PlainTextRenderer(Renderer):
    """One token in each line. The format has no errors: a failed stream is cut."""

    media_type = "text/plain; charset=utf-8"

    def tokens(self, index: int, tokens: Sequence[Token]) -> bytes:
        return "".join([escape(token.text) + "\n" for token in tokens]).encode()


class RawTextRenderer(Renderer):
    """The text as it comes. The format has no errors: a failed stream is cut."""

    media_type = "text/plain; charset=utf-8"

    def tokens(self, index: int, tokens: Sequence[Token]) -> bytes:
        return "".join([token.text for token in tokens]).encode()


class NdjsonRenderer(Renderer):
    """One JSON object in each line."""

    media_type = NDJSON

    def tokens(self, index: int, tokens: Sequence[Token]) -> bytes:
        return b"".join([json_line(_token(token)) for token in tokens])

    def finished(self, index: int, event: Finished, queued_s: float) -> bytes:
        usage, timings = event.usage, event.timings
        return json_line(
            {
                "done": True,
                "finish_reason": event.reason,
                "usage": {
                    "prompt_tokens": usage.prompt_tokens,
                    "cached_tokens": usage.cached_tokens,
                    "completion_tokens": usage.completion_tokens,
                },
                "timings": {
                    "queued_ms": _milliseconds(queued_s),
                    "prefill_ms": _milliseconds(timings.prefill_s),
                    "decode_ms": _milliseconds(timings.decode_s),
                },
            }
        )

    def failed(self, error: ServingError) -> bytes | None:
        return error_body(error)


def _token(token: Token) -> dict[str, Any]:
    value: dict[str, Any] = {"token": token.text, "index": token.position, "id": token.id}
    if token.logprobs is not None:
        value["logprob"] = _logprob(token.logprobs.logprob)
        value["top_logprobs"] = [_candidate(candidate) for candidate in token.logprobs.top]
    return value


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.id,
        "token": candidate.piece.decode(errors="replace"),
        "bytes": list(candidate.piece),
        "logprob": _logprob(candidate.logprob),
    }


def _logprob(value: float) -> float | None:
    """The value; None for -infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


TOKEN_LINE = record(
    token=STRING,
    index=INTEGER,
    id=INTEGER,
    optional={"logprob": nullable(NUMBER), "top_logprobs": array(OBJECT)},
)
LAST_LINE = record(done={"const": True}, finish_reason=STRING, usage=OBJECT, timings=OBJECT)
OPERATIONS: Operations = {
    ("POST", "/stream"): Operation(
        "Continue a prompt, with one token in each line.",
        {
            "text/plain": lines(
                "One token a line; in it \\\\, \\n, \\r and \\uXXXX mean what they do in JSON."
            ),
            NDJSON: lines(
                "One object in each line; the last one has done or error.",
                {"anyOf": [TOKEN_LINE, LAST_LINE, ERROR]},
            ),
        },
        STREAM,
        GENERATION,
    ),
    ("POST", "/token_stream"): Operation(
        "Ask a chat model a question.",
        {"text/plain": lines("The text of the answer, as it comes.")},
        TOKEN_STREAM,
        GENERATION,
    ),
}
DIALECT = Dialect(
    name="native",
    paths={"/stream": parse_stream, "/token_stream": parse_token_stream},
    error_body=error_body,
    operations=OPERATIONS,
)
