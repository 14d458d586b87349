"""How the text of an option becomes its value."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

from shared.errors import InvalidRequest
from shared.sampling import CHECKS
from shared.settings import Network
from shared.validation import MAX_INTEGER, Check, integers, numbers

Takes = Literal["text", "number", "bytes"]
"""What an option's value is in a file: a string; a number; a number, or a string such as "2G"."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
INTEGER = re.compile(r"[+-]?\d{1,19}")
MAX_DIGITS = 15
"""Digits of a number of bytes."""

T = TypeVar("T", covariant=True)


@dataclass(frozen=True, slots=True)
class Parser(Generic[T]):
    """Called with a name and a text, it returns the value or raises InvalidRequest.

    The name is the flag, the variable or the key that has the text; the error begins with it.
    """

    takes: Takes
    parse: Callable[[str, str], T]
    choices: tuple[str, ...] = ()
    """The only texts that are allowed; empty: any text that `parse` accepts."""

    def __call__(self, name: str, text: str) -> T:
        return self.parse(name, text)


def one_of(literal: Any) -> Parser[Any]:
    """One of the texts of a Literal type."""
    choices = get_args(literal)

    def parse(name: str, text: str) -> str:
        if text not in choices:
            raise InvalidRequest(f"{name} must be one of {', '.join(choices)}, not {text!r:.80}")
        return text

    return Parser("text", parse, choices)


def integer(low: int, high: int = MAX_INTEGER) -> Parser[int]:
    """An integer in [low, high]."""
    return _checked(integers(low, high), _integer_or_text)


def number(**limits: float) -> Parser[float]:
    """A finite number; `limits` are those of `shared.validation.numbers`."""
    return _checked(numbers(**limits), _number_or_text)


def sampling(field: str) -> Parser[Any]:
    """A field of SamplingParams, with its range there."""
    check = CHECKS[field]
    is_integer = check.schema["type"] == "integer"
    return _checked(check, _integer_or_text if is_integer else _number_or_text)


def _checked(check: Check[T], read: Callable[[str], Any]) -> Parser[T]:
    return Parser("number", lambda name, text: check(name, read(text)))


def _integer_or_text(text: str) -> int | str:
    """The integer; or the text as it is, which the check then refuses with the range."""
    return int(text) if INTEGER.fullmatch(text) else text


def _number_or_text(text: str) -> float | str:
    """The number; or the text as it is, which the check then refuses with the range."""
    try:
        return float(text)
    except ValueError:
        return text


def _bytes(name: str, text: str) -> int:
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    is_number = digits.isascii() and digits.isdecimal() and len(digits) <= MAX_DIGITS
    if unit not in UNITS or not is_number:
        raise InvalidRequest(f"{name} must be a number of bytes, such as 1000000, 500M or 2G")
    return int(digits) * UNITS[unit]


def _network(name: str, text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise InvalidRequest(
            f"{name} must be an IP address or a network, such as 127.0.0.1 or 10.0.0.0/8,"
            f" not {text!r:.80}"
        ) from None


TEXT: Parser[str] = Parser("text", lambda _, text: text)
PATH: Parser[Path] = Parser("text", lambda _, text: Path(text))
SECONDS = number(above=0, high=86_400)
NETWORK: Parser[Network] = Parser("text", _network)
BYTES: Parser[int] = Parser("bytes", _bytes)
