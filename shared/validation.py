"""Checks of request fields. Each returns the value, or raises InvalidRequest.

The message names the field and its range. A Check also has a JSON Schema, so the published
description is what is checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from shared.errors import InvalidRequest

MAX_INTEGER = 2**31 - 1
Schema = Mapping[str, Any]
"""A JSON Schema."""
NULL: Schema = {"type": "null"}

T = TypeVar("T", covariant=True)


@dataclass(frozen=True, slots=True)
class Check(Generic[T]):
    """A field's type and range. Call it with (name, value): it returns the parsed value, or raises
    InvalidRequest."""

    schema: Schema
    """Describes the accepted values. It may allow more: a schema cannot express everything."""
    read: Callable[[str, Any], T]

    def __call__(self, name: str, value: Any) -> T:
        return self.read(name, value)

    def saying(self, description: str) -> Check[T]:
        """A copy whose schema has this description."""
        return replace(self, schema={**self.schema, "description": description})


def integers(low: int, high: int = MAX_INTEGER) -> Check[int]:
    """See `integer`."""
    return Check(
        {"type": "integer", "minimum": low, "maximum": high},
        lambda name, value: integer(name, value, low, high),
    )


def numbers(
    *, above: float = -math.inf, low: float = -math.inf, high: float = math.inf
) -> Check[float]:
    """See `number`."""
    limits = {"exclusiveMinimum": above, "minimum": low, "maximum": high}
    return Check(
        {"type": "number"} | {name: end for name, end in limits.items() if math.isfinite(end)},
        lambda name, value: number(name, value, above=above, low=low, high=high),
    )


def texts_of(count: int, length: int) -> Check[tuple[str, ...]]:
    """See `texts`."""
    one = {**TEXT.schema, "maxLength": length}
    return Check(
        {"anyOf": [one, {"type": "array", "items": one, "maxItems": count}]},
        lambda name, value: texts(name, value, count, length),
    )


def or_none(check: Check[T]) -> Check[T | None]:
    """As `check`, but null is accepted too, as None."""
    return Check(
        nullable(check.schema), lambda name, value: None if value is None else check(name, value)
    )


def nullable(schema: Schema) -> Schema:
    """A schema of the same values and null."""
    several = schema["anyOf"] if schema.keys() == {"anyOf"} else [schema]
    return {"anyOf": several if NULL in several else [*several, NULL]}


def integer(name: str, value: Any, low: int, high: int = MAX_INTEGER) -> int:
    """The value, if it is an integer in [low, high]. A boolean is not accepted."""
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


def boolean(name: str, value: Any) -> bool:
    """The value, if it is true or false. 0 and 1 are not accepted."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false")
    return value


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


def texts(name: str, value: Any, count: int, length: int) -> tuple[str, ...]:
    """A string, or a list of at most `count` strings, as a tuple; each has at most `length`
    characters."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or len(strings) > count:
        raise InvalidRequest(f"{name} must be a string or a list of at most {count}")
    for string in strings:
        if len(text(name, string)) > length:
            raise InvalidRequest(f"{name}: a string must have at most {length} characters")
    return tuple(strings)


BOOLEAN: Check[bool] = Check({"type": "boolean"}, boolean)
TEXT: Check[str] = Check({"type": "string", "minLength": 1, "pattern": "^[^\\u0000]+$"}, text)
