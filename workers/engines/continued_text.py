"""Tokens of a text that stands directly behind other text.

SentencePiece puts a space before a text, as one that begins a sequence or follows a control token
has. So the text is tokenized behind a separator, whose tokens are then taken off. That is sound
where they stand unchanged before the text's own: then no piece is made of both.
"""

from __future__ import annotations

from collections.abc import Callable

SEPARATORS = (b"\n", b"a", b"\xef\xbf\xbd", b"_")
"""The line break is a token of its own nearly everywhere."""


def continued(tokenize: Callable[[bytes], list[int]], data: bytes) -> list[int]:
    """The tokens of `data` without a space before it; as `tokenize` has them if all else fails."""
    for separator in SEPARATORS:
        before, tokens = tokenize(separator), tokenize(separator + data)
        if before and tokens[: len(before)] == before:
            return tokens[len(before) :]
    return tokenize(data)
