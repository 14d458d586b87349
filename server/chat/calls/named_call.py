"""A call that is a name and a JSON object, as Mistral's models write it after [TOOL_CALLS]:

weather[ARGS]{"city": "Bonn"}
weather[CALL_ID]abc123456[ARGS]{"city": "Bonn"}
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from server.chat.calls.syntax import Arguments, CallSyntax, Complete, Cut, Name, NoCall, ObjectEnd

OPENER = "[TOOL_CALLS]"
MARKS = ("[ARGS]", "[CALL_ID]")
MAX_NAME = 256
"""Characters before the object."""


class NamedCall(CallSyntax):
    """Begins at the name."""

    def __init__(self) -> None:
        self._name = ""
        self._end: ObjectEnd | None = None
        """The end of the arguments, once these have begun."""

    def feed(self, text: str) -> Iterator[Name | Arguments | Complete | NoCall]:
        if self._end is None:
            self._name += text
            found = _NAME.match(self._name, 0, MAX_NAME)
            if found is None:
                is_short = len(self._name) < MAX_NAME
                if not (is_short and _NAME_BEGINNING.fullmatch(self._name)):
                    yield NoCall("", self._name)
                return
            yield Name(found[1])
            self._end = ObjectEnd()
            text = self._name[found.end() :]
        end = self._end.feed(text)
        arguments = text if end is None else text[:end]
        if arguments:
            yield Arguments(arguments)
        if end is not None:
            yield Complete(text[end:])

    def finish(self) -> Complete | Cut | NoCall:
        return NoCall(self._name, "") if self._end is None else Cut()


_NAME = re.compile(r'([^\s\[\]{}"]+)\s*(?:\[CALL_ID\][^\[\]{}]*)?(?:\[ARGS\])?\s*(?=\{)')
_NAME_BEGINNING = re.compile(r'[^\s\[\]{}"]+\s*(?:\[[A-Z_]*(?:\][^\[\]{}]*)?){0,2}')
