"""Plain HTTP exchanges, of any bytes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from scripts.load.server import HOST

OK = 200
ANSWER_S = 60.0
"""Time in which an answer must be complete."""


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer. Its `status` is 0 if the connection was closed without one."""

    status: int
    headers: str
    """In lower case."""
    body: bytes


async def exchange(port: int, data: bytes) -> RawAnswer:
    """Send the data, and read until the connection is closed. Raises OSError, TimeoutError."""
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
    """The answer to a GET request. Raises OSError, TimeoutError."""
    return await exchange(port, head("GET", path))


async def post(port: int, path: str, **fields: Any) -> RawAnswer:
    """The answer to a POST request with a JSON object. Raises OSError, TimeoutError."""
    return await exchange(port, with_body(path, json.dumps(fields).encode()))


def head(method: str, path: str, *headers: str) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def with_body(path: str, body: bytes) -> bytes:
    """A POST request with this body."""
    media_type = "Content-Type: application/json"
    return head("POST", path, media_type, f"Content-Length: {len(body)}") + body
