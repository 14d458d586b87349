"""What a token adds to an answer: thoughts, text, and function calls, which are sent whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from server.chat.calls.events import CallArguments, CallEnd, CallStart, Text, ToolEvent
from server.chat.calls.parser import ToolCallParser
from server.chat.calls.tool_format import ToolFormat
from server.chat.partial import overlap

THINK, THOUGHT = "<think>", "</think>"
"""The marks around a model's thoughts, which come before its answer."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer."""

    text: str = ""
    thinking: str = ""
    calls: Sequence[dict[str, Any]] = ()
    logprobs: Sequence[dict[str, Any]] = ()

    def is_empty(self) -> bool:
        return not (self.text or self.thinking or self.calls or self.logprobs)


def joined(parts: Sequence[Part]) -> Part:
    """The parts as one."""
    return Part(
        "".join(part.text for part in parts),
        "".join(part.thinking for part in parts),
        list(chain.from_iterable(part.calls for part in parts)),
        list(chain.from_iterable(part.logprobs for part in parts)),
    )


class TextReader:
    """Reads an answer without calls."""

    def feed(self, text: str) -> Part:
        """What the next piece of text adds."""
        return Part(text)

    def finish(self) -> Part:
        """What the end of the text adds."""
        return Part()


class CallReader(TextReader):
    """Reads an answer that may call `tools`, as server.chat.conversation checks them."""

    def __init__(self, form: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> None:
        self._parser = ToolCallParser(form, tools)
        self._call = CallStart(0, "", "")
        self._arguments: list[str] = []

    def feed(self, text: str) -> Part:
        return self._part(self._parser.feed(text))

    def finish(self) -> Part:
        return self._part(self._parser.finish())

    def _part(self, events: Sequence[ToolEvent]) -> Part:
        parts = []
        for event in events:
            match event:
                case Text(text=text):
                    parts.append(Part(text))
                case CallStart():
                    self._call, self._arguments = event, []
                case CallArguments(text=text):
                    self._arguments.append(text)
                case CallEnd():
                    parts.append(self._ended(event))
        return joined(parts)

    def _ended(self, end: CallEnd) -> Part:
        """The call; as text if it is incomplete or its arguments are not JSON."""
        name, arguments = self._call.name, "".join(self._arguments)
        try:
            if end.is_complete:
                function = {"name": name, "arguments": json.loads(arguments)}
                return Part(calls=[{"id": self._call.id, "function": function}])
        except (ValueError, RecursionError):
            pass
        shown = json.dumps(name, ensure_ascii=False)
        return Part(f'{{"name": {shown}, "arguments": {arguments}')


class ThinkingReader(TextReader):
    """Reads an answer that may begin with thoughts; `answer` reads what follows them.

    `is_thinking`: the prompt ends within the thoughts.
    """

    def __init__(self, answer: TextReader, *, is_thinking: bool) -> None:
        self._answer = answer
        self._state = self._thoughts if is_thinking else self._beginning
        self._space: list[str] = []
        """The white space before anything else."""
        self._held = ""
        """The end of the text, which may be the beginning of a mark."""

    def feed(self, text: str) -> Part:
        return self._state(text)

    def finish(self) -> Part:
        held, self._held = "".join([*self._space, self._held]), ""
        self._space = []
        last = Part(thinking=held) if self._state == self._thoughts else self._answer.feed(held)
        return joined([last, self._answer.finish()])

    def _beginning(self, text: str) -> Part:
        """Only white space has come yet."""
        text = self._held + text
        inner = text if self._held else text.lstrip()
        self._space.append(text[: len(text) - len(inner)])
        if inner.startswith(THINK):
            self._held, self._space, self._state = "", [], self._thoughts
            return self._thoughts(inner.removeprefix(THINK))
        if THINK.startswith(inner):
            self._held = inner
            return Part()
        answer = "".join([*self._space, inner])
        self._held, self._space, self._state = "", [], self._answer.feed
        return self._answer.feed(answer)

    def _thoughts(self, text: str) -> Part:
        thoughts, end, answer = (self._held + text).partition(THOUGHT)
        if end:
            self._held, self._state = "", self._after
            return replace(self._after(answer), thinking=thoughts)
        ready = len(thoughts) - overlap(thoughts, (THOUGHT,))
        self._held = thoughts[ready:]
        return Part(thinking=thoughts[:ready])

    def _after(self, text: str) -> Part:
        """Before the answer: white space there belongs to neither."""
        answer = text.lstrip()
        if not answer:
            return Part()
        self._state = self._answer.feed
        return self._answer.feed(answer)
