"""Checks a chat's messages and functions, and brings them into the form that templates expect.

In this form a content is a text or None, the arguments of a call are an object, and a call and its
result have an id. Fields that we do not know go to the template as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.chat.control_names import each_text
from shared.errors import InvalidRequest
from shared.validation import TEXT, Check, Schema, nullable, text

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""The roles of requests, with those of templates."""

Message = dict[str, Any]


def checked_messages(messages: Any) -> list[Message]:
    """New messages in the form of templates. Raises InvalidRequest, which names the field."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InvalidRequest("messages must be a list that is not empty")
    result = [_message(f"messages[{place}]", message) for place, message in enumerate(messages)]
    _name_calls(result)
    return result


def checked_tools(tools: Any) -> list[Message] | None:
    """New function definitions in the form of templates; None: there are none. Raises
    InvalidRequest."""
    if tools is None:
        return None
    if not isinstance(tools, (list, tuple)):
        raise InvalidRequest("tools must be a list")
    return [_tool(f"tools[{place}]", tool) for place, tool in enumerate(tools)] or None


def check_texts(name: str, value: Any) -> None:
    """Raises InvalidRequest if a text, at any depth, cannot be given to an engine."""
    each_text(value, lambda string: text(name, string) if string else None)


def merge_systems(messages: Sequence[Message], *, first: bool, later: bool) -> list[Message]:
    """Join the leading system messages, and move unsupported ones into the next user message.

    `first`: a leading system message is supported; `later`: others are.
    """
    result: list[Message] = []
    waiting: list[str] = []
    leading = _leading_systems(messages)
    if first and leading:
        result.append({"role": "system", "content": _paragraphs(leading)})
    else:
        waiting = leading
    for message in messages[len(leading) :]:
        if message["role"] == "system" and not later:
            waiting.append(message["content"] or "")
        elif message["role"] == "user" and waiting:
            result.append({**message, "content": _paragraphs([*waiting, message["content"]])})
            waiting = []
        else:
            result.append(message)
    return [*result, *([{"role": "user", "content": _paragraphs(waiting)}] if waiting else [])]


def _leading_systems(messages: Sequence[Message]) -> list[str]:
    texts = []
    for message in messages:
        if message["role"] != "system":
            break
        texts.append(message["content"] or "")
    return texts


def _paragraphs(texts: Sequence[str]) -> str:
    return "\n\n".join(part for part in texts if part)


def _message(name: str, message: Any) -> Message:
    fields = _object(name, message)
    check_texts(name, fields)
    role = fields.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequest(f"{name}.role must be one of {', '.join(ROLES)}")
    fields["role"] = ROLES[role]
    _check_names(name, fields, "name", "tool_call_id")
    _copy_reasoning(fields)
    calls = fields.pop("tool_calls", None)
    if calls:
        fields["tool_calls"] = _calls(f"{name}.tool_calls", calls, role)
    fields["content"] = _content(f"{name}.content", fields.get("content"))
    if fields["content"] is None and role != "assistant":
        raise InvalidRequest(f"{name}.content must be a string or a list of text parts")
    return fields


def _copy_reasoning(fields: Message) -> None:
    """Give a model's thoughts both names that templates use."""
    thought = next((fields[key] for key in _REASONING if isinstance(fields.get(key), str)), None)
    if thought is not None:
        fields["reasoning_content"] = fields["thinking"] = thought


_REASONING = ("reasoning_content", "thinking", "reasoning")


def _check_names(name: str, fields: Message, *keys: str) -> None:
    """Check names; drop those that are null."""
    for key in keys:
        if fields.get(key) is None:
            fields.pop(key, None)
        else:
            text(f"{name}.{key}", fields[key])


def _object(name: str, value: Any) -> Message:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidRequest(f"{name} must be an object")
    return dict(value)


