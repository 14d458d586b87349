"""In-memory cache of prompt states: evicted from slots, or saved by clients under an id.

An engine that loads a state continues behind its tokens without processing them again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workers.prompts.prefix import common_prefix

MOST_PROMPTS = 1000
"""Most saved prompts, of whatever size: each lookup compares all of them."""


@dataclass(frozen=True, slots=True)
class SavedPrompt:
    """Tokens, and the engine's state behind them."""

    tokens: list[int]
    state: bytearray
    """Empty if the engine cannot save states: then only the tokens are known."""
    id: int = 0
    """The id under which a client saved it; 0: none."""

    @property
    def size(self) -> int:
        """Size of the state and the tokens in bytes."""
        return len(self.state) + 4 * len(self.tokens)


class PromptCache:
    """At most `limit` bytes of saved prompts; the least recently used are evicted first.

    `root`: a saved prompt that is never evicted, and does not count.
    """

    def __init__(self, limit: int, root: SavedPrompt | None = None) -> None:
        self._limit = limit
        self._root = root
        self._size = 0
        self._saved: OrderedDict[int, SavedPrompt] = OrderedDict()  # by identity, oldest first
        self._by_id: dict[int, SavedPrompt] = {}

    @property
    def is_off(self) -> bool:
        """The limit is 0: nothing can be kept."""
        return self._limit == 0

    def has_room_for(self, size: int) -> bool:
        """Return whether `size` bytes can be kept, if all other prompts are evicted."""
        return size <= self._limit

    @property
    def size(self) -> int:
        """Size of all saved prompts in bytes, without the root."""
        return self._size

    def put(self, saved: SavedPrompt) -> list[int]:
        """Keep a prompt; return the ids of those that were evicted for it.

        It replaces the prompt with its id, and all prompts without an id that are a beginning of
        it. A prompt that is larger than the limit is evicted at once.
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
        evicted: list[int] = []
        while self._size > self._limit or len(self._saved) > MOST_PROMPTS:
            oldest = next(iter(self._saved.values()))
            self._remove(oldest)
            if oldest.id:
                evicted.append(oldest.id)
        return evicted

    def get(self, prompt_id: int) -> SavedPrompt | None:
        """Return the prompt that was saved under the id."""
        return self._by_id.get(prompt_id)

    def drop(self, prompt_id: int) -> bool:
        """Remove the prompt that was saved under the id; return whether there was one."""
        saved = self._by_id.get(prompt_id)
        if saved is not None:
            self._remove(saved)
        return saved is not None

    def discard(self, saved: SavedPrompt) -> None:
        """Remove a prompt whose state cannot be loaded."""
        if id(saved) in self._saved:
            self._remove(saved)

    def longest(
        self, prompt: Sequence[int], usable_prefix: Callable[[int, int], int] = min
    ) -> tuple[int, SavedPrompt | None]:
        """Return how many tokens of the prompt the best state covers, and the saved prompt.

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
        """Mark the prompt as the most recently used."""
        if id(saved) in self._saved:
            self._saved.move_to_end(id(saved))

    def holds(self, tokens: Sequence[int]) -> bool:
        """Return whether a state covers all of these tokens."""
        return self.longest(tokens)[0] == len(tokens)

    def _remove(self, saved: SavedPrompt) -> None:
        del self._saved[id(saved)]
        self._size -= saved.size
        if saved.id:
            del self._by_id[saved.id]
