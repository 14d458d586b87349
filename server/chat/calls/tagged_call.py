"""A call whose arguments are between tags instead of in JSON, of Qwen3-Coder's kind and of GLM's:

    <tool_call><function=weather><parameter=city>Bonn</parameter></function></tool_call>
    <tool_call>weather<arg_key>city</arg_key><arg_value>Bonn</arg_value></tool_call>

The type of a value is not written; the function's schema has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from server.chat.calls.syntax import (
    Arguments,
    CallSyntax,
    Complete,
    Cut,
    Name,
    NoCall,
    Schemas,
)
from server.chat.partial import overlap

OPENER = "<tool_call>"
CLOSER = "</tool_call>"
MAX_HEAD = 256
"""Characters in which a tagged call is told from other text."""


class TaggedCall(CallSyntax):
    """Begins after OPENER, and is read when CLOSER has come."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._pieces: list[str] = []
        self._last = ""
        """The last characters, which may be the beginning of CLOSER."""
        self._has_head = False
        """The text begins as only tagged calls do."""

    def feed(self, text: str) -> Iterator[Name | Arguments | Complete | NoCall]:
        self._pieces.append(text)
        last = self._last + text
        closer = last.find(CLOSER)
        if closer >= 0:
            whole = "".join(self._pieces)
            end = len(whole) - len(last) + closer
            yield from self._read(whole[:end], whole[end:])
            return
        self._last = last[1 - len(CLOSER) :]
        if not self._has_head:
            head = "".join(self._pieces)
            self._has_head = has_head(head)
            if not self._has_head and not may_be_tagged(
                head[: len(head) - overlap(head, [CLOSER])]
            ):
                yield NoCall("", head)

    def finish(self) -> Complete | Cut | NoCall:
        return NoCall("".join(self._pieces), "")

    def _read(self, inner: str, rest: str) -> Iterator[Name | Arguments | Complete | NoCall]:
        """CLOSER has come: `rest` begins with it."""
        call = from_tags(inner, self._schemas)
        if call is not None:
            yield Name(call[0])
            yield Arguments(call[1])
            yield Complete(rest)
        elif has_head(inner):
            yield NoCall(inner, rest)
        else:
            yield NoCall("", inner + rest)


def has_head(text: str) -> bool:
    """`text` begins as only tagged calls do."""
    return _HEAD.match(text, 0, MAX_HEAD) is not None


def may_be_tagged(text: str) -> bool:
    """`text`, which has no head, may become a tagged call when it goes on."""
    name, bracket, tag = text.strip().partition("<")
    if not name:
        return len(text) < MAX_HEAD and "<function=".startswith(bracket + tag)
    is_name = _WORD.fullmatch(name) is not None
    return len(text) < MAX_HEAD and is_name and "<arg_key>".startswith(bracket + tag)


def from_tags(text: str, schemas: Schemas) -> tuple[str, str] | None:
    """Name and arguments (JSON) of the call that `text` is; None: it is not a call.

    Only a function of `schemas` can be called, because a word alone is a call without arguments.
    """
    argument = _PARAMETER
    found = _FUNCTION.match(text)
    if found is None:
        argument = _KEY_AND_VALUE
        found = _WORD.match(text) if has_head(text) or len(text) < MAX_HEAD else None
    if found is None or (name := found[1].strip()) not in schemas:
        return None
    place, values = found.end(), {}
    body = text.rstrip().removesuffix("</function>") if argument is _PARAMETER else text
    while (given := argument.match(body, place)) is not None:
        key = given[1].strip()
        values[key] = _value(given[2], schemas[name], key)
        place = given.end()
    return None if body[place:].strip() else (name, json.dumps(values, ensure_ascii=False))


def _value(written: str, schema: Mapping[str, Any], key: str) -> Any:
    """The text, unless the schema has another type and the text is JSON."""
    properties = schema.get("properties")
    wanted = properties.get(key) if isinstance(properties, Mapping) else None
    if isinstance(wanted, Mapping) and wanted.get("type") == "string":
        return written
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return written


_HEAD = re.compile(r"\s*(?:<function=|[\w.-]+\s*<arg_key>)")
_WORD = re.compile(r"\s*([\w.-]+)\s*")
_FUNCTION = re.compile(r"\s*<function=([^<>\n]+)>")
# Atomic groups: a value ends at its first closing tag, and a text without one is read only once.
_PARAMETER = re.compile(r"\s*<parameter=([^<>\n]+)>\n?(?>(.*?)\n?</parameter>)", re.DOTALL)
_KEY_AND_VALUE = re.compile(
    r"\s*<arg_key>(?>(.*?)</arg_key>)\s*<arg_value>\n?(?>(.*?)\n?</arg_value>)", re.DOTALL
)
