"""What a chat template can do, found out by rendering small chats with it.

Templates do not say whether they take a system prompt, functions or a content of null, and how they
end a turn. Most that do not take something leave it out, some refuse, some fail.
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
    """A template with what it is given of the model."""

    template: Template
    bos: str
    eos: str
    no_tools: Sequence[Message] | None = None
    """What it is given where there are no functions."""

    def text(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        is_open: bool = True,
        variables: Mapping[str, Any] | None = None,
        rewritten: Remark | None = None,
    ) -> str:
        """The chat as a text; `is_open`: up to where the assistant begins to write."""
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
    """How a template wants the calls of an assistant's message."""

    content: str | None
    """What it wants for a content of null."""
    is_text: bool
    """It wants the arguments as a JSON text, not as an object."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a template takes."""

    system: bool
    """A system's message in front."""
    later_system: bool
    """One in the middle."""
    tools: bool
    calls: CallTraits | None
    """None: it shows no calls, or no results of them."""


def traits(template: ModelTemplate) -> Traits:
    """Try it all."""
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
    """One that renders a user's message. Raises TemplateFailed.

    Most templates expect no functions to be None, as transformers has it; some a list.
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
        raise TemplateFailed("it leaves out what a user writes")
    return template


def turn_end(template: ModelTemplate, control: Collection[str]) -> tuple[str, ...]:
    """The text with which an answer ends, if no control token ends it; at most one.

    It is what the template puts first between an answer and the next message.
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

# Words that stand in no template.
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
    after = text[max(text.find("Umlaut"), 0) :]  # what describes functions is mostly before
    return all(word in text for word in words) and not any(word in after for word in without)
