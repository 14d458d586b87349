"""What one llama_decode call computes: the feeds of a step, and idle slots that speed it up."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import llama_cpp as lib

from workers.engines.base import Feed

BATCH = 512
"""The most tokens of one step. More bring nothing: the weights are read once for all of them."""
MOST_FILLERS = 4
"""The most idle slots between two decoding slots that are worth computing along: as many tokens
cost less than another pass over the weights."""


class Batch:
    """A llama_batch over arrays of our own, which are filled slice by slice."""

    def __init__(self, size: int, slots: int) -> None:
        """`size`: the most tokens."""
        self.logits_at = [0] * slots
        """For each slot whose feed wanted logits: their index in the batch."""
        self._tokens = (ctypes.c_int32 * size)()
        self._positions = (ctypes.c_int32 * size)()
        self._wants = (ctypes.c_int8 * size)()
        self._one = (ctypes.c_int32 * size)(*[1] * size)
        self._slots = (ctypes.c_int32 * slots)(*range(slots))
        first = ctypes.addressof(self._slots)
        width = ctypes.sizeof(ctypes.c_int32)
        self._slot_pointers = [first + width * slot for slot in range(slots)]
        self._sequences = (ctypes.c_size_t * size)()
        self._batch = lib.llama_batch(
            0,
            self._tokens,
            None,
            self._positions,
            self._one,
            ctypes.cast(self._sequences, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            self._wants,
        )

    def fill(self, feeds: Iterable[Feed]) -> Any:
        """The feeds as a llama_batch, which is valid until the next call."""
        tokens: list[Any] = []
        positions: list[Any] = []
        sequences: list[Any] = []
        wants: list[Any] = []
        for slot, more, position, wants_logits in feeds:
            if len(more) == 1:
                tokens.append(more[0])
                positions.append(position)
                sequences.append(self._slot_pointers[slot])
                wants.append(wants_logits)
            else:
                tokens += more
                positions += range(position, position + len(more))
                sequences += [self._slot_pointers[slot]] * len(more)
                wants += [0] * (len(more) - 1)
                wants.append(wants_logits)
            self.logits_at[slot] = len(tokens) - 1
        end = self._batch.n_tokens = len(tokens)
        self._tokens[:end] = tokens
        self._positions[:end] = positions
        self._sequences[:end] = sequences
        self._wants[:end] = wants
        return self._batch


def fillers(feeds: Sequence[Feed], width: int, lengths: Sequence[int], cells: int) -> list[Feed]:
    """Single tokens of idle slots that make a step of single tokens faster.

    llama.cpp computes sequences together, in one pass over the weights, only if their slots are
    adjacent and they have equally many tokens. The caller removes the fillers' tokens afterwards.

    `feeds`: sorted by slot. `width`: as in Engine.decode.
    `lengths`: tokens in each slot. `cells`: tokens that fit into a slot.
    """
    first, last = feeds[0].slot, feeds[-1].slot
    is_gapless = last - first + 1 == len(feeds)
    if is_gapless and len(feeds) >= width:
        return []
    if any(len(feed.tokens) > 1 for feed in feeds):
        return []
    slots = [
        slot
        for before, after in itertools.pairwise(feeds)
        if after.slot - before.slot - 1 <= MOST_FILLERS
        for slot in range(before.slot + 1, after.slot)
    ]
    beside = [*range(last + 1, len(lengths)), *range(first - 1, -1, -1)]
    slots += beside[: max(0, width - len(feeds) - len(slots))]
    return [
        Feed(slot, feeds[0].tokens, lengths[slot], wants_logits=False)
        for slot in slots
        if lengths[slot] < cells
    ]
