"""What a token brings: thoughts, text, and calls of functions, which leave when they are whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.chat.tool_calls import (
    CallArguments,
    CallEnd,
    CallStart,
    Text,
    ToolCallParser,
    ToolEvent,
    ToolFormat,
    overlap,
)

THINK, THOUGHT = "<think>", "</think>"
"""Around what a model thinks, before its answer."""


@dataclass(slots=True)
class Part:
    """A share of an answer."""

    text: str = ""
    thinking: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Part) -> None:
        self.text += other.text
        self.thinking += other.thinking
        self.calls += other.calls
        self.logprobs += other.logprobs

    def is_empty(self) -> bool:
        return not (self.text or self.thinking or self.calls or self.logprobs)


class TextReader:
    """Of an answer that calls nothing."""

    def feed(self, text: str) -> Part:
        """What the next piece of text brings."""
        return Part(text)

    def finish(self) -> Part:
        """What the end brings."""
        return Part()


class CallReader(TextReader):
    """Of an answer that may call `tools`, as server.chat.conversation has them."""

    def __init__(self, form: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> None:
        self._parser = ToolCallParser(form, tools)
        self._call = CallStart(0, "", "")
        self._arguments = ""

    def feed(self, text: str) -> Part:
        return self._part(self._parser.feed(text))

    def finish(self) -> Part:
        return self._part(self._parser.finish())

    def _part(self, events: Sequence[ToolEvent]) -> Part:
        part = Part()
        for event in events:
            match event:
                case Text(text=text):
                    part.text += text
                case CallStart():
                    self._call, self._arguments = event, ""
                case CallArguments(text=text):
                    self._arguments += text
                case CallEnd():
                    part.add(self._ended(event))
        return part

    def _ended(self, end: CallEnd) -> Part:
        """A call; what is none after all, cut or no JSON, is a text again."""
        name = self._call.name
        try:
            if end.is_complete:
                function = {"name": name, "arguments": json.loads(self._arguments)}
                return Part(calls=[{"id": self._call.id, "function": function}])
        except (ValueError, RecursionError):
            pass
        shown = json.dumps(name, ensure_ascii=False)
        return Part(f'{{"name": {shown}, "arguments": {self._arguments}')


class ThinkingReader(TextReader):
    """Of an answer that may begin with thoughts; `answer` reads what follows them.

    `is_thinking`: the prompt ends within them.
    """

    def __init__(self, answer: TextReader, *, is_thinking: bool) -> None:
        self._answer = answer
        self._state = self._thoughts if is_thinking else self._beginning
        self._held = ""

    def feed(self, text: str) -> Part:
        return self._state(text)

    def finish(self) -> Part:
        """What is held can be part of a mark no more."""
        held, self._held = self._held, ""
        part = Part(thinking=held) if self._state == self._thoughts else self._answer.feed(held)
        part.add(self._answer.finish())
        return part

    def _beginning(self, text: str) -> Part:
        """Before anything but white space."""
        self._held += text
        inner = self._held.lstrip()
        if inner.startswith(THINK):
            self._held, self._state = "", self._thoughts
            return self._thoughts(inner.removeprefix(THINK))
        if THINK.startswith(inner):
            return Part()
        held, self._held, self._state = self._held, "", self._answer.feed
        return self._answer.feed(held)

    def _thoughts(self, text: str) -> Part:
        thoughts, end, answer = (self._held + text).partition(THOUGHT)
        if end:
            self._held, self._state = "", self._after
            part = self._after(answer)
            part.thinking = thoughts
            return part
        ready = len(thoughts) - overlap(thoughts, (THOUGHT,))
        self._held = thoughts[ready:]
        return Part(thinking=thoughts[:ready])

    def _after(self, text: str) -> Part:
        """White space between thoughts and the answer is neither's."""
        answer = text.lstrip()
        if not answer:
            return Part()
        self._state = self._answer.feed
        return self._answer.feed(answer)
