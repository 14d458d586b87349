"""Function calling in chats: the request's functions, and the calls in an answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.chat.calls.events import CallArguments, CallStart, Text, ToolEvent
from server.chat.calls.parser import ToolCallParser
from server.chat.calls.tool_format import ToolFormat
from server.chat.conversation import TOOL_LIST
from server.chat.tool_schema import forced_call
from server.dialects.openai.answers import Json
from server.dialects.openai.fields import exclude
from server.http.fields import Form, one_of
from shared.errors import InvalidRequest
from shared.validation import BOOLEAN, TEXT, Check


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The functions that the model may call."""

    tools: Sequence[Mapping[str, Any]]
    schema: Mapping[str, Any] | None
    """The JSON Schema of an answer that must be a call; None: it may be text."""
    is_parallel: bool
    """An answer may have several calls. False: calls after the first are dropped."""

    def format(self, form: ToolFormat) -> ToolFormat:
        """The format of calls in the answer of a model with this format."""
        return form if self.schema is None else form.bare()

    def reader(self, form: ToolFormat) -> Reader:
        """A new reader; each choice needs its own."""
        parser = ToolCallParser(self.format(form), self.tools)
        return CallReader(parser, is_parallel=self.is_parallel)


def take_tools(given: dict[str, Any]) -> ToolUse | None:
    """The functions of a request; None: the model may call none. Raises InvalidRequest."""
    tools = given.pop("tools", None) or []
    choice = given.pop("tool_choice", "auto")
    is_parallel = given.pop("parallel_tool_calls", True)
    if choice == "none" or (choice == "auto" and not tools):
        return None
    if choice == "auto":
        return ToolUse(tools, None, is_parallel)
    exclude(given, "tool_choice", "response_format", "grammar", "json_schema")
    try:
        schema = forced_call(tools, choice.name if isinstance(choice, Named) else None)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, field="tool_choice") from None
    return ToolUse(tools, schema, is_parallel)


@dataclass(frozen=True, slots=True)
class Named:
    """The name of the function that must be called."""

    name: str


def _choice(name: str, value: Any) -> str | Named:
    if value in CHOICES:
        return str(value)
    if not isinstance(value, dict) or value.get("type") != "function":
        raise InvalidRequest(
            f"{name} must be none, auto, required, or an object that names a function"
        )
    return Named(NAMED(name, value)["function"]["name"])


CHOICES = ("none", "auto", "required")
NAMED = Form(
    {
        "type": one_of("function"),
        "function": Form({"name": TEXT}, needed=("name",)).check(),
    },
    needed=("type", "function"),
).check()
TOOLS: Mapping[str, Check[Any]] = {
    "tools": TOOL_LIST,
    "tool_choice": Check({"anyOf": [{"enum": list(CHOICES)}, NAMED.schema]}, _choice),
    "parallel_tool_calls": BOOLEAN.saying("Whether an answer may have several calls."),
}


class Reader:
    """Converts an answer's text to deltas: all of it is content."""

    has_calls = False

    def feed(self, piece: str) -> list[Json]:
        """The deltas of the next piece of text."""
        return [{"content": piece}] if piece else []

    def finish(self) -> list[Json]:
        """The deltas of the end."""
        return []


class CallReader(Reader):
    """Converts an answer's text to deltas of content and of calls."""

    def __init__(self, parser: ToolCallParser, *, is_parallel: bool) -> None:
        self._parser = parser
        self._is_parallel = is_parallel

    def feed(self, piece: str) -> list[Json]:
        return self._deltas(self._parser.feed(piece))

    def finish(self) -> list[Json]:
        return self._deltas(self._parser.finish())

    def _deltas(self, events: Sequence[ToolEvent]) -> list[Json]:
        return [delta for event in events if (delta := self._delta(event)) is not None]

    def _delta(self, event: ToolEvent) -> Json | None:
        if isinstance(event, Text):
            return {"content": event.text}
        if event.index and not self._is_parallel:
            return None
        match event:
            case CallStart(index, identity, name):
                self.has_calls = True
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": identity, "type": "function", "function": function}
            case CallArguments(index, piece):
                call = {"index": index, "function": {"arguments": piece}}
            case _:
                return None
        return {"tool_calls": [call]}


def merged(deltas: Sequence[Json]) -> Json:
    """The message that the deltas make together."""
    content = "".join(delta.get("content", "") for delta in deltas)
    calls: dict[int, Json] = {}
    arguments: defaultdict[int, list[str]] = defaultdict(list)
    for piece in (piece for delta in deltas for piece in delta.get("tool_calls", ())):
        calls.setdefault(piece["index"], piece)
        arguments[piece["index"]].append(piece["function"]["arguments"])
    message: Json = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        made = [_merged_call(calls[index], arguments[index]) for index in calls]
        message |= {"content": content or None, "tool_calls": made}
    return message


def _merged_call(first: Json, arguments: Sequence[str]) -> Json:
    function = {**first["function"], "arguments": "".join(arguments)}
    return {"id": first["id"], "type": first["type"], "function": function}
