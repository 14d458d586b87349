"""Checks a grammar before llama.cpp gets it.

llama.cpp's own checks are not enough for grammars from anywhere: some that it takes make it run
out of memory or time, and no error can come back from there. What is refused here, though it may
be well-formed: left recursion however hidden, repetitions backwards or beyond what llama.cpp
counts, grammars that become too large when it writes out their repetitions, and those in which
too many ways lead to the next character.
"""

from __future__ import annotations

import graphlib
import re
from dataclasses import dataclass, field

ROOT = "root"
MAX_REPETITIONS = 2000
"""llama.cpp refuses a higher minimum, and takes a higher maximum for none."""
MAX_NESTING = 100
"""Parentheses in parentheses: its parser and ours are recursive."""
MAX_ELEMENTS = 100_000
"""Of all rules, as llama.cpp has them: 8 bytes each, in three copies."""
MAX_RULES = 20_000
MAX_WAYS = 5_000
"""To the next character, at any place: llama.cpp compares each with all others."""

TERMINAL = -1
"""In the place of a rule's number: characters, or a token."""
NOTHING = -2
"""An empty text, which leaves no trace."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_REPEAT = re.compile(r"[*+?]|\{\s*([0-9]{1,9})\s*(,)?\s*([0-9]{1,9})?\s*\}")
_HEX = r"x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}"
_ESCAPE = rf'\\(?:{_HEX}|[trn\\"\[\]-])'
_LITERAL_CHARACTER = re.compile(rf'{_ESCAPE}|[^"\\]')
_CLASS_CHARACTER = re.compile(rf"{_ESCAPE}|[^\]\\]")
_TOKEN = re.compile(r"!?<(?:\[[0-9]{1,9}\]|[^>\[][^>]*)>")


class GrammarError(Exception):
    """What is wrong with a grammar, as a part of a sentence."""


@dataclass(slots=True)
class _Rule:
    """A rule, a group in parentheses or a repetition. Symbols are TERMINAL or rules' numbers."""

    name: str
    alternates: list[list[int]] = field(default_factory=list)
    copies: int = 1
    """How often llama.cpp writes out what is repeated."""


def check_gbnf(text: str) -> bool:
    """Raise GrammarError unless llama.cpp can run the grammar; whether it names tokens."""
    if "\0" in text or not text.isprintable() and _SURROGATE.search(text):
        raise GrammarError("a grammar has neither zero bytes nor halves of characters")
    parser = _Parser(text)
    parser.parse()
    _check_ways(parser.rules, _nullable(parser.rules))
    return parser.names_tokens


