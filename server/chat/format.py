"""Turns a chat's messages into the prompt of its model, with a Jinja template.

The template is the model's own, a built-in one or a file. What the template does not support is
replaced: see server.chat.traits. Clients cannot write control tokens: see
server.chat.control_names.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.chat.bounded_jinja import ChatTemplate, TemplateFailed, TemplateRefused
from server.chat.calls.tool_format import ToolFormat, tool_format
from server.chat.control_names import ControlNames, changed, cut_at, unused_marks
from server.chat.conversation import (
    Message,
    check_texts,
    checked_messages,
    checked_tools,
    merge_systems,
)
from server.chat.template import Compile
from server.chat.tool_prompt import with_tools, with_written_calls
from server.chat.traits import ModelTemplate, Traits, traits, turn_end, working_template
from shared.errors import ConfigurationError, InvalidRequest
from shared.prompt import Prompt
from shared.values import ModelCard

MODEL_OWN = "the model's own"
GUESS = "plain"
_FOLDER = Path(__file__).parent / "templates"
_OURS = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """Turns chats into prompts of one model."""

    name: str
    """"the model's own", a name of `built_in_names`, or a file."""
    is_guess: bool
    """The model has no template and none was chosen."""
    stop: tuple[str, ...]
    """Texts that end an answer; empty if a control token does."""
    takes_tools: bool
    """The template describes functions. False: a system prompt describes them."""
    tool_format: ToolFormat
    """The format of calls in an answer."""
    _template: ModelTemplate
    _traits: Traits
    _names: ControlNames

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continues: bool = False,
        is_open: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt. Raises InvalidRequest, which names the field or quotes the template.

        `continues`: the last message is an assistant's, and the answer continues it. `is_open`:
        the prompt ends where the assistant begins to write; False: with the last message.
        `variables`: for the template, such as `enable_thinking`.
        """
        chat, functions = checked_messages(messages), checked_tools(tools)
        given = _checked_variables(variables or {})
        if continues:
            _check_last(chat[-1])
        if functions and not self.takes_tools:
            chat, functions = with_tools(chat, functions), None
        chat = self._fitted(chat)
        template = self._template.template
        mark, end = unused_marks((chat, functions, given, template.source), 2)
        change = functools.partial(self._names.marked, mark=mark, words=template.words)
        chat = [_marked_message(message, change) for message in chat]
        if continues:
            chat[-1]["content"] += end
        text = self._text(
            chat,
            tools=functions and [_marked_typed(tool, change) for tool in functions],
            is_open=is_open and not continues,
            variables=changed(given, change),
            rewritten=self._names.remark(mark),
        )
        if continues:
            text, found, _ = text.rpartition(end)
            if not found:
                raise InvalidRequest("the model's chat template cannot continue a message")
        text, cuts = cut_at(text.replace(end, ""), mark)
        if not text:
            raise InvalidRequest("the model's chat template renders these messages as empty text")
        return Prompt(text, cuts, is_whole=True)

    def _fitted(self, chat: Sequence[Message]) -> list[Message]:
        """The chat in a form that the template supports."""
        calls = self._traits.calls
        if calls is None:
            chat = with_written_calls(chat)
        else:
            chat = [_fit_calls(message, calls.content, calls.is_text) for message in chat]
        chat = [{**message, "content": ""} if _is_void(message) else message for message in chat]
        return merge_systems(chat, first=self._traits.system, later=self._traits.later_system)

    def _text(self, chat: Sequence[Message], **options: Any) -> str:
        try:
            return self._template.text(chat, **options)
        except TemplateRefused as refusal:
            raise InvalidRequest(f"the model's chat template refuses: {refusal}") from None
        except TemplateFailed as failure:
            raise InvalidRequest(f"the model's chat template fails: {failure}") from None


def chat_format(
    card: ModelCard, chosen: str | None, compiled: Compile = ChatTemplate
) -> ChatFormat:
    """The chat format of a model.

    `chosen`: the name of a built-in template, or a file (--chat-template). None: the model's own
    template, or a guess if it has none or one that does not work. `compiled` makes all templates
    but the built-in ones. Raises ConfigurationError for a choice that does not work.
    """
    if chosen is not None:
        made = ChatTemplate if chosen in built_in_names() else compiled
        template = _model_template(made, _source(chosen), card, chosen)
        return _format(template, card, chosen, is_guess=False)
    if card.chat_template:
        try:
            template = _model_template(compiled, card.chat_template, card, MODEL_OWN)
            return _format(template, card, MODEL_OWN, is_guess=False)
        except ConfigurationError as error:
            _logger.warning("%s; the format %r is used instead", error, GUESS)
    template = _model_template(ChatTemplate, _source(GUESS), card, GUESS)
    return _format(template, card, GUESS, is_guess=True)


def built_in_names() -> list[str]:
    """The names of the built-in templates, for --chat-template."""
    return sorted(path.stem for path in _FOLDER.glob("*.jinja"))


def _source(chosen: str) -> str:
    path = _FOLDER / f"{chosen}.jinja" if chosen in built_in_names() else Path(chosen)
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"--chat-template: {chosen!r} is neither a file nor one of"
            f" {', '.join(built_in_names())}"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"--chat-template: {chosen} cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"--chat-template: {chosen} is not UTF-8") from None


def _model_template(compiled: Compile, source: str, card: ModelCard, name: str) -> ModelTemplate:
    try:
        return working_template(compiled, source, card.bos, card.eos)
    except TemplateFailed as failure:
        raise ConfigurationError(f"the chat template ({name}) does not work: {failure}") from None


def _format(template: ModelTemplate, card: ModelCard, name: str, *, is_guess: bool) -> ChatFormat:
    found = traits(template)
    control = {*card.control, card.bos, card.eos} - {""}
    return ChatFormat(
        name,
        is_guess,
        turn_end(template, control),
        found.tools,
        tool_format(template.template.source if found.tools else "<tool_call>", control),
        template,
        found,
        ControlNames.of(control),
    )


def _check_last(message: Message) -> None:
    if message["role"] != "assistant" or "tool_calls" in message or message["content"] is None:
        raise InvalidRequest("messages: only a text of the assistant at the end can be continued")


def _checked_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    check_texts("the template's variables", variables)
    for name in variables:
        if name in _OURS:
            sentence = f"a request cannot set the template's variable {name}"
            raise InvalidRequest(sentence, "chat_template_kwargs")
    return dict(variables)


def _is_void(message: Message) -> bool:
    return message["content"] is None and "tool_calls" not in message


def _fit_calls(message: Message, content: str | None, is_text: bool) -> Message:
    if "tool_calls" not in message:
        return message
    calls = message["tool_calls"]
    if is_text:
        calls = [{**call, "function": _with_text(call["function"])} for call in calls]
    return {**message, "content": message["content"] or content, "tool_calls": calls}


def _with_text(function: Message) -> Message:
    return {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}


def _marked_message(message: Message, change: Callable[[str], str]) -> Message:
    """The message with marks, but not in values that clients cannot choose freely."""
    marked = {**changed(message, change), "role": message["role"]}
    if "tool_calls" in message:
        marked["tool_calls"] = [_marked_typed(call, change) for call in message["tool_calls"]]
    return marked


def _marked_typed(value: Message, change: Callable[[str], str]) -> Message:
    marked: Message = {**changed(value, change), "type": value["type"]}
    return marked
