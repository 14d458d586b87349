"""Describes functions in the system prompt, for models whose chat template does not support them.

The prompt asks the model to write calls in the form that server.chat.calls.json_call reads. Earlier
calls and their results are written in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from server.chat.conversation import Message


def with_tools(messages: Sequence[Message], tools: Sequence[Message]) -> list[Message]:
    """The messages, with a system message that describes the functions."""
    functions = "\n".join(_json(tool["function"]) for tool in tools)
    system = (
        "You can call these functions, each described by a line of JSON:\n"
        f"{functions}\n"
        "To call one, write its name and its arguments as JSON between tags, and nothing else:\n"
        '<tool_call>{"name": "…", "arguments": {…}}</tool_call>\n'
        "The results come in the next message. Call no function that you do not need."
    )
    return [*_leading(messages), {"role": "system", "content": system}, *_others(messages)]


def with_written_calls(messages: Sequence[Message]) -> list[Message]:
    """The messages, with calls as texts of the assistant and results as texts of the user.

    Consecutive results become one message, because many templates require alternating roles.
    """
    result: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            if result and result[-1].get("is_results"):
                result[-1]["content"] += f"\n{content}"
            else:
                result.append({"role": "user", "content": content, "is_results": True})
        elif "tool_calls" in message:
            result.append(_written(message))
        else:
            result.append(message)
    return [{key: value for key, value in m.items() if key != "is_results"} for m in result]


def _written(message: Message) -> Message:
    calls = [
        f"<tool_call>{_json({key: call['function'][key] for key in ('name', 'arguments')})}"
        "</tool_call>"
        for call in message["tool_calls"]
    ]
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**others, "content": "\n".join(filter(None, (message["content"], *calls)))}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _leading(messages: Sequence[Message]) -> Sequence[Message]:
    return messages[: len(messages) - len(_others(messages))]


def _others(messages: Sequence[Message]) -> Sequence[Message]:
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    return messages[first:]
