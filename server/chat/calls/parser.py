"""Finds the calls in one answer. See server.chat.calls for the flow."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.chat.calls import named_call, tagged_call
from server.chat.calls.events import CallArguments, CallEnd, CallStart, Text, ToolEvent
from server.chat.calls.json_call import JsonCall
from server.chat.calls.named_call import NamedCall
from server.chat.calls.syntax import Arguments, CallSyntax, Complete, Name, NoCall
from server.chat.calls.tagged_call import TaggedCall
from server.chat.calls.tool_format import ToolFormat
from server.chat.partial import overlap


def new_call_id() -> str:
    """Nine letters and digits: some templates accept nothing else when the call comes back."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class ToolCallParser:
    """Reads one answer that comes in pieces: call `feed` with each, and `finish` at the end.

    `tools`: the functions that can be called, as OpenAI's clients define them. A call without an
    opener must be one of these functions. A call is reported when its name is known and its
    arguments begin; these are passed on as they come. What only looks like a call is text.
    """

    def __init__(
        self,
        form: ToolFormat,
        tools: Sequence[Mapping[str, Any]],
        make_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._form = form
        functions = [tool["function"] for tool in tools]
        self._schemas = {each["name"]: each.get("parameters") or {} for each in functions}
        self._make_id = make_id
        self._events: list[ToolEvent] = []
        self._state: Callable[[str], str] = self._in_text
        self._held = ""
        """The end of the text, which may be the beginning of an opener or of a closer."""
        self._space: list[str] = []
        """White space that is dropped if calls, or an end of the answer, are on both its sides."""
        self._is_start = True
        """Only white space and calls have come."""
        self._opener = ""
        """The opener of the current call; empty: it began with a bracket."""
        self._lead: list[str] = []
        """What came before the current call and is plain text if it is none: its opener, a list's
        bracket or comma, white space."""
        self._in_list = False
        self._syntax: CallSyntax = NamedCall()
        """Reads the current call."""
        self._calls = 0

    def feed(self, text: str) -> list[ToolEvent]:
        """What the next piece of text brings."""
        while text:
            text = self._state(text)
        return self._taken()

    def finish(self) -> list[ToolEvent]:
        """What the end of the answer brings."""
        rest = self._finish_call() if self._state == self._in_call else self._held
        if self._state in (self._after_opener, self._after_comma):
            rest = "".join(self._lead)
        if rest.strip() or not self._calls:
            self._give(rest)
        if self._space and not self._calls:
            self._events.append(Text("".join(self._space)))
        self._held = ""
        self._space = []
        return self._taken()

    def _taken(self) -> list[ToolEvent]:
        events, self._events = self._events, []
        return events

    # Each state takes the beginning of the text, and returns what the next state is to take.

    def _in_text(self, text: str) -> str:
        """Outside of calls."""
        text, self._held = self._held + text, ""
        if self._form.is_bare and self._is_start:
            inner = text.lstrip(self._blank)
            self._give(text[: len(text) - len(inner)])
            if inner and inner[0] in "{[":
                return self._open("", inner)
            text = inner
        places = [(text.find(opener), opener) for opener in self._form.openers]
        place, opener = min((found for found in places if found[0] >= 0), default=(-1, ""))
        if place >= 0:
            self._give(text[:place])
            return self._open(opener, text[place + len(opener) :])
        ready = len(text) - overlap(text, self._form.openers)
        self._give(text[:ready])
        self._held = text[ready:]
        return ""

    def _open(self, opener: str, rest: str) -> str:
        """A call may begin: `rest` follows its opener."""
        self._opener, self._lead, self._in_list = opener, [opener], False
        self._state = self._after_opener
        return rest

    def _after_opener(self, text: str) -> str:
        """Before a call, or before a list of calls."""
        inner = self._skip_space(text)
        if inner and inner[0] == "[" and not self._in_list:
            self._in_list = True
            self._lead.append("[")
            return inner[1:]
        return self._begin_call(inner) if inner else ""

    def _after_comma(self, text: str) -> str:
        """Between two calls of a list."""
        inner = self._skip_space(text)
        if not inner:
            return ""
        if inner[0] != "{":
            return self._no_call("", inner)
        self._space = []
        return self._begin_call(inner)

    def _skip_space(self, text: str) -> str:
        inner = text.lstrip()
        self._lead.append(text[: len(text) - len(inner)])
        return inner

    def _begin_call(self, text: str) -> str:
        """Choose the syntax that `text` begins with."""
        if text[0] == "{":
            self._syntax = JsonCall(self._schemas, is_marked=bool(self._opener))
        elif self._opener == named_call.OPENER and not self._in_list:
            self._syntax = NamedCall()
        elif self._opener == tagged_call.OPENER and not self._in_list:
            self._syntax = TaggedCall(self._schemas)
        else:
            return self._no_call("", text)
        self._state = self._in_call
        return text

    def _in_call(self, text: str) -> str:
        """Within a call, or in what may become one."""
        for step in self._syntax.feed(text):
            match step:
                case Name(name=name):
                    self._space = []
                    self._events.append(CallStart(self._calls, self._make_id(), name))
                    self._calls += 1
                case Arguments(text=arguments):
                    self._events.append(CallArguments(self._calls - 1, arguments))
                case Complete(rest=rest):
                    self._end_call(is_complete=True)
                    return rest
                case NoCall(text=plain, rest=rest):
                    return self._no_call(plain, rest)
        return ""

    def _finish_call(self) -> str:
        """The answer ends within a call; what of it is text."""
        match self._syntax.finish():
            case NoCall(text=plain):
                return "".join([*self._lead, plain])
            case Complete(rest=rest):
                self._end_call(is_complete=True)
                return rest
            case _:
                self._end_call(is_complete=False)
                return ""

    def _end_call(self, *, is_complete: bool) -> None:
        self._events.append(CallEnd(self._calls - 1, is_complete))
        self._is_start, self._state = True, self._after_call

    def _after_call(self, text: str) -> str:
        """What may stand between a call and the next."""
        text, self._held = self._held + text, ""
        inner = text.lstrip()
        self._space.append(text[: len(text) - len(inner)])
        if not inner:
            return ""
        if self._in_list and inner[0] == ",":
            self._lead, self._state = [","], self._after_comma
            return inner[1:]
        if self._in_list and inner[0] == "]":
            self._in_list, self._space = False, []
            return inner[1:]
        closer = next((each for each in self._form.closers if inner.startswith(each)), "")
        if not closer and any(each.startswith(inner) for each in self._form.closers):
            self._held = inner
            return ""
        if closer:
            self._space = []
        self._in_list, self._state = False, self._in_text
        return inner[len(closer) :]

    def _no_call(self, text: str, rest: str) -> str:
        """What looked like a call is text; `rest` follows it."""
        self._give("".join([*self._lead, text]))
        self._is_start, self._in_list, self._state = False, False, self._in_text
        return rest

    def _give(self, text: str) -> None:
        """Report a text, but keep white space that is next to a call or at the beginning."""
        if self._is_start and not text.strip(self._blank):
            self._space.append(text)
        elif text:
            self._is_start = False
            self._events.append(Text("".join([*self._space, text])))
            self._space = []

    @property
    def _blank(self) -> str:
        """What may stand between calls, or before the first."""
        return " \t\r\n;" if self._form.is_bare and self._calls else " \t\r\n"
