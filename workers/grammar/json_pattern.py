"""Converts regular expressions of JSON Schema to grammars of JSON strings.

In JSON Schema a pattern may match anywhere in a string. The grammar contains the strings that it
matches as a whole, which are all valid.
"""

from __future__ import annotations

import re

from workers.grammar.json_text import literal

MAX_DEPTH = 50
"""The most levels of parentheses inside parentheses."""
SPECIAL = "^$\\.*+?()[]{}|"
SETS = {
    "d": "0-9",
    "w": "A-Za-z0-9_",
    "s": " ",
}
"""Sets of characters, as written inside brackets. White space is only the space, because JSON would
escape the others."""
# Negated sets, by the characters that they exclude.
NOT_SETS = {"D": "0-9", "W": "A-Za-z0-9_", "S": r" \x09-\x0D\xA0\uFEFF"}
UNWRITTEN = r'"\\\x00-\x1F\x7F'
"""Characters that JSON escapes, as written inside brackets. Negated sets exclude them, too."""
ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}
QUANTIFIER = re.compile(r"([*+?]|\{\d{1,6}(?:,(?:\d{1,6})?)?\})\??")
HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})")


class PatternError(Exception):
    """What is wrong with a pattern or not supported, as a clause."""


def pattern_to_gbnf(pattern: str) -> str:
    """The body of a rule for the text between the quotes. Raises PatternError."""
    parser = _Parser(pattern)
    body = parser.alternatives(depth=0)
    if parser.position < len(pattern):
        raise PatternError("it has a ) without a (")
    return body


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.position = 0

    def alternatives(self, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise PatternError(f"its parentheses are nested more than {MAX_DEPTH} deep")
        bodies = [self._sequence(depth)]
        while self._next() == "|":
            self.position += 1
            bodies.append(self._sequence(depth))
        return " | ".join(bodies)

    def _next(self) -> str:
        return self.pattern[self.position : self.position + 1]

    def _sequence(self, depth: int) -> str:
        items: list[str] = []
        if depth == 0 and self._next() == "^":
            self.position += 1
        while (character := self._next()) and character not in "|)":
            if character == "$":
                self._end(depth)
                break
            item = self._atom(depth)
            quantifier = QUANTIFIER.match(self.pattern, self.position)
            if quantifier is not None:
                self.position = quantifier.end()
                item += quantifier[1]
            items.append(item)
        return " ".join(items) or '""'

    def _end(self, depth: int) -> None:
        self.position += 1
        if depth or self._next() not in ("", "|"):
            raise PatternError("it has a $ that is not at its end")

    def _atom(self, depth: int) -> str:
        character = self._next()
        self.position += 1
        if character == "(":
            return self._group(depth)
        if character == "[":
            return self._brackets()
        if character == ".":
            return f"[^{UNWRITTEN}]"
        if character == "\\":
            return self._escape()
        if character in SPECIAL and character not in "]}":
            raise PatternError(f"it has a misplaced {character}")
        return _written(character)

    def _group(self, depth: int) -> str:
        if self._next() == "?":
            if not self.pattern.startswith("?:", self.position):
                raise PatternError("lookarounds and named groups are not supported")
            self.position += 2
        body = self.alternatives(depth + 1)
        if self._next() != ")":
            raise PatternError("it has a ( that is not closed")
        self.position += 1
        return f"({body})"

    def _escape(self) -> str:
        character = self._next()
        if character in SETS and character:
            self.position += 1
            return f"[{SETS[character]}]"
        if character in NOT_SETS and character:
            self.position += 1
            return f"[^{NOT_SETS[character]}{UNWRITTEN}]"
        return _written(self._escaped_character())

    def _escaped_character(self) -> str:
        """The character that an escape stands for, from behind its backslash."""
        found = HEX.match(self.pattern, self.position)
        if found is not None:
            self.position = found.end()
            return chr(int(found[1] or found[2], 16))
        character = self._next()
        if not character or (character not in ESCAPED and character.isalnum()):
            raise PatternError(f"it has an unsupported escape: \\{character}")
        self.position += 1
        return ESCAPED.get(character, character)

    def _brackets(self) -> str:
        negated = self._next() == "^"
        self.position += negated
        ranges: list[str] = []
        escaped: list[str] = []  # characters that JSON writes with a backslash
        while self._next() != "]":
            if not self._next():
                raise PatternError("it has a [ that is not closed")
            self._take_range(ranges, escaped)
        self.position += 1
        if negated:
            inside = "".join(ranges) + "".join(map(_in_brackets, escaped))
            return f"[^{inside}{UNWRITTEN}]"
        options = [f"[{''.join(ranges)}]"] * bool(ranges) + [_written(c) for c in escaped]
        if not options:
            raise PatternError("it has empty brackets")
        return f"({' | '.join(options)})"

    def _take_range(self, ranges: list[str], escaped: list[str]) -> None:
        """Read the next character, range or set inside brackets."""
        if self._next() == "\\" and self.pattern[self.position + 1 : self.position + 2] in SETS:
            ranges.append(SETS[self.pattern[self.position + 1]])
            self.position += 2
            return
        first = self._one()
        is_range = self._next() == "-" and self.pattern[self.position + 1 :][:1] not in ("", "]")
        if not is_range:
            if first in '"\\' or ord(first) < 32 or ord(first) == 127:
                escaped.append(first)
            else:
                ranges.append(_in_brackets(first))
            return
        self.position += 1
        last = self._one()
        if last < first:
            raise PatternError("it has a range whose end is before its start")
        for low, high in _without_unwritten(first, last):
            ranges.append(f"{_in_brackets(low)}-{_in_brackets(high)}")
        escaped += [c for c in '"\\' if first <= c <= last]

    def _one(self) -> str:
        character = self._next()
        self.position += 1
        if character != "\\":
            return character
        if self._next() == "b":
            self.position += 1
            return "\b"
        return self._escaped_character()


def _without_unwritten(first: str, last: str) -> list[tuple[str, str]]:
    """The parts of a range whose characters JSON does not escape."""
    low, parts = max(ord(first), 32), []
    for hole in (ord('"'), ord("\\"), 127):
        if low <= hole <= ord(last):
            if low < hole:
                parts.append((chr(low), chr(hole - 1)))
            low = hole + 1
    if low <= ord(last):
        parts.append((chr(low), last))
    return parts


def _written(character: str) -> str:
    """The literal of a character as JSON writes it."""
    if character in '"\\':
        return literal("\\" + character)
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f", "\b": "\\b"}.get(character)
    if named is not None:
        return literal(named)
    return literal(character if character >= " " and character != "\x7f" else _code(character))


def _code(character: str) -> str:
    return f"\\u{ord(character):04x}"


def _in_brackets(character: str) -> str:
    code = ord(character)
    if character.isascii() and character.isalnum():
        return character
    return (
        f"\\x{code:02X}" if code < 256 else f"\\u{code:04X}" if code < 65536 else f"\\U{code:08X}"
    )
