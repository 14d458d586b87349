"""Saved states of prompts, in memory: what slots had to give up, and what clients named.

A state is what an engine needs to go on behind some tokens without processing them again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workers.prompts.prefix import common_prefix

MOST = 1000
"""Saved prompts, of whatever size: all are looked through for each new one."""


@dataclass(frozen=True, slots=True)
class SavedPrompt:
    """Tokens, and the engine's state behind them."""

    tokens: list[int]
    state: bytearray
    """Empty where the engine has no states: then only the tokens are known."""
    id: int = 0
    """The client's name for it; 0: none."""

    @property
    def size(self) -> int:
        """Bytes, of state and tokens."""
        return len(self.state) + 4 * len(self.tokens)


class PromptCache:
    """At most `limit` bytes of saved prompts; those that were not used for longest go first.

    `root`: one that is kept in any case, and does not count.
    """

    def __init__(self, limit: int, root: SavedPrompt | None = None) -> None:
        self._limit = limit
        self._root = root
        self._size = 0
        self._saved: OrderedDict[int, SavedPrompt] = OrderedDict()  # by identity, oldest first
        self._by_id: dict[int, SavedPrompt] = {}

    @property
    def is_off(self) -> bool:
        """Nothing can be kept."""
        return self._limit == 0

    def has_room_for(self, size: int) -> bool:
        """Whether so many bytes can be kept, if all others go."""
        return size <= self._limit

    @property
    def size(self) -> int:
        """Bytes of all that is saved."""
        return self._size

    def put(self, saved: SavedPrompt) -> list[int]:
        """Keep it, in the place of what it replaces; return the ids that had to go for it.

        It replaces what has its id, and what has no id and is a beginning of it. One that is
        larger than the limit is not kept, which counts as its having had to go.
        """
        if saved.id in self._by_id:
            self._remove(self._by_id[saved.id])
        if not self.has_room_for(saved.size):
            return [saved.id] if saved.id else []
        for other in list(self._saved.values()):
            if not other.id and other.tokens == saved.tokens[: len(other.tokens)]:
                self._remove(other)
        self._saved[id(saved)] = saved
        self._size += saved.size
        if saved.id:
            self._by_id[saved.id] = saved
        gone: list[int] = []
        while self._size > self._limit or len(self._saved) > MOST:
            oldest = next(iter(self._saved.values()))
            self._remove(oldest)
            if oldest.id:
                gone.append(oldest.id)
        return gone

    def get(self, prompt_id: int) -> SavedPrompt | None:
        """What was saved under that id."""
        return self._by_id.get(prompt_id)

    def drop(self, prompt_id: int) -> bool:
        """Forget what was saved under that id; whether there was something."""
        saved = self._by_id.get(prompt_id)
        if saved is not None:
            self._remove(saved)
        return saved is not None

    def discard(self, saved: SavedPrompt) -> None:
        """Forget one that turned out to be of no use."""
        if id(saved) in self._saved:
            self._remove(saved)

    def longest(
        self, prompt: Sequence[int], usable_prefix: Callable[[int, int], int] = min
    ) -> tuple[int, SavedPrompt | None]:
        """How many tokens of the prompt the best state covers, and that state.

        `usable_prefix`: see Engine.usable_prefix.
        """
        best, found = 0, None
        for saved in (*self._saved.values(), *((self._root,) if self._root else ())):
            if saved.state and len(saved.tokens) > best and saved.tokens[:1] == prompt[:1]:
                length = usable_prefix(len(saved.tokens), common_prefix(saved.tokens, prompt))
                if length > best:
                    best, found = length, saved
        return best, found

    def used(self, saved: SavedPrompt) -> None:
        """It has just been of use."""
        if id(saved) in self._saved:
            self._saved.move_to_end(id(saved))

    def holds(self, tokens: Sequence[int]) -> bool:
        """Whether some state covers all of these tokens."""
        return self.longest(tokens)[0] == len(tokens)

    def _remove(self, saved: SavedPrompt) -> None:
        del self._saved[id(saved)]
        self._size -= saved.size
        if saved.id:
            del self._by_id[saved.id]
