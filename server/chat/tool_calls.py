"""Function calls in what a model writes: found while it is being written.

    text ─▶ feed ─▶ Text, CallStart, CallArguments…, CallEnd ─▶ a dialect

A call is committed to when its name is there and its arguments begin; from then on they are passed
on as they come. What only looked like a call is given out as the text that it is.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.chat.tagged_calls import from_tags, may_be_tagged

MAX_NAME = 256
"""Characters between [TOOL_CALLS] and [ARGS]."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes calls."""

    name: str
    openers: tuple[str, ...] = ()
    """A call follows one of these: an object, a list of them, or a function's name, "[ARGS]" and
    its arguments."""
    closers: tuple[str, ...] = ()
    """May follow a call."""
    is_bare: bool = False
    """An answer that begins with an object is a call, too."""
    shows_control: bool = False
    """The worker must show control tokens, as there are some among openers and closers."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What an answer's control tokens may be for the parser; it has no use for others."""
        named = ("[ARGS]", "[CALL_ID]") if MISTRAL.openers[0] in self.openers else ()
        return (*self.openers, *self.closers, *named)

    def bare(self) -> ToolFormat:
        """For an answer that is forced to be a call: see server.chat.tool_schema."""
        return replace(self, is_bare=True)


HERMES = ToolFormat("hermes", ("<tool_call>",), ("</tool_call>",))
LLAMA = ToolFormat("llama", ("<|python_tag|>",), is_bare=True)
MISTRAL = ToolFormat("mistral", ("[TOOL_CALLS]",))
GENERIC = ToolFormat(
    "generic",
    ("<tool_call>", "[TOOL_CALLS]", "<|tool_call|>", "<|python_tag|>", "<|START_ACTION|>"),
    ("</tool_call>", "<|/tool_call|>", "<|END_ACTION|>"),
    is_bare=True,
)


def tool_format(template: str, control: Collection[str]) -> ToolFormat:
    """The format that a chat template's text speaks of."""
    form = next((form for form in (MISTRAL, HERMES, LLAMA) if form.openers[0] in template), GENERIC)
    return replace(form, shows_control=any(mark in control for mark in form.marks))


