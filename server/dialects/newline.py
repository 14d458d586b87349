"""POST /stream: a token a line, as escaped plain text or as JSON objects.

text/plain (default)   each token on its own line; inside a token `\\` is
                       written `\\\\`, a newline `\\n`, a carriage return `\\r`
application/x-ndjson   {"token", "index", "id"} for each token, and
                       {"logprob", "top_logprobs"} where asked for; the last
                       line has "done" or "error"
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from server.dialects.base import Call, Dialect, Renderer
from server.errors import error_body
from server.json_body import parse_object
from shared.errors import InvalidRequest, ServingError
from shared.messages import Candidate, Finished, Token
from shared.sampling import MAX_CACHE_ID, SamplingParams
from shared.validation import integer, text

NDJSON = "application/x-ndjson"
ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})


def parse(body: bytes, headers: Mapping[str, str], defaults: SamplingParams) -> Call:
    """A /stream body. Raises InvalidRequest, naming the field."""
    fields = parse_object(body)
    if "prompt" not in fields:
        raise InvalidRequest("prompt is missing")
    prompt = text("prompt", fields.pop("prompt"))
    cache = integer("cache", fields.pop("cache", 0), 0, MAX_CACHE_ID)
    sampling = defaults.from_fields(fields)
    renderer = renderer_for(headers.get("accept", ""))
    if sampling.logprobs is not None and not isinstance(renderer, NdjsonRenderer):
        raise InvalidRequest(f"logprobs: plain text cannot show them; send `Accept: {NDJSON}`")
    return Call(prompt, sampling, renderer, cache)


def renderer_for(accept: str) -> Renderer:
    """NDJSON for a client that names it, plain text for all others."""
    names = (part.split(";")[0].strip().lower() for part in accept.split(","))
    return NdjsonRenderer() if NDJSON in names else PlainTextRenderer()


def escape(token: str) -> str:
    """The token on one line; see the module's docstring."""
    return token.translate(ESCAPES)


class PlainTextRenderer:
    """A line a token, and nothing else: how it ended is told by the connection."""

    media_type = "text/plain; charset=utf-8"

    def tokens(self, tokens: Sequence[Token]) -> bytes:
        return "".join([escape(token.text) + "\n" for token in tokens]).encode()

    def finished(self, event: Finished, queued_s: float) -> bytes:
        return b""

    def failed(self, error: ServingError) -> bytes | None:
        return None


class NdjsonRenderer:
    """A JSON object a line."""

    media_type = NDJSON

    def tokens(self, tokens: Sequence[Token]) -> bytes:
        return b"".join([_line(_token(token)) for token in tokens])

    def finished(self, event: Finished, queued_s: float) -> bytes:
        usage, timings = event.usage, event.timings
        return _line(
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
    """JSON has no -Infinity."""
    return value if math.isfinite(value) else None


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


DIALECT = Dialect(paths={"/stream": parse}, error_body=error_body)
