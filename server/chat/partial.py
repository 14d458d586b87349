"""Marks that a text may contain, where the text comes in pieces."""

from __future__ import annotations

from collections.abc import Collection


def overlap(text: str, marks: Collection[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a mark."""
    longest = max(map(len, marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
