"""What a dialect is: a wire format as pure functions of bytes and events, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.errors import ServingError
from shared.messages import Finished, Token
from shared.sampling import SamplingParams


class Renderer(Protocol):
    """One answer's events as bytes. It may keep state between calls."""

    media_type: str

    def tokens(self, tokens: Sequence[Token]) -> bytes:
        """Tokens that leave together."""

    def finished(self, event: Finished, queued_s: float) -> bytes:
        """The end; `queued_s` is how long the request waited for its slot, in seconds."""

    def failed(self, error: ServingError) -> bytes | None:
        """An error after the first byte; None where only cutting the stream can tell it."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a body asks for, and how the answer is to look."""

    prompt: str
    sampling: SamplingParams
    renderer: Renderer
    cache: int = 0
    """The client's name for the prompt, to save its state under; 0: none."""


Parse = Callable[[bytes, Mapping[str, str], SamplingParams], Call]
"""(body, headers, the server's sampling defaults) to a Call; raises ServingError."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """A wire format: its POST paths, and its errors before the first byte."""

    paths: Mapping[str, Parse]
    error_body: Callable[[ServingError], bytes]
    """JSON, sent with the error's status."""
