"""Ollama's messages in the shape that server.chat takes."""

from __future__ import annotations

from typing import Any

from server.chat.messages import checked_messages
from shared.errors import InvalidRequest

KNOWN = ("role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id")
RENAMED = {"tool_name": "name", "thinking": "reasoning_content"}
"""Ours, and chat templates'."""


def read_messages(value: Any) -> list[dict[str, Any]]:
    """The messages; a content that is missing is empty. Raises InvalidRequest, naming the field."""
    if not isinstance(value, list):
        raise InvalidRequest("messages must be a list")
    messages = [_message(f"messages[{place}]", message) for place, message in enumerate(value)]
    return checked_messages(messages) if messages else []


def _message(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object")
    for key in value:
        if key not in KNOWN:
            raise InvalidRequest(f"{name} has an unknown field: {key!r:.80}")
    if value.get("images"):
        raise InvalidRequest(f"{name}.images is not supported: the models here read text only")
    fields = {
        str(RENAMED.get(key, key)): given
        for key, given in value.items()
        if given is not None and key != "images"
    }
    return {"content": "", **fields}
