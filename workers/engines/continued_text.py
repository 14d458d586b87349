"""Tokenizes a text that stands directly behind other text.

SentencePiece puts a space before every text. That is right at the start of a sequence and behind a
control token, but not here. So the text is tokenized behind a separator, whose tokens are then
removed. This is correct if the separator's own tokens come out unchanged, because then no token
contains parts of both.
"""

from __future__ import annotations

from collections.abc import Callable

SEPARATORS = (b"\n", b"a", b"\xef\xbf\xbd", b"_")
"""Tried in this order: a line break is a token of its own in nearly all vocabularies."""


def continued(tokenize: Callable[[bytes], list[int]], data: bytes) -> list[int]:
    """The tokens of `data` without a space before it; with it if no separator works."""
    for separator in SEPARATORS:
        before, tokens = tokenize(separator), tokenize(separator + data)
        if before and tokens[: len(before)] == before:
            return tokens[len(before) :]
    return tokenize(data)
