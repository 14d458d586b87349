"""HTTP by hand: plain GETs, and requests that are wrong in all the ways that clients have."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.load.server import HOST

OK = 200
ANSWER_S = 60.0
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """`status` 0: the connection was closed without one."""

    status: int
    headers: str
    body: bytes


async def exchange(port: int, data: bytes) -> RawAnswer:
    """Send it, and read to the end of the connection. Raises OSError, TimeoutError."""
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(data)
            answer = await reader.read()
        finally:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    line, _, headers = head.partition(b"\r\n")
    parts = line.split(b" ")
    status = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
    return RawAnswer(status, headers.decode("latin-1").lower(), body)


async def get(port: int, path: str) -> RawAnswer:
    """The answer to a GET."""
    return await exchange(port, head("GET", path))


async def post(port: int, path: str, **fields: Any) -> RawAnswer:
    """The answer to a JSON object."""
    return await exchange(port, with_body(path, json.dumps(fields).encode()))


def head(method: str, path: str, *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def with_body(path: str, body: bytes) -> bytes:
    kind = "Content-Type: application/json"
    return head("POST", path, kind, f"Content-Length: {len(body)}") + body


# ---------------------------------------------------------------- what is wrong


@dataclass(frozen=True, slots=True)
class Malformed:
    """A request that must be refused with one of these statuses; none: it is closed unanswered."""

    name: str
    data: bytes
    statuses: Sequence[int]


PATHS = (
    "/stream", "/token_stream", "/v1/completions", "/v1/chat/completions", "/v1/embeddings",
    "/api/generate", "/api/chat", "/api/embed", "/tokenize",
)  # fmt: skip
BAD_BODIES: Sequence[tuple[str, bytes]] = (
    ("no body", b""),
    ("no JSON", b'{"prompt": "x"'),
    ("no object", b'["prompt"]'),
    ("no UTF-8", b'{"prompt": "\xff\xfe"}'),
    ("deep nesting", b"[" * 100_000),
    ("unknown field", b'{"prompt": "x", "no_such_field": 1}'),
    ("null bytes", b"\x00" * 1000),
)
BAD_FIELDS: Sequence[tuple[str, str, bytes]] = (
    ("prompt of a wrong type", "/stream", b'{"prompt": 7}'),
    ("empty prompt", "/stream", b'{"prompt": ""}'),
    ("num_predict out of range", "/stream", b'{"prompt": "x", "num_predict": 0}'),
    ("temp that is no number", "/stream", b'{"prompt": "x", "temp": NaN}'),
    ("seed out of range", "/stream", b'{"prompt": "x", "seed": -1}'),
    ("cache out of range", "/stream", b'{"prompt": "x", "cache": 9223372036854775808}'),
    ("timeout_s out of range", "/stream", b'{"prompt": "x", "timeout_s": -1}'),
    ("prompt over the context", "/stream", b'{"prompt": "%s"}' % (b"a word " * 60_000)),
    ("a half surrogate", "/stream", b'{"prompt": "\\ud800"}'),
    ("no messages", "/v1/chat/completions", b'{"messages": []}'),
    ("role unknown", "/v1/chat/completions", b'{"messages": [{"role": "x", "content": "y"}]}'),
    ("n out of range", "/v1/completions", b'{"prompt": "x", "n": 1000}'),
    ("option unknown", "/api/generate", b'{"prompt": "x", "options": {"no_such": 1}}'),
    ("input empty", "/v1/embeddings", b'{"input": []}'),
)
NO_MODEL = b'{"model": "no-such-model", "prompt": "x"}'
BROKEN: Sequence[Malformed] = (
    Malformed("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", (400,)),
    Malformed("no host", b"GET /health HTTP/1.1\r\n\r\n", (400,)),
    Malformed(
        "two lengths", head("POST", "/stream", "Content-Length: 2", "Content-Length: 3") + b"{}",
        (400,),
    ),
    Malformed(
        "a bad chunk", head("POST", "/stream", "Transfer-Encoding: chunked") + b"xyz\r\n", (400,)
    ),
    Malformed("a huge head", head("GET", "/health", "X-Long: " + "x" * 70_000), (431,)),
    Malformed("many headers", head("GET", "/health", *["X-Many: 1"] * 200), (431,)),
    Malformed(
        "a huge body, announced",
        head("POST", "/stream", f"Content-Length: {50 * MIB}") + b"{",
        (413,),
    ),
    Malformed("a large body", with_body("/stream", b" " * (MIB + 1)), (413,)),
    Malformed("an unknown path", head("GET", "/no/such/path"), (404,)),
    Malformed("a wrong method", head("GET", "/stream"), (405,)),
    Malformed("an unknown model", with_body("/stream", NO_MODEL), (404,)),
    Malformed("an unknown model, OpenAI", with_body("/v1/completions", NO_MODEL), (404,)),
    Malformed("an unknown model, Ollama", with_body("/api/generate", NO_MODEL), (404,)),
)  # fmt: skip


def draw_malformed(chance: random.Random) -> Malformed:
    """One of all ways."""
    match chance.randrange(3):
        case 0:
            name, body = chance.choice(BAD_BODIES)
            return Malformed(name, with_body(chance.choice(PATHS), body), (400,))
        case 1:
            name, path, body = chance.choice(BAD_FIELDS)
            return Malformed(name, with_body(path, body), (400,))
        case _:
            return chance.choice(BROKEN)


def judge_malformed(request: Malformed, answer: RawAnswer) -> str:
    """What is wrong with the answer; empty if nothing is. A busy server may say so first."""
    if answer.status in (429, 503):
        return "" if "retry-after:" in answer.headers else f"{answer.status} without Retry-After"
    if answer.status not in request.statuses:
        return f"{answer.status} instead of {request.statuses[0]}: {answer.body[:200]!r}"
    if b"error" not in answer.body:
        return f"{answer.status} without a reason"
    return ""
