"""What clients write is never a control token.

A client may write "<|im_end|>" into a message. The template puts it among control tokens that it
writes itself, and afterwards nobody could tell the one from the other. So before a template is
rendered, a mark is put into each control token's name in a client's text, after its first
character. Afterwards the marks are taken out, and their places are the prompt's cuts.

A name may also come about where two texts meet. So what may be a part of a name at the end or at
the beginning of a text, or between brackets, is marked too.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.chat.bounded_jinja import MARKS
from shared.errors import InvalidRequest

MAX_DEPTH = 64
"""Of lists and objects within each other, in what clients send for a template."""


@dataclass(frozen=True, slots=True)
class Remark:
    """Marks control tokens' names that a template has made by rewriting texts."""

    pattern: re.Pattern[str]
    """The first character of each name."""
    mark: str

    def __call__(self, before: Iterable[str], after: str) -> str:
        """`after`, which was made of `before`; marked if no name was in `before`."""
        if any(self.pattern.search(text) for text in before):
            return after
        return self.pattern.sub(rf"\g<0>{self.mark}", after)


@dataclass(frozen=True, slots=True)
class ControlNames:
    """Names of control tokens, prepared for being looked for.

    A name of one character cannot be cut, and is left out.
    """

    _anywhere: re.Pattern[str]
    """The first character of each name, overlapping ones too."""
    _heads: frozenset[str]
    """All beginnings of names that have two characters or more."""
    _tails: frozenset[str]
    """All ends of names that have two characters or more."""
    _cores: frozenset[str]
    """What is within the brackets, or some of the brackets, of names."""
    _longest: int

    @staticmethod
    def of(names: Iterable[str]) -> ControlNames:
        usable = sorted({name for name in names if len(name) > 1})
        return ControlNames(
            _beginnings(usable),
            frozenset(name[:end] for name in usable for end in range(2, len(name))),
            frozenset(name[start:] for name in usable for start in range(1, len(name) - 1)),
            frozenset(core for name in usable for core in _cores(name)),
            max(map(len, usable), default=0),
        )

    def marked(self, text: str, mark: str, words: Collection[str] = ()) -> str:
        """`text` with `mark` in all names, and in what may become a part of one.

        The latter not in `words`: those that a template compares with, which must stay equal.
        """
        if len(text) > 1 and text not in words:
            text = self._marked_ends(text, mark)
        return self._anywhere.sub(rf"\g<0>{mark}", text)

    def remark(self, mark: str) -> Remark:
        """What marks the names that a template makes of texts."""
        return Remark(self._anywhere, mark)

    def _marked_ends(self, text: str, mark: str) -> str:
        places = {
            len(text) - length + 1
            for length in range(2, min(self._longest, len(text) + 1))
            if text[-length:] in self._heads
        }
        if text in self._cores or any(
            text[:length] in self._tails for length in range(2, min(self._longest, len(text) + 1))
        ):
            places.add(1)
        for place in sorted(places, reverse=True):
            text = text[:place] + mark + text[place:]
        return text


def unused_marks(values: Iterable[Any], count: int) -> list[str]:
    """`count` marks that stand in no text of `values`, however deep."""
    texts: list[str] = []
    for value in values:
        each_text(value, texts.append)
    unused = (mark for mark in MARKS if not any(mark in text for text in texts))
    marks = list(itertools.islice(unused, count))
    if len(marks) < count:
        raise InvalidRequest("messages must not contain all cuneiform signs")
    return marks


def cut_at(text: str, mark: str) -> tuple[str, tuple[int, ...]]:
    """`text` without its marks, and the places where they were."""
    *before, last = text.split(mark)
    cuts: list[int] = []
    place = 0
    for piece in before:
        place += len(piece)
        if place and (not cuts or cuts[-1] < place):
            cuts.append(place)
    end = place + len(last)
    return text.replace(mark, ""), tuple(cut for cut in cuts if cut < end)


def changed(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with `change` in all its texts, an object's names too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): changed(member, change) for name, member in value.items()}
    if isinstance(value, Sequence):
        return [changed(member, change) for member in value]
    return value


def each_text(value: Any, look: Callable[[str], Any], levels: int = MAX_DEPTH) -> None:
    """`look` at all texts of a JSON value. Raises InvalidRequest beyond so many levels."""
    if isinstance(value, str):
        look(value)
    elif isinstance(value, (Mapping, Sequence)):
        if levels == 0:
            raise InvalidRequest(f"lists and objects must not be nested deeper than {MAX_DEPTH}")
        members = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        for member in members:
            each_text(member, look, levels - 1)


def _beginnings(names: Sequence[str]) -> re.Pattern[str]:
    """The first character of each name; so few characters are looked at twice."""
    rests: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        rests[name[0]].append(name[1:])
    branches = [f"{re.escape(first)}(?={_any_of(rest)})" for first, rest in rests.items()]
    return re.compile("|".join(branches) or "(?!)")


def _any_of(names: Sequence[str]) -> str:
    """A pattern for any of many names: those with a common beginning share it."""
    if "" in names:
        return ""
    rests: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        rests[name[0]].append(name[1:])
    branches = [re.escape(first) + _any_of(rest) for first, rest in rests.items()]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _cores(name: str) -> Iterable[str]:
    """ "end", "|end", "end|" and "|end|" of "<|end|>"."""
    left = len(name) - len(_BRACKETS_LEFT.sub("", name))
    right = len(_BRACKETS_RIGHT.sub("", name))
    for start in range(1, left + 1):
        for end in range(right, len(name)):
            if end - start > 1:
                yield name[start:end]


_BRACKETS_LEFT = re.compile(r"^\W+")
_BRACKETS_RIGHT = re.compile(r"\W+$")
