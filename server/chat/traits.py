"""Finds out what a chat template supports, by rendering small chats with it.

A template does not declare whether it supports a system prompt, functions or a content of null, nor
how it ends a turn. Most templates leave out what they do not support; some refuse it, some fail.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.chat.bounded_jinja import TemplateFailed
from server.chat.control_names import Remark
from server.chat.conversation import Message
from server.chat.template import Compile, Template


@dataclass(frozen=True, slots=True)
class ModelTemplate:
    """A template with the model's values for it."""

    template: Template
    bos: str
    eos: str
    no_tools: Sequence[Message] | None = None
    """The template's `tools` in a chat without functions."""

    def text(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        is_open: bool = True,
        variables: Mapping[str, Any] | None = None,
        rewritten: Remark | None = None,
    ) -> str:
        """The rendered chat. `is_open`: it ends where the assistant begins to write."""
        given = {
            **(variables or {}),
            "messages": messages,
            "tools": tools or self.no_tools,
            "documents": None,
            "add_generation_prompt": is_open,
            "bos_token": self.bos,
            "eos_token": self.eos,
        }
        return self.template.render(given, rewritten)


@dataclass(frozen=True, slots=True)
class CallTraits:
    """How a template expects an assistant's message with calls."""

    content: str | None
    """What replaces a content of null."""
    is_text: bool
    """The arguments are JSON text, not an object."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a template supports."""

    system: bool
    """A system message at the beginning."""
    later_system: bool
    """System messages after others."""
    tools: bool
    """Definitions of functions."""
    calls: CallTraits | None
    """None: it does not render calls, or not their results."""


def traits(template: ModelTemplate) -> Traits:
    """What the template supports."""
    has_system = _shows(template, [_SYSTEM, _USER], "Gerund", "Umlaut")
    first = [_SYSTEM, _USER] if has_system else [_USER]
    has_tools = _shows(template, [_USER], "Umlaut", "find_ablative", tools=[_TOOL])
    return Traits(
        has_system,
        _shows(template, [*first, _ASSISTANT, _LATER, _LAST], "Locative", "Supine"),
        has_tools,
        _calls(template, [_TOOL] if has_tools else None),
    )


def working_template(compiled: Compile, source: str, bos: str, eos: str) -> ModelTemplate:
    """The template, if it renders a user's message. Raises TemplateFailed.

    Without functions most templates expect None, as from transformers; some expect a list.
    """
    template = ModelTemplate(compiled(source), bos, eos)
    try:
        text = template.text([_USER])
    except TemplateFailed as failure:
        template = replace(template, no_tools=[])
        if not _shows(template, [_USER], "Umlaut"):
            raise failure from None
        return template
    if "Umlaut" not in text:
        raise TemplateFailed("it leaves out the user's messages")
    return template


def turn_end(template: ModelTemplate, control: Collection[str]) -> tuple[str, ...]:
    """The text that ends an answer, in a tuple; empty: a control token ends it, or nothing is
    known.

    It is the first mark or line that the template writes after an answer.
    """
    try:
        text = template.text([_USER, _ASSISTANT, _LAST], is_open=False)
    except TemplateFailed:
        return ()
    _, _, after = text.partition("Aorist")
    between, found, _ = after.partition("Supine")
    end = _FIRST_MARK.match(between.strip())
    if not found or end is None or any(name in between for name in control):
        return ()
    is_word = end[0][0].isalnum() and between.lstrip(" ").startswith("\n")
    return (f"\n{end[0]}" if is_word else end[0],)


_FIRST_MARK = re.compile(r"<[^<>\n]+>|\[[^\[\]\n]+\]|[^\n]*\S")
"""A name in brackets, or a line."""

# Chats of words that are in no template.
_SYSTEM = {"role": "system", "content": "Gerund"}
_USER = {"role": "user", "content": "Umlaut"}
_ASSISTANT = {"role": "assistant", "content": "Aorist"}
_LATER = {"role": "system", "content": "Locative"}
_LAST = {"role": "user", "content": "Supine"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "find_ablative",
        "description": "Find one.",
        "parameters": {
            "type": "object",
            "properties": {"noun": {"type": "string", "description": "A noun."}},
            "required": ["noun"],
        },
    },
}
_RESULT = {
    "role": "tool",
    "name": "find_ablative",
    "tool_call_id": "call00000",
    "content": "Dative",
}


def _calls(template: ModelTemplate, tools: Sequence[Message] | None) -> CallTraits | None:
    for content in (None, ""):
        for is_text in (False, True):
            arguments: Any = '{"noun": "Vocative"}' if is_text else {"noun": "Vocative"}
            function = {"name": "find_ablative", "arguments": arguments}
            call = {"id": "call00000", "type": "function", "function": function}
            message = {"role": "assistant", "content": content, "tool_calls": [call]}
            if _shows(
                template,
                [_USER, message, _RESULT],
                *("Vocative", "Dative"),
                without=("None", "'Vocative'", '\\"Vocative'),
                tools=tools,
            ):
                return CallTraits(content, is_text)
    return None


def _shows(
    template: ModelTemplate,
    messages: Sequence[Message],
    *words: str,
    without: Sequence[str] = (),
    tools: Sequence[Message] | None = None,
) -> bool:
    try:
        text = template.text(messages, tools=tools)
    except TemplateFailed:
        return False
    after = text[max(text.find("Umlaut"), 0) :]  # descriptions of functions are mostly before it
    return all(word in text for word in words) and not any(word in after for word in without)
