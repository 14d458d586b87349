"""Parses a request's body as a JSON object, strictly: ambiguous JSON is an error."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from shared.errors import InvalidRequest

MAX_NUMBER_LENGTH = 400
"""Characters of an integer. The longest float64, written in full, has 325 digits."""


def parse_object(body: bytes) -> dict[str, Any]:
    """The object in `body`. Raises InvalidRequest and no other exception."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: byte {error.start} is not") from None
    if not text.strip():
        raise InvalidRequest("the body is empty; it must be a JSON object")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_parse_integer,
        )
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise InvalidRequest("the body is not accepted: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidRequest(f"the field {twice!r:.80} appears twice", field=twice)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the body is not JSON: {name} is not a JSON number")


def _parse_integer(digits: str) -> int:
    if len(digits) > MAX_NUMBER_LENGTH:
        raise InvalidRequest(f"a number of {len(digits)} digits is too long")
    return int(digits)
