"""What a token brings: text, and calls of functions, which leave when they are whole."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.tool_calls import (
    CallArguments,
    CallEnd,
    CallStart,
    Text,
    ToolCallParser,
    ToolEvent,
    ToolFormat,
)


@dataclass(slots=True)
class Part:
    """A share of an answer."""

    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Part) -> None:
        self.text += other.text
        self.calls += other.calls
        self.logprobs += other.logprobs

    def is_empty(self) -> bool:
        return not (self.text or self.calls or self.logprobs)


class TextReader:
    """Of an answer that calls nothing."""

    def feed(self, text: str) -> Part:
        """What the next piece of text brings."""
        return Part(text)

    def finish(self) -> Part:
        """What the end brings."""
        return Part()


class CallReader(TextReader):
    """Of an answer that may call `names`, the functions that there are."""

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        self._parser = ToolCallParser(form, names)
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
