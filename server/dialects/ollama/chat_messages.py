"""Ollama's messages, in the form of server.chat.conversation."""

from __future__ import annotations

from typing import Any

from server.chat.conversation import CALL, CONTENT, ROLES, checked_messages
from shared.errors import InvalidRequest
from shared.validation import TEXT, Check, Schema, nullable

KNOWN = ("role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id")
RENAMED = {"tool_name": "name", "thinking": "reasoning_content"}
"""The fields that have other names in chat templates."""


def read_messages(name: str, value: Any) -> list[dict[str, Any]]:
    """The messages; a missing content is empty. Raises InvalidRequest, which names the field."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} must be a list")
    messages = [_message(f"{name}[{place}]", message) for place, message in enumerate(value)]
    return checked_messages(messages) if messages else []


def _message(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object")
    for key in value:
        if key not in KNOWN:
            raise InvalidRequest(f"{name} has an unknown field: {key!r:.80}")
    if value.get("images"):
        raise InvalidRequest(f"{name}.images is not supported: the models read only text")
    fields = {
        str(RENAMED.get(key, key)): given
        for key, given in value.items()
        if given is not None and key != "images"
    }
    return {"content": "", **fields}


_MESSAGE: Schema = {
    "type": "object",
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": nullable(CONTENT),
        "thinking": nullable({"type": "string", "pattern": "^[^\\u0000]*$"}),
        "images": {"enum": [[], None]},
        "tool_calls": nullable({"type": "array", "items": CALL}),
        "tool_name": nullable(TEXT.schema),
        "tool_call_id": nullable(TEXT.schema),
    },
    "required": ["role"],
    "additionalProperties": False,
}
MESSAGES: Check[list[dict[str, Any]]] = Check(
    {"type": "array", "items": _MESSAGE}, read_messages
).saying("The conversation. A last message of the assistant is continued.")