class _Parser:
    """Reads a grammar as llama.cpp does."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.rules: list[_Rule] = []
        self.names_tokens = False
        self._numbers: dict[str, int] = {}
        self._defined: set[int] = set()
        self._elements = 0
        self._depth = 0

    def parse(self) -> None:
        self._skip(lines=True)
        while self.position < len(self.text):
            self._rule()
        if ROOT not in self._numbers or self._numbers[ROOT] not in self._defined:
            raise GrammarError(f"there is no rule {ROOT}")
        for name, number in self._numbers.items():
            if number not in self._defined:
                raise GrammarError(f"there is no rule {name:.80}")

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
        self.rules[number].alternates = self._alternates(nested=False)
        if self.position < len(self.text) and self.text[self.position] not in "\r\n":
            raise self._error("the end of the rule was expected")
        self._skip(lines=True)

    def _alternates(self, *, nested: bool) -> list[list[int]]:
        alternates = [self._sequence(nested=nested)]
        while self.text.startswith("|", self.position):
            self.position += 1
            self._skip(lines=True)
            alternates.append(self._sequence(nested=nested))
        self._count(len(alternates))
        return alternates

    def _sequence(self, *, nested: bool) -> list[int]:
        symbols: list[int] = []
        while True:
            symbol, size = self._symbol()
            if symbol == TERMINAL and not size:
                return symbols
            self._count(size)
            self._skip(lines=nested)
            if symbol == NOTHING:
                continue
            while (found := _REPEAT.match(self.text, self.position)) is not None:
                symbol, size = self._repeated(symbol, size, found)
                self._skip(lines=nested)
            symbols.append(symbol)

    def _symbol(self) -> tuple[int, int]:
        """The next symbol, and its elements; none when a sequence ends here."""
        character = self.text[self.position : self.position + 1]
        if self.text.startswith('""', self.position):
            self.position += 2
            return NOTHING, 0
        if character == '"':
            return TERMINAL, self._characters(_LITERAL_CHARACTER, '"', "a text")
        if character == "[":
            return TERMINAL, self._class()
        if character in ("<", "!"):
            if self._take(_TOKEN) is None:
                raise self._error("a token was expected, such as <[5]> or <name>")
            self.names_tokens = True
            return TERMINAL, 1
        if character == ".":
            self.position += 1
            return TERMINAL, 1
        if character == "(":
            return self._group(), 1
        if _REPEAT.match(self.text, self.position):
            raise self._error("there is nothing to repeat")
        name = self._take(_NAME)
        return (TERMINAL, 0) if name is None else (self._number_of(name), 1)

    def _class(self) -> int:
        if self.text.startswith("[^", self.position):
            self.position += 1
        return self._characters(_CLASS_CHARACTER, "]", "a set of characters")

    def _characters(self, pattern: re.Pattern[str], end: str, what: str) -> int:
        """How many there are; at the end of the text, `end` or an escape that is none."""
        self.position += 1
        count = 0
        while not self.text.startswith(end, self.position):
            if self._take(pattern) is None:
                raise self._error(f"{what} has no end, or an unknown escape")
            count += 1
        if not count:
            # llama.cpp takes it for nothing at all, so what is repeated would be what is before.
            raise self._error(f"{what} is empty")
        self.position += 1
        return count

    def _group(self) -> int:
        self.position += 1
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self._error(f"there are more than {MAX_NESTING} parentheses in each other")
        self._skip(lines=True)
        group = self._new_rule("a group")
        self.rules[group].alternates = self._alternates(nested=True)
        if not self.text.startswith(")", self.position):
            raise self._error(") was expected")
        self.position += 1
        self._depth -= 1
        return group

    def _repeated(self, symbol: int, size: int, found: re.Match[str]) -> tuple[int, int]:
        low, high = _bounds(found)
        if max(low, high or 0) > MAX_REPETITIONS:
            raise self._error(f"a repetition has more than {MAX_REPETITIONS} times")
        if high is not None and high < low:
            raise self._error("a repetition's maximum is below its minimum")
        self.position = found.end()
        optional = 1 if high is None else high - low
        self._count(max(0, low - 1) * size + optional * (size + 3))
        alternates = [[symbol]] if high != 0 else []
        if low == 0:
            alternates.append([])
        repeated = self._new_rule("a repetition")
        self.rules[repeated].alternates = alternates
        self.rules[repeated].copies = max(1, low + optional)
        return repeated, max(1, low * size + 1)

    def _number_of(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = self._new_rule(f"rule {name:.80}")
        return self._numbers[name]

    def _new_rule(self, name: str) -> int:
        if len(self.rules) >= MAX_RULES:
            raise GrammarError(f"it has more than {MAX_RULES} rules")
        self.rules.append(_Rule(name))
        return len(self.rules) - 1

    def _count(self, elements: int) -> None:
        self._elements += elements
        if self._elements > MAX_ELEMENTS:
            raise GrammarError(
                f"with its repetitions written out it has more than {MAX_ELEMENTS} elements"
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
        return GrammarError(f"line {line}, before {self.text[self.position :][:20]!r}: {what}")


def _bounds(found: re.Match[str]) -> tuple[int, int | None]:
    """The least and the most times; None: any."""
    if found[1] is None:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[0]]
    low = int(found[1])
    if found[2] is None:
        return low, low
    return low, None if found[3] is None else int(found[3])


def _nullable(rules: list[_Rule]) -> list[bool]:
    """Which rules may be nothing at all."""
    users: dict[int, list[tuple[int, int]]] = {}  # of a rule: in which alternates it stands
    left = [[len(alternate) for alternate in rule.alternates] for rule in rules]
    for number, rule in enumerate(rules):
        for place, alternate in enumerate(rule.alternates):
            for symbol in alternate:
                users.setdefault(symbol, []).append((number, place))
    nullable = [False] * len(rules)
    found = [number for number, counts in enumerate(left) if 0 in counts]
    while found:
        number = found.pop()
        if nullable[number]:
            continue
        nullable[number] = True
        for user, place in users.get(number, ()):
            left[user][place] -= 1
            if not left[user][place]:
                found.append(user)
    return nullable


def _check_ways(rules: list[_Rule], nullable: list[bool]) -> None:
    """Raise GrammarError for left recursion, and for too many ways to the next character."""
    first: list[list[int]] = []  # of each rule: the symbols that can stand at its beginning
    for rule in rules:
        symbols: list[int] = []
        for alternate in rule.alternates:
            for symbol in alternate:
                symbols.append(symbol)
                if symbol == TERMINAL or not nullable[symbol]:
                    break
        first.append(symbols)
    ways: dict[int, int] = {TERMINAL: 1}
    try:
        graph = {
            number: {symbol for symbol in symbols if symbol != TERMINAL}
            for number, symbols in enumerate(first)
        }
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        names = [rules[number].name for number in error.args[1]]
        named = next((name for name in names if name.startswith("rule ")), names[0])
        raise GrammarError(f"left recursion: {named} begins with itself") from None
    for number in order:
        rule = rules[number]
        again = rule.copies if any(s != TERMINAL and nullable[s] for s in first[number]) else 1
        ways[number] = 1 + again * sum(ways[symbol] for symbol in first[number])
        if ways[number] > MAX_WAYS:
            raise GrammarError(
                f"{rule.name} has more than {MAX_WAYS} ways to begin"
            )
