"""The JSON Schema that forces an answer to be a call: {"name": …, "parameters": …}.

Such an answer has no marks, whatever the model's format; a parser for `ToolFormat.bare()` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared.errors import InvalidRequest


def forced_call(tools: Sequence[Mapping[str, Any]], name: str | None = None) -> dict[str, Any]:
    """The schema of a call of any of `tools`, or of the function with this name.

    Raises InvalidRequest if no function has the name.
    """
    functions = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    if not functions:
        raise InvalidRequest(f"tool_choice: no function in tools is named {name!r:.80}")
    calls = [_call(function["name"], place) for place, function in enumerate(functions)]
    parameters = {
        str(place): _moved(function.get("parameters") or {"type": "object"}, _home(place))
        for place, function in enumerate(functions)
    }
    return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), "$defs": parameters}


def _home(place: int) -> str:
    """The reference to a function's parameters; llama.cpp follows no reference into a list."""
    return f"#/$defs/{place}"


def _call(name: str, place: int) -> dict[str, Any]:
    """The name comes before the parameters, also if a grammar sorts them."""
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "parameters": {"$ref": _home(place)}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """A copy of the schema for another place of a document, with its own references adapted."""
    if isinstance(schema, Mapping):
        return {
            key: place + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, place)
            for key, value in schema.items()
        }
    if isinstance(schema, (list, tuple)):
        return [_moved(member, place) for member in schema]
    return schema
