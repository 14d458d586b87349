"""One answer's body, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from scripts.load.bodies.reading import SHOWN_LENGTH, wrong

Events = Literal["exact", "usual", "merged"]
"""How many events a server may write for the tokens that its usage counts: one for each token;
one for each token that completes a character; any number up to the number of tokens."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What an answer must be."""

    tokens: int
    """Length that was asked for, in tokens."""
    is_exact: bool = True
    """The model cannot end the answer early."""
    events: Events = "usual"
    needs_usage: bool = False
    """An answer without the server's token count is a failure."""
    text: str | None = None
    """The answer's text; None: unknown."""
    keeps_text: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens by the server's count; None: the server does not report it."""

    prompt: int | None
    cached: int | None
    completion: int | None


class Body(ABC):
    """Reads one answer's body. Raises StreamFailure for anything but the expected answer."""

    unit = "tokens"
    """What `tokens` counts."""

    def __init__(self, expected: Expected) -> None:
        self.expected = expected
        self.tokens = 0
        """Events with text that have arrived."""
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.is_done = False
        """The end mark has arrived."""
        self._texts: list[str] = []
        self._length = 0
        """Characters of the expected text that have arrived."""

    @property
    def text(self) -> str:
        """The text that has arrived, if it is kept."""
        return "".join(self._texts)

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Read the next bytes, which may begin and end anywhere."""

    @abstractmethod
    def end(self) -> None:
        """Check the answer: no further bytes will arrive."""

    def take_text(self, text: str) -> None:
        """Compare the next part of the answer's text with the expected text, and keep it."""
        expected = self.expected
        if expected.keeps_text:
            self._texts.append(text)
        whole = expected.text
        if whole is None:
            return
        if not whole.startswith(text, self._length):
            due = whole[self._length : self._length + len(text)]
            raise wrong(f"{text[:SHOWN_LENGTH]!r} instead of {due[:SHOWN_LENGTH]!r}")
        self._length += len(text)

    def check_text(self) -> None:
        """Check that all of the expected text has arrived."""
        whole = self.expected.text
        if whole is not None and self._length != len(whole):
            raise wrong(f"looks finished after {self._length} of {len(whole)} characters")

    def check_length(self) -> None:
        """Check the number of tokens, in a format that has one event for each token."""
        self.check_text()
        tokens, asked = self.tokens, self.expected.tokens
        if tokens > asked or (self.expected.is_exact and tokens < asked):
            raise wrong(f"{tokens} tokens instead of {asked}")
