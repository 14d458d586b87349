"""The interface of the parsers of one call, and what they have in common."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON Schema of each function's parameters, by the function's name."""


@dataclass(frozen=True, slots=True)
class Name:
    """The text is a call of this function."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next piece of the arguments, as JSON."""

    text: str


@dataclass(frozen=True, slots=True)
class Complete:
    """The call is complete; `rest` follows it."""

    rest: str


@dataclass(frozen=True, slots=True)
class Cut:
    """The text ended within the arguments."""


@dataclass(frozen=True, slots=True)
class NoCall:
    """The text is not a call: `text` is plain text, and calls are to be looked for in `rest`."""

    text: str
    rest: str


class CallSyntax(ABC):
    """Reads one call that comes in pieces, in one syntax.

    The time for a text is proportional to its length, however small its pieces are: what cannot be
    decided yet is kept in pieces, and only a bounded number of characters is looked at again.
    """

    @abstractmethod
    def feed(self, text: str) -> Iterator[Name | Arguments | Complete | NoCall]:
        """What the next piece of text brings. Nothing comes after Complete or NoCall."""

    @abstractmethod
    def finish(self) -> Complete | Cut | NoCall:
        """What it turned out to be, as no more text comes."""


class ObjectEnd:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_string = False
        self._is_escaped = False

    def feed(self, text: str) -> int | None:
        """Where in this piece the object ends; None: not within it."""
        place = 0
        if self._is_escaped and text:
            place, self._is_escaped = 1, False
        while found := (_IN_STRING if self._is_string else _OUT_OF_STRING).search(text, place):
            mark, place = found[0], found.end()
            if mark == "\\":
                self._is_escaped = place == len(text)
                place += 1
            elif mark == '"':
                self._is_string = not self._is_string
            else:
                self._depth += 1 if mark in "{[" else -1
                if self._depth == 0:
                    return place
        return None


_IN_STRING = re.compile(r'["\\]')
_OUT_OF_STRING = re.compile(r'["{}\[\]]')
