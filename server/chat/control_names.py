"""Keeps clients from writing control tokens.

A client may write "<|im_end|>" into a message. In the rendered prompt it could not be told from a
control token of the template. So before a template is rendered, a mark is inserted into each name
of a control token in a client's text, after the name's first character. After rendering, the marks
are removed, and their places become the prompt's cuts.

A name may also arise where two texts meet. So a possible part of a name is marked, too, at the
beginning or end of a text and between brackets.
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
"""Maximum nesting of lists and objects in what clients send for a template."""


@dataclass(frozen=True, slots=True)
class Remark:
    """Marks the names of control tokens that a template makes by rewriting texts."""

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
    """The names of control tokens, prepared for searching.

    A name of one character cannot be cut, so it is ignored.
    """

    _anywhere: re.Pattern[str]
    """Matches the first character of each name, also of overlapping names."""
    _heads: frozenset[str]
    """All proper prefixes of names with at least two characters."""
    _tails: frozenset[str]
    """All proper suffixes of names with at least two characters."""
    _cores: frozenset[str]
    """The names without brackets, or without some of their brackets."""
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
        """`text` with `mark` in all names, and in what may become a part of a name.

        A text in `words` is marked only in complete names: templates compare with these words.
        """
        if len(text) > 1 and text not in words:
            text = self._marked_ends(text, mark)
        return self._anywhere.sub(rf"\g<0>{mark}", text)

    def remark(self, mark: str) -> Remark:
        """The Remark for these names."""
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
    """`count` marks that are in no text of `values`, at any depth. Raises InvalidRequest."""
    texts: list[str] = []
    for value in values:
        each_text(value, texts.append)
    unused = (mark for mark in MARKS if not any(mark in text for text in texts))
    marks = list(itertools.islice(unused, count))
    if len(marks) < count:
        raise InvalidRequest("messages must not contain all cuneiform signs")
    return marks


def cut_at(text: str, mark: str) -> tuple[str, tuple[int, ...]]:
    """`text` without its marks, and the offsets where they were."""
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
    """A JSON value with all its texts changed, names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): changed(member, change) for name, member in value.items()}
    if isinstance(value, Sequence):
        return [changed(member, change) for member in value]
    return value


def each_text(value: Any, look: Callable[[str], Any], levels: int = MAX_DEPTH) -> None:
    """Call `look` with all texts of a JSON value. Raises InvalidRequest if the value has more than
    `levels` levels."""
    if isinstance(value, str):
        look(value)
    elif isinstance(value, (Mapping, Sequence)):
        if levels == 0:
            raise InvalidRequest(f"lists and objects must not be nested deeper than {MAX_DEPTH}")
        members = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        for member in members:
            each_text(member, look, levels - 1)


def _beginnings(names: Sequence[str]) -> re.Pattern[str]:
    """A pattern for the first character of each name, which looks at few characters twice."""
    rests: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        rests[name[0]].append(name[1:])
    branches = [f"{re.escape(first)}(?={_any_of(rest)})" for first, rest in rests.items()]
    return re.compile("|".join(branches) or "(?!)")


def _any_of(names: Sequence[str]) -> str:
    """A pattern for any of the names; names with a common prefix share its pattern."""
    if "" in names:
        return ""
    rests: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        rests[name[0]].append(name[1:])
    branches = [re.escape(first) + _any_of(rest) for first, rest in rests.items()]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _cores(name: str) -> Iterable[str]:
    """For "<|end|>": "end", "|end", "end|" and "|end|"."""
    left = len(name) - len(_BRACKETS_LEFT.sub("", name))
    right = len(_BRACKETS_RIGHT.sub("", name))
    for start in range(1, left + 1):
        for end in range(right, len(name)):
            if end - start > 1:
                yield name[start:end]


_BRACKETS_LEFT = re.compile(r"^\W+")
_BRACKETS_RIGHT = re.compile(r"\W+$")