@dataclass(frozen=True, slots=True)
class Text:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call has begun; `index` counts an answer's calls from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of a call's arguments, which are a JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is over."""

    index: int
    is_complete: bool
    """Its arguments are; else the answer ended within them."""


ToolEvent = Text | CallStart | CallArguments | CallEnd


def new_call_id() -> str:
    """Nine letters and digits: some templates accept nothing else when the call comes back."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class ToolCallParser:
    """One answer's parser: give it the text in pieces, then say that it is over.

    `tools` are the functions that there are, as OpenAI's clients write them. What has no opener
    is a call only if it calls one of them.
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
        self._held = ""
        """What is not decided: it begins with an opener, or may."""
        self._body = 0
        """Where in `_held` an opener ends."""
        self._space = ""
        """White space that is dropped if calls are on both its sides, or an end."""
        self._state: Callable[[], bool] = self._text
        self._scan = _Scan()
        self._calls = 0
        self._is_start = True
        """No text yet but white space, or calls."""
        self._in_list = False
        self._opener = ""
        """What began a call; if there was one, any function's name will do."""
        self._is_wrapped = False
        """The arguments are within an object, which ends after them."""

    def feed(self, text: str) -> list[ToolEvent]:
        """What the next piece of text brings."""
        self._held += text
        while self._held and self._state():
            pass
        return self._taken()

    def finish(self) -> list[ToolEvent]:
        """What the end brings."""
        if self._state in (self._arguments, self._tail):
            self._end(is_complete=self._state == self._tail)
        if self._held.strip() or not self._calls:
            self._give(self._held)
        if self._space and not self._calls:
            self._events.append(Text(self._space))
        self._held = self._space = ""
        return self._taken()

    def _taken(self) -> list[ToolEvent]:
        events, self._events = self._events, []
        return events

    # Each state looks at `_held`, and says whether the next is to look at it, too.

    def _text(self) -> bool:
        """Outside of calls."""
        if self._form.is_bare and self._is_start:
            inner = self._held.lstrip(self._blank)
            if not inner:
                return False
            if inner[0] in "{[":
                return self._open(len(self._held) - len(inner), "")
        places = [(self._held.find(opener), opener) for opener in self._form.openers]
        place, opener = min((found for found in places if found[0] >= 0), default=(-1, ""))
        if place >= 0:
            return self._open(place, opener)
        ready = len(self._held) - overlap(self._held, self._form.openers)
        text, self._held = self._held[:ready], self._held[ready:]
        self._give(text)
        return False

    def _open(self, place: int, opener: str) -> bool:
        """Go into what may be a call, with this opener at `place`."""
        before, self._held = self._held[:place], self._held[place:]
        self._give(before)
        self._body, self._opener, self._in_list = len(opener), opener, False
        self._state = self._opened
        return True

    def _opened(self) -> bool:
        """An opener was there, or a bracket at the beginning."""
        rest = self._held[self._body :]
        inner = rest.lstrip()
        self._body += len(rest) - len(inner)
        if not inner:
            return False
        if inner[0] == "[" and not self._in_list:
            self._in_list = True
            self._body += 1
            return True
        if inner[0] == "{":
            self._state, self._scan = self._object, _Scan()
            return True
        if self._opener == "[TOOL_CALLS]" and not self._in_list:
            return self._named(inner)
        if self._opener == "<tool_call>" and not self._in_list:
            self._state = self._tags
            return True
        return self._no_call(self._body)

    def _tags(self) -> bool:
        """Within a call that is written with tags; it is read when it is complete."""
        inner, closer, _ = self._held[self._body :].partition("</tool_call>")
        if not closer:
            kept = overlap(inner, ("</tool_call>",))
            return not may_be_tagged(inner[: len(inner) - kept]) and self._no_call(self._body)
        call = from_tags(inner, self._schemas)
        if call is None:
            return self._no_call(self._body)
        self._give_call(call, self._body + len(inner))
        return True

    def _named(self, inner: str) -> bool:
        """A name, "[ARGS]", and an object."""
        found = _NAMED.match(inner)
        if found is None:
            if len(inner) <= MAX_NAME and _NAMED_BEGINNING.fullmatch(inner):
                return False
            return self._no_call(self._body)
        self._start(found[1], self._body + found.end())
        self._is_wrapped = False
        return True

    def _object(self) -> bool:
        """Within an object that may be a call."""
        start = self._body
        found = _HEAD.match(self._held, start)
        if found is not None and self._may_call(name := _unquoted(found[1])):
            self._start(name, found.end())
            self._is_wrapped = True
            return True
        first = _FIRST_NAME.match(self._held, start)
        if first is None:
            is_hopeless = _FIRST_BEGINNING.fullmatch(self._held, start) is None
        else:
            is_hopeless = first[1] not in _CALL_FIELDS
        if is_hopeless:
            return self._no_call(start + 1)
        end = self._scan.end(self._held, start)
        if end is None:
            return False
        call = _as_call(self._held[start:end], self._schemas)
        if call is None or not self._may_call(call[0]):
            return self._no_call(end)
        self._give_call(call, end)
        return True

    def _arguments(self) -> bool:
        """Within the arguments of a call."""
        end = self._scan.end(self._held, 0)
        ready = self._held if end is None else self._held[:end]
        self._held = self._held[len(ready) :]
        self._scan.forget(len(ready))
        if ready:
            self._events.append(CallArguments(self._calls - 1, ready))
        if end is None:
            return False
        if self._is_wrapped:
            self._state = self._tail
        else:
            self._end(is_complete=True)
        return True

    def _tail(self) -> bool:
        """Between the arguments and the end of the object around them."""
        found = _TAIL.match(self._held)
        if found is None and _TAIL_BEGINNING.fullmatch(self._held):
            return False
        self._held = self._held[found.end() :] if found else self._held
        self._end(is_complete=True)
        return True

    def _after(self) -> bool:
        """After a call: what may stand between it and the next."""
        inner = self._held.lstrip()
        if not inner:
            return False
        if self._in_list and inner[0] == "," and (rest := inner[1:].lstrip()[:1]) in ("", "{"):
            if rest:
                self._held, self._body, self._state = inner, 1, self._opened
            return bool(rest)
        if self._in_list and inner[0] == "]":
            self._held, self._in_list = inner[1:], False
            return True
        closer = next((closer for closer in self._form.closers if inner.startswith(closer)), "")
        if not closer and any(closer.startswith(inner) for closer in self._form.closers):
            return False
        if closer:
            self._held = inner[len(closer) :]
        self._in_list, self._state = False, self._text
        return True

    def _may_call(self, name: str) -> bool:
        return bool(name) and (bool(self._opener) or name in self._schemas)

    def _no_call(self, length: int) -> bool:
        text, self._held = self._held[:length], self._held[length:]
        self._state, self._in_list = self._text, False
        self._give(text)
        self._is_start = False
        return True

    def _start(self, name: str, consumed: int) -> None:
        self._space = ""
        self._held = self._held[consumed:]
        self._events.append(CallStart(self._calls, self._make_id(), name))
        self._calls += 1
        self._state, self._scan = self._arguments, _Scan()

    def _give_call(self, call: tuple[str, str], consumed: int) -> None:
        self._start(call[0], consumed)
        self._events.append(CallArguments(self._calls - 1, call[1]))
        self._end(is_complete=True)

    def _end(self, *, is_complete: bool) -> None:
        self._events.append(CallEnd(self._calls - 1, is_complete))
        self._is_start, self._state = True, self._after

    def _give(self, text: str) -> None:
        """Give out a text, but wait with white space next to a call or at the beginning."""
        if self._is_start and not text.strip(self._blank):
            self._space += text
        elif text:
            self._is_start = False
            self._events.append(Text(self._space + text))
            self._space = ""

    @property
    def _blank(self) -> str:
        """What may stand between calls, or before the first."""
        return " \t\r\n;" if self._form.is_bare and self._calls else " \t\r\n"


