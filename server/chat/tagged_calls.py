"""Calls whose arguments are between tags instead of in JSON: of Qwen3-Coder's kind and of GLM's.

    <function=weather><parameter=city>Bonn</parameter></function>
    weather<arg_key>city</arg_key><arg_value>Bonn</arg_value>

A value's type is not written down; the function's schema has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

Schemas = Mapping[str, Mapping[str, Any]]
"""The parameters' JSON Schema of each function."""

_FUNCTION = re.compile(r"\s*<function=([^<>\n]+)>(.*?)(?:</function>)?\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^<>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_NAMED = re.compile(r"\s*([\w.-]+)\s*((?:<arg_key>.*)?)", re.DOTALL)
_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>\n?(.*?)\n?</arg_value>", re.DOTALL)
_BEGINNING = re.compile(r"\s*(?:<function=.*|[\w.-]+\s*(?:<arg_key>.*)?)", re.DOTALL)
_SHORT = ("<function=", "<arg_key>")


def may_be_tagged(text: str) -> bool:
    """`text` may become a call when it goes on."""
    if _BEGINNING.fullmatch(text):
        return True
    head, bracket, tag = text.strip().partition("<")
    is_function, is_named = (begin.startswith(bracket + tag) for begin in _SHORT)
    return is_named if head else is_function


def from_tags(text: str, schemas: Schemas) -> tuple[str, str] | None:
    """The name and the arguments, as a JSON text; None: `text` is no such call.

    Only of a function that is there, because a word alone is a call without arguments.
    """
    for whole, argument in ((_FUNCTION, _PARAMETER), (_NAMED, _ARGUMENT)):
        found = whole.fullmatch(text)
        if found is not None and (name := found[1].strip()) in schemas:
            if argument.sub("", found[2]).strip():
                return None
            values = {
                key.strip(): _value(value, schemas[name], key.strip())
                for key, value in argument.findall(found[2])
            }
            return name, json.dumps(values, ensure_ascii=False)
    return None


def _value(written: str, schema: Mapping[str, Any], key: str) -> Any:
    """A text, unless its type is another and it is written as JSON writes that."""
    properties = schema.get("properties")
    wanted = properties.get(key) if isinstance(properties, Mapping) else None
    if isinstance(wanted, Mapping) and wanted.get("type") == "string":
        return written
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return written
