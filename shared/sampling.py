"""How the next token is chosen: the parameters, their ranges and their one validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from shared.errors import InvalidRequest

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
MAX_INTEGER = 2**31 - 1
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """One request's sampling, in the units of the request's fields.

    The defaults are those of the native endpoint; `from_fields` replaces some
    of them by what a client sent.
    """

    num_predict: int = 32
    """Tokens to generate at the most, ≥ 1."""
    n_batch: int | None = None
    """Prompt tokens fed at a time, ≥ 1; None: as the engine likes best. Never changes the text."""
    top_k: int = 40
    """Keep the k likeliest tokens, ≥ 0; 0: all of them."""
    top_p: float = 0.95
    """Keep the likeliest tokens that together have this probability, in (0, 1]."""
    temp: float = 0.80
    """Divides the logits, ≥ 0; 0: always the likeliest token."""
    repeat_penalty: float = 1.30
    """Divides (or multiplies, below zero) the logits of recent tokens, > 0; 1: off."""
    repeat_last_n: int = 64
    """How many of the last tokens count as recent, ≥ 0; 0: none."""
    seed: int | None = None
    """Of this request's own random generator; None: a fresh one."""
    ignore_eos: bool = False
    """Never choose the end-of-sequence token."""
    stop: tuple[str, ...] = ()
    """Texts that end the generation; they are not part of the answer."""

    def from_fields(self, given: Mapping[str, Any]) -> SamplingParams:
        """These defaults with a client's fields in their place.

        `temperature` is another name of `temp`. Raises InvalidRequest, naming
        the field and its range, for a wrong type, a value out of range, or a
        name that is no sampling field.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if "temp" in given and "temperature" in given:
            raise InvalidRequest("temp and temperature are one field: send one of them")
        for name, value in given.items():
            field = "temp" if name == "temperature" else name
            if field not in values:
                raise InvalidRequest(f"unknown field: {name!r:.80}")
            values[field] = _VALIDATORS[field](name, value)
        return SamplingParams(**values)


def integer(name: str, value: Any, low: int, high: int = MAX_INTEGER) -> int:
    """The value, if it is an integer in [low, high]; a boolean is none."""
    if type(value) is not int or not low <= value <= high:
        raise InvalidRequest(f"{name} must be an integer from {low} to {high}")
    return value


def number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    low: float = -math.inf,
    high: float = math.inf,
) -> float:
    """The value as a float, if it is a finite number > above, ≥ low and ≤ high."""
    wanted = [f"> {above:g}"] if above > -math.inf else []
    wanted += [f"≥ {low:g}"] if low > -math.inf else []
    wanted += [f"≤ {high:g}"] if high < math.inf else []
    sentence = f"{name} must be a number {' and '.join(wanted)}"
    if type(value) not in (int, float):
        raise InvalidRequest(sentence)
    try:
        result = float(value)
    except OverflowError:
        raise InvalidRequest(sentence) from None
    if not (math.isfinite(result) and above < result and low <= result <= high):
        raise InvalidRequest(sentence)
    return result


def text(name: str, value: Any) -> str:
    """The value, if it is a non-empty string that UTF-8 and the engines' C strings can hold."""
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{name} must be a string that is not empty")
    if "\0" in value:
        raise InvalidRequest(f"{name} must not contain the character U+0000")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name} must be valid Unicode: it has a lone surrogate") from None
    return value


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false")
    return value


def _seed(name: str, value: Any) -> int | None:
    return None if value is None else integer(name, value, 0, MAX_SEED)


def _stop(name: str, value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"{name} must be a string or a list of at most {MAX_STOP_STRINGS}")
    for string in strings:
        if len(text(name, string)) > MAX_STOP_LENGTH:
            raise InvalidRequest(f"{name}: a string must have at most {MAX_STOP_LENGTH} characters")
    return tuple(strings)


_VALIDATORS = {
    "num_predict": lambda name, value: integer(name, value, 1),
    "n_batch": lambda name, value: None if value is None else integer(name, value, 1),
    "top_k": lambda name, value: integer(name, value, 0),
    "top_p": lambda name, value: number(name, value, above=0, high=1),
    "temp": lambda name, value: number(name, value, low=0, high=1000),
    "repeat_penalty": lambda name, value: number(name, value, above=0, high=1000),
    "repeat_last_n": lambda name, value: integer(name, value, 0),
    "seed": _seed,
    "ignore_eos": _boolean,
    "stop": _stop,
}
