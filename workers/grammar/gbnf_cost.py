"""Refuses grammars that would take llama.cpp too long.

It follows all ways through a grammar, each with a stack of its own, and looks at every candidate
token on each of them, also on those that meet again. The ways to the next character can be counted
beforehand, and whether they double with every character can be tried. What grows slowly is not
found here: whoever runs a grammar looks at the clock, too.
"""

from __future__ import annotations

import graphlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from workers.grammar.gbnf import GrammarError, Rule, Symbol, Terminal

MAX_WAYS = 5_000
"""To the next character, at any place: llama.cpp compares each with all others."""
MAX_DEPTH = 500
"""Rules that begin with each other: llama.cpp looks for recursion recursively."""
TRIED_CHARACTERS = 12
"""From the beginning of each rule, and of what is repeated."""
NO_GROWTH = 4
"""Characters without a new record, after which no more are tried."""
CHOICES = 6
"""Characters that are tried at a place, of those that its ways begin with."""
MAX_GROWTH = 300
"""Ways, unless there were more from the first character on, as in a long list of texts."""
MAX_TRIES = 150_000
"""Stacks in all: some tenths of a second."""
TOO_AMBIGUOUS = "it is too ambiguous: too many ways through it have to be followed at once"


def check_cost(rules: list[Rule]) -> None:
    """Raise GrammarError for left recursion, and for too many ways to follow."""
    check_ways(rules)
    trial = _Trial(rules)
    for number, rule in enumerate(rules):
        if rule.has_name or rule.high is None or rule.high > 1:
            trial.run(number)


def check_ways(rules: list[Rule]) -> None:
    """Raise GrammarError for left recursion, and for more than MAX_WAYS to begin a rule."""
    nullable = _nullable(rules)
    first = [list(_first_symbols(rule, nullable)) for rule in rules]
    ways, depths = [0] * len(rules), [0] * len(rules)
    for number in _order(rules, first):
        rule = rules[number]
        parts = [symbol for symbol in first[number] if isinstance(symbol, int)]
        depths[number] = 1 + max((depths[part] for part in parts), default=0)
        if depths[number] > MAX_DEPTH:
            raise GrammarError(f"more than {MAX_DEPTH} rules begin with each other")
        count = sum(ways[symbol] if isinstance(symbol, int) else 1 for symbol in first[number])
        is_passed = any(all(_is_nothing(s, nullable) for s in part) for part in rule.alternates)
        copies = (rule.high or rule.low + 1) if is_passed else 1
        ways[number] = 1 + copies * count
        if ways[number] > MAX_WAYS:
            raise GrammarError(f"{rule.name} has more than {MAX_WAYS} ways to begin")


def _order(rules: list[Rule], first: list[list[Symbol]]) -> list[int]:
    """The rules, each behind those that it can begin with."""
    graph = {
        number: {symbol for symbol in symbols if isinstance(symbol, int)}
        for number, symbols in enumerate(first)
    }
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        circle = [rules[number] for number in error.args[1]]
        rule = next((rule for rule in circle if rule.has_name), circle[0])
        raise GrammarError(f"left recursion: {rule.name} begins with itself") from None


def _is_nothing(symbol: Symbol, nullable: list[bool]) -> bool:
    return isinstance(symbol, int) and nullable[symbol]


def _first_symbols(rule: Rule, nullable: list[bool]) -> Iterator[Symbol]:
    """Those that can stand at the rule's beginning."""
    if rule.high == 0:
        return
    for alternate in rule.alternates:
        for symbol in alternate:
            yield symbol
            if not _is_nothing(symbol, nullable):
                break


def _nullable(rules: list[Rule]) -> list[bool]:
    """Which rules may be nothing at all."""
    users: dict[int, list[tuple[int, int]]] = {}  # of a rule: in which alternates it stands
    left = [[len(alternate) for alternate in rule.alternates] for rule in rules]
    for number, rule in enumerate(rules):
        for place, alternate in enumerate(rule.alternates):
            for symbol in alternate:
                if isinstance(symbol, int):
                    users.setdefault(symbol, []).append((number, place))
    nullable = [False] * len(rules)
    found = [n for n, rule in enumerate(rules) if rule.low == 0 or 0 in left[n]]
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


class _At(NamedTuple):
    """The rest of a rule's alternate, from a place on."""

    rule: int
    alternate: int
    place: int


class _Again(NamedTuple):
    """What still comes of a repetition."""

    rule: int
    low: int
    high: int | None


_Frame = _At | _Again
_NONE = 0
"""The stack with nothing to come."""


