"""A server with the echo engine, for the figures of the front."""

from __future__ import annotations

from pathlib import Path

from scripts.bench.servers import tokenflume
from scripts.load.server import ServerProcess

ECHO_PROMPT = "The fox said: “Où vas-tu?”\nAnd he said \\o/ and ran, and ran, and was gone. "
"""It has everything that escapes and text assembly must handle. Each of its bytes is a token."""


def serve_echo(tokens: int, *options: str, stamps: Path | None = None) -> ServerProcess:
    """A server whose context has room for the prompt and `tokens` tokens."""
    context = len(ECHO_PROMPT.encode()) + tokens
    return tokenflume("--engine", "echo", "-n", str(context), *options, stamps=stamps)
