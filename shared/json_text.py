"""How all JSON of answers and log lines is written: on one line for every reader of lines.

JSON allows U+0085, U+2028 and U+2029 in its strings as they are. Python's `str.splitlines`, and
with it the line iterators of httpx and requests, ends a line at each of them, which breaks NDJSON
and server-sent events. They are therefore written as escapes, as JSON writes all other line ends.
"""

from __future__ import annotations

import json
from typing import Any

LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Characters at which `str.splitlines` ends a line, besides \\r and \\n."""
ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in LINE_ENDS}
"""For `str.translate`."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
"""Made once: a stream has a chunk for each token."""


def on_one_line(text: str) -> str:
    """JSON without line ends, in which they are escapes."""
    return text if text.isascii() else text.translate(ESCAPES)


def to_json(value: Any) -> bytes:
    """The value's JSON in UTF-8, on one line and without spaces. A lone surrogate is an escape."""
    return on_one_line(_ENCODER.encode(value)).encode(errors="backslashreplace")


def json_line(value: Any) -> bytes:
    """The value's JSON and a newline."""
    return to_json(value) + b"\n"