class _Trial:
    """Follows the ways through a grammar, as llama.cpp does, along characters that make many.

    A stack is a number: of a frame, what comes next, before another stack.
    """

    def __init__(self, rules: list[Rule]) -> None:
        self._rules = rules
        self._tries = 0
        self._stacks: list[tuple[_Frame, int]] = [(_Again(0, 0, 0), _NONE)]
        self._numbers: dict[tuple[_Frame, int], int] = {}
        self._ready: dict[int, list[tuple[int, Terminal]]] = {}

    def run(self, number: int) -> None:
        """From the beginning of a rule. Raises GrammarError if there are too many ways."""
        ways: Counter[tuple[int, Terminal]] = Counter()
        for stack in self._pushed(number, _NONE):
            ways.update(self._closure(stack))
        first, most, since = max(MAX_GROWTH, len(ways)), 0, 0
        for _ in range(TRIED_CHARACTERS):
            following = [self._after(ways, c) for c in self._characters(ways)]
            ways = max(following, key=Counter.total, default=Counter())
            if ways.total() > first:
                raise GrammarError(TOO_AMBIGUOUS)
            since = 0 if ways.total() > most else since + 1
            most = max(most, ways.total())
            if not ways or since == NO_GROWTH:
                return

    def _characters(self, ways: Counter[tuple[int, Terminal]]) -> list[int]:
        """Those with which most of the ranges begin that could be next: where ranges overlap,
        one of them begins."""
        begins: Counter[int] = Counter()
        for (_, terminal), count in ways.items():
            for character in _begins(terminal):
                begins[character] += count
        return [character for character, _ in begins.most_common(CHOICES)]

    def _after(
        self, ways: Counter[tuple[int, Terminal]], character: int
    ) -> Counter[tuple[int, Terminal]]:
        self._count(len(ways))
        following: Counter[tuple[int, Terminal]] = Counter()
        for (stack, terminal), count in ways.items():
            if terminal.matches(character):
                for way in self._closure(self._rest(*self._stacks[stack])):
                    following[way] += count
        return following

    def _closure(self, start: int) -> list[tuple[int, Terminal]]:
        """The stacks with a terminal next that this one can become, with that."""
        if start in self._ready:
            self._count(len(self._ready[start]))
            return self._ready[start]
        todo, seen = [start], set[int]()
        ready = self._ready[start] = []
        while todo:
            stack = todo.pop()
            if stack in seen or stack == _NONE:
                continue
            seen.add(stack)
            self._count(1)
            frame, rest = self._stacks[stack]
            if isinstance(frame, _Again):
                todo += self._repeated(frame, rest)
                continue
            symbol = self._rules[frame.rule].alternates[frame.alternate][frame.place]
            if isinstance(symbol, int):
                todo += self._pushed(symbol, self._rest(frame, rest))
            else:
                ready.append((stack, symbol))
        return ready

    def _pushed(self, number: int, rest: int) -> Iterator[int]:
        """A rule before the rest."""
        rule = self._rules[number]
        if (rule.low, rule.high) != (1, 1):
            yield self._stack(_Again(number, rule.low, rule.high), rest)
            return
        for place, alternate in enumerate(rule.alternates):
            yield self._stack(_At(number, place, 0), rest) if alternate else rest

    def _repeated(self, frame: _Again, rest: int) -> Iterator[int]:
        number, low, high = frame
        if low == 0:
            yield rest
        if high != 0 and self._rules[number].alternates[0]:
            left = _Again(number, max(0, low - 1), None if high is None else high - 1)
            yield self._stack(
                _At(number, 0, 0), rest if left.high == 0 else self._stack(left, rest)
            )

    def _rest(self, frame: _Frame, rest: int) -> int:
        """What is to come behind the frame's next symbol."""
        if isinstance(frame, _Again):
            return rest
        rule, alternate, place = frame
        is_last = place + 1 == len(self._rules[rule].alternates[alternate])
        return rest if is_last else self._stack(_At(rule, alternate, place + 1), rest)

    def _stack(self, frame: _Frame, rest: int) -> int:
        key = frame, rest
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._stacks)
            self._stacks.append(key)
        return number

    def _count(self, stacks: int) -> None:
        self._tries += stacks
        if self._tries > MAX_TRIES:
            raise GrammarError(TOO_AMBIGUOUS)


def _begins(terminal: Terminal) -> Iterable[int]:
    """The characters with which its ranges begin."""
    if terminal.is_negated:
        return [1, *(high + 1 for _, high in terminal.ranges)]
    return [low for low, _ in terminal.ranges]
