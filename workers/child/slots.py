"""What the slots' KV memories hold, and which one a prompt should take.

A slot whose sequence is over keeps its tokens until another needs the place: a prompt that begins
with the same tokens starts behind them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from workers.prompts.prefix import common_prefix

WORTH = 16
"""Tokens. To copy, to save or to wait for fewer is not worth it: processing them takes one tile."""


class Slots:
    """Every slot's tokens, and which are free. Slot numbers run from 0."""

    def __init__(self, count: int) -> None:
        self._held: list[list[int]] = [[] for _ in range(count)]
        self._released_at = [0] * count
        self._free = set(range(count))
        self._clock = itertools.count(1)

    @property
    def has_free(self) -> bool:
        return bool(self._free)

    def held(self, slot: int) -> list[int]:
        """The tokens that the slot's last sequence left; while one runs, what it found."""
        return self._held[slot]

    def idle(self) -> Iterator[int]:
        """The free slots that hold something."""
        return (slot for slot in self._free if self._held[slot])

    def take(self, prompt: Sequence[int]) -> int:
        """The free slot for a prompt. It lies between running ones or next to them, as neighbours
        are computed together; of several it is one that holds most of what the prompt begins
        with, or nothing, or what has not been used for longest."""
        running = [slot for slot in range(len(self._held)) if slot not in self._free]
        low, high = min(running, default=0), max(running, default=len(self._held) - 1)
        outside = {slot: max(low - slot, slot - high, 0) for slot in self._free}
        nearest = min(outside.values())
        near = (slot for slot in self._free if outside[slot] == nearest)
        slot = min(near, key=lambda slot: self._rank(slot, prompt))
        self._free.remove(slot)
        return slot

    def release(self, slot: int, tokens: list[int]) -> None:
        """The slot's sequence is over, and these tokens of it are in the slot's memory."""
        self._held[slot] = tokens
        self._released_at[slot] = next(self._clock)
        self._free.add(slot)

    def _rank(self, slot: int, prompt: Sequence[int]) -> tuple[int, bool, int, int]:
        held = self._held[slot]
        reusable = common_prefix(held, prompt)
        if reusable < WORTH or 2 * reusable < len(held):
            reusable = 0  # others may have more use for it
        return -reusable, bool(held), self._released_at[slot], slot
