"""Reading JSON values and error messages out of answers."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

from scripts.load.errors import ERROR_EVENT, WRONG, StreamFailure

SHOWN_LENGTH = 300
"""Characters of an answer that an error message shows at most."""


class Reading:
    """A context that turns a value of an unexpected shape into a StreamFailure."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(value, KeyError | TypeError | AttributeError):
            raise wrong(f"not of this format: {shown(self._data)}") from value


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object. Raises StreamFailure for anything else."""
    try:
        value = json.loads(data)
    except ValueError:
        raise wrong(f"not JSON: {shown(data)}") from None
    if not isinstance(value, dict):
        raise wrong(f"not an object: {shown(data)}")
    return value


def wrong(detail: str) -> StreamFailure:
    """A failure because of the answer's content."""
    return StreamFailure(WRONG, detail)


def error_event(error: Any) -> StreamFailure:
    """A failure that the server reports within the answer."""
    return StreamFailure(ERROR_EVENT, error_message(error))


def error_message(error: Any) -> str:
    """The message of an `error` value: a string, or an object with a message."""
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:SHOWN_LENGTH]


def refusal(body: bytes) -> str:
    """The message in the body of an HTTP error, in any format."""
    text = body.decode(errors="replace").strip()
    try:
        return error_message(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text[:SHOWN_LENGTH] or "no message"


def shown(data: bytes) -> str:
    """The beginning of the data, on one line."""
    return repr(data.decode(errors="replace")[:SHOWN_LENGTH])
