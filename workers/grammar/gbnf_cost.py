"""Refuses grammars that would take llama.cpp too long.

llama.cpp follows all ways through a grammar. A way is a possible parse, with a stack of its own.
Every candidate token is checked against every way, also against equal ones. Two things can be found
beforehand: the number of ways to the next character, and, by trying characters, whether the number
multiplies with every character. Slow growth is not detected here, so engines also limit the time.
"""

from __future__ import annotations

import graphlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from workers.grammar.gbnf import GrammarError, Rule, Symbol, Terminal

MAX_WAYS = 5_000
"""The most ways to the next character. llama.cpp compares each of them with all others."""
MAX_DEPTH = 500
"""The longest chain of rules that begin with each other. llama.cpp follows it recursively."""
TRIED_CHARACTERS = 12
"""Characters that are tried from the beginning of each rule and repetition."""
NO_GROWTH = 4
"""A trial ends after this number of characters without a new maximum of ways."""
CHOICES = 6
"""The most characters that are tried at one position."""
MAX_GROWTH = 300
"""The most ways behind some characters, unless there were more at the beginning, as in a long list
of texts."""
MAX_TRIES = 150_000
"""The most stacks in all trials of a grammar. They take some tenths of a second."""
TOO_AMBIGUOUS = "it is too ambiguous: it has too many parses to follow"


def check_cost(rules: list[Rule]) -> None:
    """Raise GrammarError for left recursion and for too many ways."""
    check_ways(rules)
    trial = _Trial(rules)
    for number, rule in enumerate(rules):
        if rule.has_name or rule.high is None or rule.high > 1:
            trial.run(number)


def check_ways(rules: list[Rule]) -> None:
    """Raise GrammarError for left recursion, and for a rule with too many ways to begin."""
    nullable = _nullable(rules)
    first = [list(_first_symbols(rule, nullable)) for rule in rules]
    ways, depths = [0] * len(rules), [0] * len(rules)
    for number in _order(rules, first):
        rule = rules[number]
        parts = [symbol for symbol in first[number] if isinstance(symbol, int)]
        depths[number] = 1 + max((depths[part] for part in parts), default=0)
        if depths[number] > MAX_DEPTH:
            raise GrammarError(f"more than {MAX_DEPTH} rules begin with each other in a chain")
        count = sum(ways[symbol] if isinstance(symbol, int) else 1 for symbol in first[number])
        is_passed = any(all(_is_nothing(s, nullable) for s in part) for part in rule.alternates)
        copies = (rule.high or rule.low + 1) if is_passed else 1
        ways[number] = 1 + copies * count
        if ways[number] > MAX_WAYS:
            raise GrammarError(f"{rule.name} has more than {MAX_WAYS} ways to begin")


def _order(rules: list[Rule], first: list[list[Symbol]]) -> list[int]:
    """The numbers of all rules, each behind those of the rules that it can begin with."""
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
    """The symbols that the rule can begin with."""
    if rule.high == 0:
        return
    for alternate in rule.alternates:
        for symbol in alternate:
            yield symbol
            if not _is_nothing(symbol, nullable):
                break


def _nullable(rules: list[Rule]) -> list[bool]:
    """For each rule, whether it can match the empty text."""
    users: dict[int, list[tuple[int, int]]] = {}  # for each rule, the alternates that contain it
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


class _Position(NamedTuple):
    """The rest of a rule's alternate from an index on."""

    rule: int
    alternate: int
    place: int


class _Repeat(NamedTuple):
    """The rest of a repetition."""

    rule: int
    low: int
    high: int | None


_Frame = _Position | _Repeat
_NONE = 0
"""The empty stack."""


class _Trial:
    """Follows the ways through a grammar as llama.cpp does, along characters that make many ways.

    A stack is a number. It stands for a frame, which comes next, and the stack below it.
    """

    def __init__(self, rules: list[Rule]) -> None:
        self._rules = rules
        self._tries = 0
        self._stacks: list[tuple[_Frame, int]] = [(_Repeat(0, 0, 0), _NONE)]
        self._numbers: dict[tuple[_Frame, int], int] = {}
        self._ready: dict[int, list[tuple[int, Terminal]]] = {}

    def run(self, number: int) -> None:
        """Try a rule from its beginning. Raises GrammarError if there are too many ways."""
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
        """The characters to try next: those with which the most ranges begin.

        Where ranges overlap, one of them begins, so this finds overlaps.
        """
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
        """The stacks that this one can become and that have a terminal next, with that terminal."""
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
            if isinstance(frame, _Repeat):
                todo += self._repeated(frame, rest)
                continue
            symbol = self._rules[frame.rule].alternates[frame.alternate][frame.place]
            if isinstance(symbol, int):
                todo += self._pushed(symbol, self._rest(frame, rest))
            else:
                ready.append((stack, symbol))
        return ready

    def _pushed(self, number: int, rest: int) -> Iterator[int]:
        """The stacks with a rule on top of `rest`."""
        rule = self._rules[number]
        if (rule.low, rule.high) != (1, 1):
            yield self._stack(_Repeat(number, rule.low, rule.high), rest)
            return
        for place, alternate in enumerate(rule.alternates):
            yield self._stack(_Position(number, place, 0), rest) if alternate else rest

    def _repeated(self, frame: _Repeat, rest: int) -> Iterator[int]:
        number, low, high = frame
        if low == 0:
            yield rest
        if high != 0 and self._rules[number].alternates[0]:
            left = _Repeat(number, max(0, low - 1), None if high is None else high - 1)
            yield self._stack(
                _Position(number, 0, 0), rest if left.high == 0 else self._stack(left, rest)
            )

    def _rest(self, frame: _Frame, rest: int) -> int:
        """The stack behind the frame's next symbol."""
        if isinstance(frame, _Repeat):
            return rest
        rule, alternate, place = frame
        is_last = place + 1 == len(self._rules[rule].alternates[alternate])
        return rest if is_last else self._stack(_Position(rule, alternate, place + 1), rest)

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
    """The first characters of its ranges."""
    if terminal.is_negated:
        return [1, *(high + 1 for _, high in terminal.ranges)]
    return [low for low, _ in terminal.ranges]
