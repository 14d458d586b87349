"""Parses GBNF, llama.cpp's notation of grammars, with limits and line numbers.

llama.cpp's own parser is recursive, expands every repetition, and misreads repetitions that are too
large for it. If it runs out of memory, it returns no error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

ROOT = "root"
MAX_REPETITIONS = 2000
"""The highest bound of a repetition. llama.cpp refuses a higher minimum, and takes a higher maximum
for no limit."""
MAX_NESTING = 100
"""The most levels of parentheses inside parentheses."""
MAX_ELEMENTS = 100_000
"""The most elements of all rules in llama.cpp, which stores 8 bytes of each in three copies."""
MAX_RULES = 20_000
END_OF_CHARACTERS = 0x110000
"""The first number above the codes of all characters."""

_NAME = re.compile(r"[a-zA-Z0-9-]+")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_REPEAT = re.compile(r"[*+?]|\{\s*([0-9]{1,9})\s*(,)?\s*([0-9]{1,9})?\s*\}")
_ESCAPE = r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\"\[\]-])'
_LITERAL_CHARACTER = re.compile(rf'{_ESCAPE}|[^"\\]')
_CLASS_CHARACTER = re.compile(rf"{_ESCAPE}|[^\]\\]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class GrammarError(Exception):
    """What is wrong with a grammar, as a clause."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """Matches one character that is in the ranges, or, if negated, one that is not."""

    ranges: tuple[tuple[int, int], ...]
    """The codes of the first and the last character of each range."""
    is_negated: bool = False

    def matches(self, character: int) -> bool:
        is_inside = any(low <= character <= high for low, high in self.ranges)
        return is_inside != self.is_negated


ANY = Terminal(((0, END_OF_CHARACTERS),))
Symbol = int | Terminal
"""A rule's number, or a terminal."""


@dataclass(slots=True)
class Rule:
    """A named rule, a group in parentheses, or a repetition."""

    name: str
    """The name in error messages."""
    has_name: bool = False
    """Whether the grammar names it."""
    alternates: list[list[Symbol]] = field(default_factory=list)
    low: int = 1
    """The fewest repetitions."""
    high: int | None = 1
    """The most repetitions; None: no limit."""


