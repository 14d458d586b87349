"""Lets a sequence begin behind tokens that have been processed before.

Where the beginning of a prompt may be found, and how it is used:

    the slot that it takes             truncated to what the prompt shares
    another slot, also a running one   copied
    the prompt cache                   loaded: states that slots evicted or that clients saved
    a prompt that is being processed   waited for, so that two that arrive together share the work
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from shared.errors import EngineFailed
from shared.messages import Message, PromptDropped, PromptSaved
from workers.child.sequence import Sequence
from workers.child.slots import WORTH, Slots
from workers.engines.base import Engine
from workers.prompts.cache import PromptCache, SavedPrompt
from workers.prompts.prefix import common_prefix

logger = logging.getLogger("tokenflume.worker")


@dataclass(frozen=True, slots=True)
class Found:
    """Where the beginning of a prompt is: in a slot, or in the cache."""

    tokens: int
    """Length of the beginning in tokens."""
    slot: int = -1
    saved: SavedPrompt | None = None


class Reuse:
    """The slots of an engine, and the prompt cache behind them."""

    def __init__(self, engine: Engine, cache: PromptCache) -> None:
        self.slots = Slots(engine.info.slots)
        self._engine = engine
        self._cache = cache
        self._can_save = bool(engine.state_format)
        self._messages: list[Message] = []

    def begin(self, sequence: Sequence, others: Iterable[Sequence]) -> bool:
        """Set where the sequence begins. False: not yet, another sequence computes what it needs.

        `others`: all running sequences; the prompts of those before this one are processed first.
        """
        prompt, most = sequence.tokens, len(sequence.tokens) - 1  # one must be fed, for its logits
        own = min(common_prefix(self.slots.held(sequence.slot), prompt), most)
        found = Found(0)
        if self._can_save:
            others = list(others)
            found = self._in_slots(sequence, others)
            length, saved = self._cache.longest(prompt[:most], self._engine.usable_prefix)
            if length > found.tokens:
                found = Found(length, saved=saved)
            if self._coming(sequence, others) >= max(own, found.tokens) + WORTH:
                return False
        self._save_evicted(sequence.slot, own)
        is_copied = found.tokens >= own + WORTH and self._load(sequence.slot, found)
        best = found.tokens if is_copied else own
        sequence.begin(self._engine.truncate(sequence.slot, best))
        return True

    def save(self, sequence: Sequence) -> SavedPrompt | None:
        """Save the prompt, just processed, under its client's id.

        None: it is in the cache already, or cannot be saved.
        """
        tokens = sequence.tokens[: sequence.position]
        known = self._cache.get(sequence.prompt_id)
        if known is not None and known.tokens == tokens:
            self._cache.used(known)
            return None
        try:
            state = self._engine.save(sequence.slot) if self._can_save else bytearray()
        except EngineFailed as error:
            logger.warning("prompt %d is not saved: %s", sequence.prompt_id, error)
            return None
        saved = SavedPrompt(tokens, state, sequence.prompt_id)
        if not self._cache.has_room_for(saved.size):
            logger.warning(
                "prompt %d is not saved: it has %d bytes, more than --cache-limit has for a worker",
                saved.id, saved.size,
            )  # fmt: skip
            return None
        self.remember(saved)
        return saved

    def remember(self, saved: SavedPrompt) -> None:
        """Put a saved prompt into the cache, for sequences to begin from."""
        if saved.id:
            self._messages.append(PromptSaved(saved.id, len(saved.tokens), saved.size))
        self._messages += map(PromptDropped, self._cache.put(saved))

    def drop(self, prompt_id: int) -> None:
        """Remove the prompt that a client saved under this id from the cache."""
        if self._cache.drop(prompt_id):
            self._messages.append(PromptDropped(prompt_id))

    def take_messages(self) -> list[Message]:
        """Return the prompts that were saved under a client's id or evicted since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def release(self, sequence: Sequence, *, is_intact: bool) -> None:
        """Free the sequence's slot. The slot keeps the tokens unless the engine has failed."""
        if not is_intact:
            self._engine.truncate(sequence.slot, 0)
            self.slots.release(sequence.slot, [])
        elif sequence.has_begun:
            self.slots.release(sequence.slot, sequence.tokens[: sequence.position])
        else:
            self.slots.release(sequence.slot, self.slots.held(sequence.slot))

    def _in_slots(self, sequence: Sequence, others: Iterable[Sequence]) -> Found:
        """Find the other slot that has the longest beginning of the prompt."""
        held = {other.slot: other.tokens[: other.position] for other in others if other.has_begun}
        held |= {slot: self.slots.held(slot) for slot in self.slots.idle()}
        held.pop(sequence.slot, None)
        found = (Found(self._shared(sequence, held[slot]), slot=slot) for slot in held)
        return max(found, key=lambda found: found.tokens, default=Found(0))

    def _coming(self, sequence: Sequence, others: Iterable[Sequence]) -> int:
        """Return how many tokens of the prompt the sequences before it will have in common."""
        ahead = itertools.takewhile(lambda other: other is not sequence, others)
        prefilling = (other.tokens for other in ahead if other.is_prefilling)
        return max((self._shared(sequence, tokens) for tokens in prefilling), default=0)

    def _shared(self, sequence: Sequence, tokens: list[int]) -> int:
        """Return how many tokens the sequence could begin behind, from a state of `tokens`."""
        common = min(common_prefix(tokens, sequence.tokens), len(sequence.tokens) - 1)
        return self._engine.usable_prefix(len(tokens), common)

    def _load(self, slot: int, found: Found) -> bool:
        """Load what was found into the slot; log a warning and return False if that fails."""
        try:
            if found.saved is None:
                self._engine.load(slot, self._engine.save(found.slot))
            else:
                self._engine.load(slot, found.saved.state)
                self._cache.used(found.saved)
        except EngineFailed as error:
            logger.warning("a saved state cannot be loaded, the prompt is processed: %s", error)
            if found.saved is not None:
                self._cache.discard(found.saved)
            return False
        return True

    def _save_evicted(self, slot: int, kept: int) -> None:
        """Save the slot's state before it is truncated to its first `kept` tokens."""
        held = self.slots.held(slot)
        is_worth_it = len(held) >= kept + WORTH and self._can_save and not self._cache.is_off
        if not is_worth_it or self._is_elsewhere(slot):
            return
        try:
            self.remember(SavedPrompt(held, self._engine.save(slot)))
        except EngineFailed as error:
            logger.warning("the state of a slot is not saved: %s", error)

    def _is_elsewhere(self, slot: int) -> bool:
        """Return whether another idle slot or the cache has all tokens of the slot."""
        held = self.slots.held(slot)
        others = (self.slots.held(other) for other in self.slots.idle() if other != slot)
        return any(held == other[: len(held)] for other in others) or self._cache.holds(held)
