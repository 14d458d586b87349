"""A call that is a JSON object: {"name": "weather", "arguments": {"city": "Bonn"}}.

In the usual order of the fields the call is reported as soon as its arguments begin, and these are
passed on as they come. In any other order the object is read when it is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from server.chat.calls.syntax import (
    Arguments,
    CallSyntax,
    Complete,
    Cut,
    Name,
    NoCall,
    ObjectEnd,
    Schemas,
)

MAX_HEAD = 512
"""Characters of an object in which the usual beginning of a call is looked for."""


class JsonCall(CallSyntax):
    """Begins at the object's bracket.

    `is_marked`: an opener was before it, so the function need not be one of `schemas`.
    """

    def __init__(self, schemas: Schemas, *, is_marked: bool) -> None:
        self._schemas = schemas
        self._is_marked = is_marked
        self._pieces: list[str] = []
        """All of the object until its arguments begin."""
        self._head = ""
        """The first MAX_HEAD characters of it."""
        self._object_end = ObjectEnd()
        self._arguments: ObjectArguments | None = None

    def feed(self, text: str) -> Iterator[Name | Arguments | Complete | NoCall]:
        if self._arguments is not None:
            yield from self._arguments.feed(text)
            return
        self._pieces.append(text)
        if len(self._head) < MAX_HEAD:
            self._head += text[: MAX_HEAD - len(self._head)]
            found = _HEAD.match(self._head)
            if found is not None and self._may_call(name := _unquoted(found[1])):
                yield Name(name)
                self._arguments = ObjectArguments()
                yield from self._arguments.feed("".join(self._pieces)[found.end() :])
                return
            if self._is_hopeless():
                yield NoCall("{", "".join(self._pieces)[1:])
                return
        end = self._object_end.feed(text)
        if end is not None:
            self._pieces[-1] = text[:end]
            yield from self._read("".join(self._pieces), text[end:])

    def finish(self) -> Complete | Cut | NoCall:
        if self._arguments is not None:
            return self._arguments.finish()
        return NoCall("".join(self._pieces), "")

    def _read(self, whole: str, rest: str) -> Iterator[Name | Arguments | Complete | NoCall]:
        """The object is complete."""
        call = _as_call(whole, self._schemas)
        if call is None or not self._may_call(call[0]):
            yield NoCall(whole, rest)
            return
        yield Name(call[0])
        yield Arguments(call[1])
        yield Complete(rest)

    def _is_hopeless(self) -> bool:
        """The object's first field is not one of a call."""
        first = _FIRST_NAME.match(self._head)
        if first is not None:
            return first[1] not in _CALL_FIELDS
        return len(self._head) == MAX_HEAD or _FIRST_BEGINNING.fullmatch(self._head) is None

    def _may_call(self, name: str) -> bool:
        return bool(name) and (self._is_marked or name in self._schemas)


class ObjectArguments:
    """The arguments of a JSON call, and the end of the object around them."""

    def __init__(self) -> None:
        self._end = ObjectEnd()
        self._is_tail = False
        self._tail: list[str] = []
        """What follows the arguments, until the bracket that ends the object around them."""
        self._has_comma = False

    def feed(self, text: str) -> Iterator[Arguments | Complete]:
        if not self._is_tail:
            end = self._end.feed(text)
            arguments = text if end is None else text[:end]
            if arguments:
                yield Arguments(arguments)
            if end is None:
                return
            self._is_tail = True
            text = text[end:]
        if text and (rest := self._after_tail(text)) is not None:
            yield Complete(rest)

    def finish(self) -> Complete | Cut:
        return Complete("".join(self._tail)) if self._is_tail else Cut()

    def _after_tail(self, text: str) -> str | None:
        """What follows the object's end, or all since the arguments' end if no bracket ends it;
        None: not known yet."""
        self._tail.append(text)
        start = 0
        if not self._has_comma:
            inner = text.lstrip()
            if not inner:
                return None
            if inner[0] == "}":
                return inner[1:]
            if inner[0] != ",":
                return "".join(self._tail)
            self._has_comma, start = True, len(text) - len(inner)
        found = _BRACE.search(text, start)
        if found is None:
            return None
        return text[found.end() :] if found[0] == "}" else "".join(self._tail)


_HEAD = re.compile(
    r'\{\s*(?:"(?:type|id|tool_call_id)"\s*:\s*"[^"\\]*"\s*,\s*)*'
    r'"(?:name|tool_name)"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""The usual beginning of a call, up to its arguments."""
_FIRST_NAME = re.compile(r'\{\s*"([^"\\]*)"')
_FIRST_BEGINNING = re.compile(r'\{\s*(?:"[^"\\]*)?')
_CALL_FIELDS = frozenset(
    ("arguments", "function", "id", "name", "parameters", "tool_call_id", "tool_name", "type")
)
_BRACE = re.compile(r"[{}]")


def _unquoted(text: str) -> str:
    """The value of a JSON string; empty if it is not valid."""
    try:
        return str(json.loads(text))
    except ValueError:
        return ""


def _as_call(text: str, names: Collection[str]) -> tuple[str, str] | None:
    """Name and arguments (JSON) of a call that is a complete object; None: it is not a call.

    A function in `names` may be called without arguments.
    """
    try:
        fields: Any = json.loads(text)
        if isinstance(fields.get("function"), dict):
            fields = fields["function"]
        name = fields.get("name", fields.get("tool_name", fields.get("function")))
        arguments = fields.get("arguments", fields.get("parameters"))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    if arguments is None and isinstance(name, str) and name in names:
        arguments = {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)