def parse_gbnf(text: str) -> list[Rule]:
    """The rules of a grammar. Raises GrammarError if it is invalid or too large for llama.cpp."""
    if "\0" in text or _SURROGATE.search(text):
        raise GrammarError("it contains zero bytes or surrogates")
    parser = _Parser(text)
    parser.parse()
    return parser.rules


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.rules: list[Rule] = []
        self._numbers: dict[str, int] = {}
        self._defined: set[int] = set()
        self._elements = 0
        self._depth = 0

    def parse(self) -> None:
        self._skip(lines=True)
        while self.position < len(self.text):
            self._rule()
        for name in (ROOT, *self._numbers):
            if self._numbers.get(name) not in self._defined:
                raise GrammarError(f"the rule {name:.80} is not defined")

    def _rule(self) -> None:
        name = self._take(_NAME)
        if name is None:
            raise self._error("a rule's name was expected")
        self._skip()
        if not self.text.startswith("::=", self.position):
            raise self._error("::= was expected")
        self.position += 3
        self._skip(lines=True)
        number = self._number_of(name)
        self._defined.add(number)
        self.rules[number].alternates = self._alternates(is_nested=False)
        if self.position < len(self.text) and self.text[self.position] not in "\r\n":
            raise self._error("the end of the rule was expected")
        self._skip(lines=True)

    def _alternates(self, *, is_nested: bool) -> list[list[Symbol]]:
        alternates = [self._sequence(is_nested=is_nested)]
        while self.text.startswith("|", self.position):
            self.position += 1
            self._skip(lines=True)
            alternates.append(self._sequence(is_nested=is_nested))
        self._count(len(alternates))
        return alternates

    def _sequence(self, *, is_nested: bool) -> list[Symbol]:
        sequence: list[Symbol] = []
        while (taken := self._symbols()) is not None:
            symbols, size = taken
            self._count(size)
            self._skip(lines=is_nested)
            while symbols and (found := _REPEAT.match(self.text, self.position)) is not None:
                symbols, size = self._repeated(symbols, size, found)
                self._skip(lines=is_nested)
            sequence += symbols
        if _REPEAT.match(self.text, self.position):
            raise self._error("there is nothing to repeat")
        return sequence

    def _symbols(self) -> tuple[list[Symbol], int] | None:
        """The next symbols that an operator would repeat, and the number of their elements.

        None at the end of a sequence.
        """
        character = self.text[self.position : self.position + 1]
        if character == '"':
            codes = self._characters(_LITERAL_CHARACTER, '"')
            return [Terminal(((code, code),)) for code in codes], len(codes)
        if character == "[":
            return self._class()
        if character and character in "<!":
            # llama.cpp may allow tokens as candidates that it then cannot accept.
            raise self._error("tokens are not supported in grammars: write texts in quotes")
        if character == ".":
            self.position += 1
            return [ANY], 1
        if character == "(":
            return [self._group()], 1
        name = self._take(_NAME)
        return None if name is None else ([self._number_of(name)], 1)

    def _class(self) -> tuple[list[Symbol], int]:
        is_negated = self.text.startswith("[^", self.position)
        self.position += is_negated
        start = self.position
        codes = self._characters(_CLASS_CHARACTER, "]")
        if not codes:
            # llama.cpp ignores it, so that an operator behind it would repeat what is before it.
            raise self._error("a set of characters is empty")
        inside = self.text[start + 1 : self.position - 1]
        return [Terminal(_ranges(inside), is_negated)], len(codes)

    def _characters(self, pattern: re.Pattern[str], end: str) -> list[int]:
        """The codes of the characters before `end`. Skips `end`."""
        self.position += 1
        codes: list[int] = []
        while not self.text.startswith(end, self.position):
            character = self._take(pattern)
            if character is None:
                raise self._error(f"{end} is missing, or an escape is not known")
            codes.append(_code(character))
        self.position += 1
        return codes

    def _group(self) -> int:
        self.position += 1
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self._error(f"parentheses are nested more than {MAX_NESTING} deep")
        self._skip(lines=True)
        group = self._new_rule("a group")
        self.rules[group].alternates = self._alternates(is_nested=True)
        if not self.text.startswith(")", self.position):
            raise self._error(") was expected")
        self.position += 1
        self._depth -= 1
        return group

    def _repeated(
        self, symbols: list[Symbol], size: int, found: re.Match[str]
    ) -> tuple[list[Symbol], int]:
        low, high = _bounds(found)
        if max(low, high or 0) > MAX_REPETITIONS:
            raise self._error(f"more than {MAX_REPETITIONS} repetitions are not supported")
        if high is not None and high < low:
            raise self._error("a repetition's maximum is below its minimum")
        self.position = found.end()
        expanded = max(0, low - 1) * size + (1 if high is None else high - low) * (size + 3)
        self._count(expanded)
        number = self._new_rule("a repetition")
        repeated = self.rules[number]
        repeated.alternates, repeated.low, repeated.high = [symbols], low, high
        return [number], low * size + 1

    def _number_of(self, name: str) -> int:
        if name not in self._numbers:
            number = self._numbers[name] = self._new_rule(f"rule {name:.80}")
            self.rules[number].has_name = True
        return self._numbers[name]

    def _new_rule(self, name: str) -> int:
        if len(self.rules) >= MAX_RULES:
            raise GrammarError(f"it has more than {MAX_RULES} rules")
        self.rules.append(Rule(name))
        return len(self.rules) - 1

    def _count(self, elements: int) -> None:
        """Count elements of llama.cpp. Raises GrammarError above the limit."""
        self._elements += elements
        if self._elements > MAX_ELEMENTS:
            raise GrammarError(
                f"with its repetitions expanded it has more than {MAX_ELEMENTS} elements"
            )

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self.text, self.position)
        if found is None:
            return None
        self.position = found.end()
        return found[0]

    def _skip(self, *, lines: bool = False) -> None:
        self._take(_SPACE_AND_LINES if lines else _SPACE)

    def _error(self, what: str) -> GrammarError:
        line = self.text.count("\n", 0, self.position) + 1
        rest = self.text[self.position : self.position + 20]
        return GrammarError(f"line {line}, before {rest!r}: {what}")


def _bounds(found: re.Match[str]) -> tuple[int, int | None]:
    """The fewest and the most repetitions; None: no limit."""
    if found[1] is None:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[0]]
    low = int(found[1])
    if found[2] is None:
        return low, low
    return low, None if found[3] is None else int(found[3])


def _code(character: str) -> int:
    """The code of a character, or of the one that an escape stands for."""
    if len(character) == 1:
        return ord(character)
    if character[1] in "xuU":
        return int(character[2:], 16)
    return ord({"t": "\t", "r": "\r", "n": "\n"}.get(character[1], character[1]))


def _ranges(inside: str) -> tuple[tuple[int, int], ...]:
    """The ranges inside brackets. A - at the end stands for itself."""
    ranges = []
    position = 0
    while (found := _CLASS_CHARACTER.match(inside, position)) is not None:
        low = high = _code(found[0])
        position = found.end()
        after = _CLASS_CHARACTER.match(inside, position + 1)
        if inside.startswith("-", position) and after is not None:
            high, position = _code(after[0]), after.end()
        ranges.append((low, high))
    return tuple(ranges)
