"""Malformed requests, and how the server must refuse each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.soak.raw_http import RawAnswer, head, with_body

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Malformed:
    """A request that must be refused with this status."""

    name: str
    data: bytes
    status: int


PATHS = (
    "/stream", "/token_stream", "/v1/completions", "/v1/chat/completions", "/v1/embeddings",
    "/api/generate", "/api/chat", "/api/embed", "/tokenize",
)  # fmt: skip
BAD_BODIES: Sequence[tuple[str, bytes]] = (
    ("empty body", b""),
    ("invalid JSON", b'{"prompt": "x"'),
    ("JSON that is not an object", b'["prompt"]'),
    ("invalid UTF-8", b'{"prompt": "\xff\xfe"}'),
    ("deep nesting", b"[" * 100_000),
    ("unknown field", b'{"prompt": "x", "no_such_field": 1}'),
    ("null bytes", b"\x00" * 1000),
)
BAD_FIELDS: Sequence[tuple[str, str, bytes]] = (
    ("prompt of a wrong type", "/stream", b'{"prompt": 7}'),
    ("empty prompt", "/stream", b'{"prompt": ""}'),
    ("num_predict out of range", "/stream", b'{"prompt": "x", "num_predict": 0}'),
    ("temp that is not a number", "/stream", b'{"prompt": "x", "temp": NaN}'),
    ("seed out of range", "/stream", b'{"prompt": "x", "seed": -1}'),
    ("cache out of range", "/stream", b'{"prompt": "x", "cache": 9223372036854775808}'),
    ("timeout_s out of range", "/stream", b'{"prompt": "x", "timeout_s": -1}'),
    ("prompt over the context", "/stream", b'{"prompt": "%s"}' % (b"a word " * 60_000)),
    ("a lone surrogate", "/stream", b'{"prompt": "\\ud800"}'),
    ("no messages", "/v1/chat/completions", b'{"messages": []}'),
    ("unknown role", "/v1/chat/completions", b'{"messages": [{"role": "x", "content": "y"}]}'),
    ("n out of range", "/v1/completions", b'{"prompt": "x", "n": 1000}'),
    ("unknown option", "/api/generate", b'{"prompt": "x", "options": {"no_such": 1}}'),
    ("empty input", "/v1/embeddings", b'{"input": []}'),
)
UNKNOWN_MODEL = b'{"model": "no-such-model", "prompt": "x"}'
BAD_REQUESTS: Sequence[Malformed] = (
    Malformed("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
    Malformed("no host", b"GET /health HTTP/1.1\r\n\r\n", 400),
    Malformed(
        "two lengths", head("POST", "/stream", "Content-Length: 2", "Content-Length: 3") + b"{}",
        400,
    ),
    Malformed(
        "a bad chunk", head("POST", "/stream", "Transfer-Encoding: chunked") + b"xyz\r\n", 400
    ),
    Malformed("a huge head", head("GET", "/health", "X-Long: " + "x" * 70_000), 431),
    Malformed("many headers", head("GET", "/health", *["X-Many: 1"] * 200), 431),
    Malformed(
        "a huge body, announced",
        head("POST", "/stream", f"Content-Length: {50 * MIB}") + b"{",
        413,
    ),
    Malformed("a large body", with_body("/stream", b" " * (MIB + 1)), 413),
    Malformed("an unknown path", head("GET", "/no/such/path"), 404),
    Malformed("a wrong method", head("GET", "/stream"), 405),
    Malformed("an unknown model", with_body("/stream", UNKNOWN_MODEL), 404),
    Malformed("an unknown model, OpenAI", with_body("/v1/completions", UNKNOWN_MODEL), 404),
    Malformed("an unknown model, Ollama", with_body("/api/generate", UNKNOWN_MODEL), 404),
)  # fmt: skip


def draw_malformed(chance: random.Random) -> Malformed:
    """A random malformed request."""
    match chance.randrange(3):
        case 0:
            name, body = chance.choice(BAD_BODIES)
            return Malformed(name, with_body(chance.choice(PATHS), body), 400)
        case 1:
            name, path, body = chance.choice(BAD_FIELDS)
            return Malformed(name, with_body(path, body), 400)
        case _:
            return chance.choice(BAD_REQUESTS)


def judge_malformed(request: Malformed, answer: RawAnswer) -> str:
    """What is wrong with the answer; empty: nothing. A busy server may refuse with 429 or 503."""
    if answer.status in (429, 503):
        return "" if "retry-after:" in answer.headers else f"{answer.status} without Retry-After"
    if answer.status != request.status:
        return f"{answer.status} instead of {request.status}: {answer.body[:200]!r}"
    if b"error" not in answer.body:
        return f"{answer.status} without an error message"
    return ""
