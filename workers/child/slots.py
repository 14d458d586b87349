"""What the slots' KV caches hold, and which slot a prompt should take.

A slot whose sequence is finished keeps its tokens until another sequence needs the slot. A prompt
that begins with the same tokens starts behind them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from workers.prompts.prefix import common_prefix

WORTH = 16
"""Fewest tokens that are worth a copy, a save or a wait: processing as many takes one tile."""


class Slots:
    """The tokens of every slot, and which slots are free. Slot numbers run from 0."""

    def __init__(self, count: int) -> None:
        self._held: list[list[int]] = [[] for _ in range(count)]
        self._released_at = [0] * count
        self._free = set(range(count))
        self._clock = itertools.count(1)

    @property
    def has_free(self) -> bool:
        """At least one slot is free."""
        return bool(self._free)

    def held(self, slot: int) -> list[int]:
        """Return the tokens that the slot's last sequence left.

        While a sequence runs, these are the tokens that it found.
        """
        return self._held[slot]

    def idle(self) -> Iterator[int]:
        """Return the free slots that hold tokens."""
        return (slot for slot in self._free if self._held[slot])

    def take(self, prompt: Sequence[int]) -> int:
        """Take a free slot for a prompt, and return it.

        It lies between running slots or next to them, because neighbours are computed together.
        Of several such slots it is the one that holds the longest beginning of the prompt, else an
        empty one, else the least recently used.
        """
        running = [slot for slot in range(len(self._held)) if slot not in self._free]
        low, high = min(running, default=0), max(running, default=len(self._held) - 1)
        outside = {slot: max(low - slot, slot - high, 0) for slot in self._free}
        nearest = min(outside.values())
        near = (slot for slot in self._free if outside[slot] == nearest)
        slot = min(near, key=lambda slot: self._rank(slot, prompt))
        self._free.remove(slot)
        return slot

    def release(self, slot: int, tokens: list[int]) -> None:
        """Free the slot. These tokens of its sequence are in the slot's KV cache."""
        self._held[slot] = tokens
        self._released_at[slot] = next(self._clock)
        self._free.add(slot)

    def _rank(self, slot: int, prompt: Sequence[int]) -> tuple[int, bool, int, int]:
        held = self._held[slot]
        reusable = common_prefix(held, prompt)
        if reusable < WORTH or 2 * reusable < len(held):
            reusable = 0  # another prompt may reuse more of it
        return -reusable, bool(held), self._released_at[slot], slot
