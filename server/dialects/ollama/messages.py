"""Ollama's messages in the shape that server.chat takes."""

from __future__ import annotations

from typing import Any

from server.dialects.ollama.fields import plain_text
from shared.errors import InvalidRequest

KNOWN = ("role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id")
RENAMED = {"tool_name": "name", "thinking": "reasoning_content"}
"""Ours, and chat templates'."""


def read_messages(value: Any) -> list[dict[str, Any]]:
    """The messages; a content that is missing is empty. Raises InvalidRequest, naming the field."""
    if not isinstance(value, list):
        raise InvalidRequest("messages must be a list")
    return [_message(f"messages[{place}]", message) for place, message in enumerate(value)]


def _message(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object")
    for key in value:
        if key not in KNOWN:
            raise InvalidRequest(f"unknown field: {name}.{key:.80}")
    if value.get("images"):
        raise InvalidRequest(f"{name}.images is not supported: the models here read text only")
    if not isinstance(value.get("role"), str):
        raise InvalidRequest(f"{name}.role must be a string")
    result: dict[str, Any] = {
        str(RENAMED.get(key, key)): field
        for key, field in value.items()
        if field is not None and key != "images"
    }
    result["content"] = plain_text(f"{name}.content", result.get("content", ""))
    return result
