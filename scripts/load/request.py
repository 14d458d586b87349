"""A request, independent of the API that it will be sent to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, the length of the answer, and how the client reads that answer."""

    prompt: str
    tokens: int
    """Length of the answer to ask for, in tokens."""
    seed: int
    messages: Sequence[Mapping[str, Any]] = ()
    """A chat that replaces the prompt."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request's body."""
    expected_text: str | None = None
    """The text that the answer must have; None: unknown."""
    keeps_text: bool = False
    """Whether the record gets the answer's text."""
    cancel_after_tokens: int | None = None
    """Tokens after which the client disconnects; 0: at once; None: it reads to the end."""
    cancel_after_s: float | None = None
    """Seconds from the sending until the client disconnects; None: it reads to the end."""
    read_pause_s: float = 0.0
    """Seconds between two reads of the socket."""
    receive_buffer_bytes: int | None = None
    """Size of the kernel's receive buffer for a slow reader; None: the default size."""