def _content(name: str, content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise InvalidRequest(f"{name} must be a string or a list of text parts")
    return "\n".join(_part(f"{name}[{place}]", part) for place, part in enumerate(content))


def _part(name: str, part: Any) -> str:
    fields = _object(name, part)
    if fields.get("type") != "text":
        raise InvalidRequest(f'{name}.type must be "text": the model reads only text')
    if not isinstance(fields.get("text"), str):
        raise InvalidRequest(f"{name}.text must be a string")
    return str(fields["text"])


def _calls(name: str, calls: Any, role: str) -> list[Message]:
    if role != "assistant":
        raise InvalidRequest(f"{name}: only an assistant's message may have calls")
    if not isinstance(calls, (list, tuple)):
        raise InvalidRequest(f"{name} must be a list")
    return [_call(f"{name}[{place}]", call) for place, call in enumerate(calls)]


def _call(name: str, call: Any) -> Message:
    fields = _object(name, call)
    _check_names(name, fields, "id")
    function = _object(f"{name}.function", fields.get("function"))
    text(f"{name}.function.name", function.get("name"))
    function["arguments"] = _arguments(f"{name}.function.arguments", function.get("arguments"))
    return {**fields, "type": "function", "function": function}


def _arguments(name: str, arguments: Any) -> Message:
    """The arguments as an object: OpenAI's are JSON text, Ollama's an object."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise InvalidRequest(f"{name} must be an object or the JSON text of one") from None
        check_texts(name, arguments)
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise InvalidRequest(f"{name} must be an object or the JSON text of one")
    return dict(arguments)


def _tool(name: str, tool: Any) -> Message:
    fields = _object(name, tool)
    check_texts(name, fields)
    if fields.get("type", "function") != "function":
        raise InvalidRequest(f'{name}.type must be "function"')
    function = _object(f"{name}.function", fields.get("function"))
    text(f"{name}.function.name", function.get("name"))
    function["parameters"] = _object(
        f"{name}.function.parameters", function.get("parameters") or _NO_PARAMETERS
    )
    function.setdefault("description", "")
    return {**fields, "type": "function", "function": function}


_NO_PARAMETERS = {"type": "object", "properties": {}}


def _name_calls(messages: Sequence[Message]) -> None:
    """Give calls ids, and results the ids of their calls, where the client sent none.

    Some templates require ids of nine letters and digits.
    """
    names: dict[str, str] = {}
    open_ids: list[str] = []
    for call in _all_calls(messages):
        if "tool_calls" in call:
            for made in call["tool_calls"]:
                identity = made.setdefault("id", f"call{len(names):05d}")
                names[identity] = made["function"]["name"]
                open_ids.append(identity)
        else:
            identity = call.get("tool_call_id") or (open_ids[0] if open_ids else "call00000")
            call["tool_call_id"] = identity
            if identity in open_ids:
                open_ids.remove(identity)
            if identity in names:
                call.setdefault("name", names[identity])


def _all_calls(messages: Sequence[Message]) -> Iterator[Message]:
    for message in messages:
        if message["role"] == "tool" or "tool_calls" in message:
            yield message


_TEXT: Schema = {"type": "string", "pattern": "^[^\\u0000]*$"}
_ARGUMENTS: Schema = {"anyOf": [{"type": "object"}, {"type": "null"}, _TEXT]}
"""A text must be a JSON object, which a schema cannot express."""
_PART: Schema = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
}
CONTENT: Schema = {"anyOf": [_TEXT, {"type": "array", "items": _PART}]}
CALL: Schema = {
    "type": "object",
    "properties": {
        "id": nullable(TEXT.schema),
        "function": {
            "type": "object",
            "properties": {"name": TEXT.schema, "arguments": _ARGUMENTS},
            "required": ["name"],
        },
    },
    "required": ["function"],
}
MESSAGE: Schema = {
    "type": "object",
    "description": "Other fields are passed to the chat template.",
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": nullable(CONTENT),
        "name": nullable(TEXT.schema),
        "tool_call_id": nullable(TEXT.schema),
        "tool_calls": {"type": "array", "items": CALL},
    },
    "required": ["role"],
    "anyOf": [
        {"properties": {"role": {"const": "assistant"}}},
        {"properties": {"content": CONTENT}, "required": ["content"]},
    ],
}
MESSAGES: Check[list[Message]] = Check(
    {"type": "array", "items": MESSAGE, "minItems": 1}, lambda _, value: checked_messages(value)
).saying("The conversation. A last message of the assistant is continued.")
TOOL_LIST: Check[list[Message] | None] = Check(
    {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "properties": {
                        "name": TEXT.schema,
                        "description": _TEXT,
                        "parameters": nullable({"type": "object"}),
                    },
                    "required": ["name"],
                },
            },
            "required": ["function"],
        },
    },
    lambda _, value: checked_tools(value),
).saying("Functions that the model may call.")
