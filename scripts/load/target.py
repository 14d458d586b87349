"""A server to send requests to."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.load.bodies.body import Events, Expected
from scripts.load.dialects import Dialect
from scripts.load.request import Request

PORTS = {"http": 80, "https": 443}


class BadTarget(Exception):
    """There is no such server, or it speaks another protocol; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what every request to it has in common."""

    url: str
    dialect: Dialect
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    """API key, sent as a bearer token."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request's body."""
    may_end: bool = False
    """Whether the model may end its answers early."""
    events: Events = "usual"
    needs_usage: bool = False
    """Whether an answer without the server's token count is a failure."""

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urllib.parse.urlsplit(self.url)
        return parts.port or PORTS[parts.scheme]

    @property
    def is_encrypted(self) -> bool:
        return urllib.parse.urlsplit(self.url).scheme == "https"

    def expected(self, request: Request) -> Expected:
        """What the answer must be."""
        return Expected(
            tokens=request.tokens,
            is_exact=bool(self.dialect.endless) and not self.may_end,
            events=self.events,
            needs_usage=self.needs_usage,
            text=request.expected_text,
            keeps_text=request.keeps_text,
        )

    def encode(self, request: Request) -> bytes:
        """The HTTP request."""
        parts = urllib.parse.urlsplit(self.url)
        key = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        body = json.dumps(self.body(request), ensure_ascii=False).encode()
        headers = {
            "Host": parts.netloc,
            "Content-Type": "application/json",
            "Accept": self.dialect.media_type,
            **key,
            "Content-Length": len(body),
            "Connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        path = parts.path.rstrip("/") + self.dialect.path
        return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body

    def body(self, request: Request) -> dict[str, Any]:
        """The fields of the HTTP request's JSON body."""
        model = {} if self.model is None else {"model": self.model}
        endless = {} if self.may_end else self.dialect.endless
        return {**model, **self.dialect.fields(request), **endless, **self.fields, **request.fields}