class _Scan:
    """Finds the end of a JSON object, in a text that grows at its end."""

    def __init__(self) -> None:
        self._place = 0
        """Characters from the object's start that need not be looked at again."""
        self._depth = 0
        self._is_string = False

    def end(self, text: str, start: int) -> int | None:
        """Where the object that begins at `start` ends; None: not within this text."""
        place = start + self._place
        while found := (_IN_STRING if self._is_string else _OUT_OF_STRING).search(text, place):
            mark, place = found[0], found.end()
            if mark == "\\":
                place += 1
            elif mark == '"':
                self._is_string = not self._is_string
            else:
                self._depth += 1 if mark in "{[" else -1
                if self._depth == 0:
                    return place
        self._place = max(place, len(text)) - start
        return None

    def forget(self, length: int) -> None:
        """So many characters were cut off at the beginning."""
        self._place = max(self._place - length, 0)


_IN_STRING = re.compile(r'["\\]')
_OUT_OF_STRING = re.compile(r'["{}\[\]]')
_NAMED = re.compile(r'([^\s\[\]{}"]+)\s*(?:\[CALL_ID\][^\[\]{}]*)?(?:\[ARGS\])?\s*(?=\{)')
_NAMED_BEGINNING = re.compile(r'[^\s\[\]{}"]+\s*(?:\[[A-Z_]*(?:\][^\[\]{}]*)?){0,2}')
_HEAD = re.compile(
    r'\{\s*(?:"(?:type|id|tool_call_id)"\s*:\s*"[^"\\]*"\s*,\s*)*'
    r'"(?:name|tool_name)"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""The most usual beginning of a call; in another order it is looked at when it is complete."""
_FIRST_NAME = re.compile(r'\{\s*"([^"\\]*)"')
_FIRST_BEGINNING = re.compile(r'\{\s*(?:"[^"\\]*)?')
_CALL_FIELDS = frozenset(
    ("arguments", "function", "id", "name", "parameters", "tool_call_id", "tool_name", "type")
)
_TAIL = re.compile(r"\s*(?:,[^{}]*)?\}")
_TAIL_BEGINNING = re.compile(r"\s*(?:,[^{}]*)?")


def overlap(text: str, openers: Collection[str]) -> int:
    """The length of the longest end of `text` with which an opener begins."""
    longest = max(map(len, openers), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(opener.startswith(text[-length:]) for opener in openers):
            return length
    return 0


def _unquoted(text: str) -> str:
    """The text of a JSON string; empty if it is none."""
    try:
        return str(json.loads(text))
    except ValueError:
        return ""


def _as_call(text: str, names: Collection[str]) -> tuple[str, str] | None:
    """The name and the arguments of a call that is a whole JSON object.

    One of `names` may be called without arguments.
    """
    try:
        fields: Any = json.loads(text)
        if isinstance(fields.get("function"), dict):
            fields = fields["function"]
        name = fields.get("name", fields.get("tool_name", fields.get("function")))
        arguments = fields.get("arguments", fields.get("parameters"))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    if arguments is None and isinstance(name, str) and name in names:
        arguments = {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)
