"""What forces an answer to be a call: a JSON Schema of {"name": …, "parameters": …}.

It has no marks around it, in no model's format: such an answer is read by a parser of
`ToolFormat.bare()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared.errors import InvalidRequest


def forced_call(tools: Sequence[Mapping[str, Any]], name: str | None = None) -> dict[str, Any]:
    """The schema of a call of any of `tools`, or of the one with this name.

    Raises InvalidRequest if there is none.
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
    """Where the parameters of a function are; llama.cpp follows no reference into a list."""
    return f"#/$defs/{place}"


def _call(name: str, place: int) -> dict[str, Any]:
    """The name comes before the parameters, also where a grammar sorts them."""
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "parameters": {"$ref": _home(place)}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """A schema at another place of a document, its references to itself with it."""
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
