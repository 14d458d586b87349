"""Lets a sequence begin behind tokens that have been processed before.

Where a prompt's beginning may be found, in a slot of its own memory each:

    the slot that it takes       kept as it is, what follows is cut off
    other slots, also running    copied
    the prompt cache             loaded: what slots had to give up, and what clients named
    a prompt that is underway    waited for, so that two that arrive together share the work
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
    """Where the beginning of a prompt is: in a slot, or saved."""

    tokens: int
    """Of the prompt that it has."""
    slot: int = -1
    saved: SavedPrompt | None = None


class Reuse:
    """The slots of an engine, and the prompt cache behind them."""

    def __init__(self, engine: Engine, cache: PromptCache) -> None:
        self.slots = Slots(engine.info.slots)
        self._engine = engine
        self._cache = cache
        self._can_save = bool(engine.state_format)
        self._news: list[Message] = []

    def begin(self, sequence: Sequence, others: Iterable[Sequence]) -> bool:
        """Set where the sequence begins. False: not yet, another computes what it needs.

        `others`: the running sequences, those whose prompts come first before this one.
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
        self._give_up(sequence.slot, own)
        is_copied = found.tokens >= own + WORTH and self._load(sequence.slot, found)
        best = found.tokens if is_copied else own
        sequence.begin(self._engine.truncate(sequence.slot, best))
        return True

    def save(self, sequence: Sequence) -> SavedPrompt | None:
        """Keep the prompt, just processed, under its client's id. None: that is known already."""
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
            self._news.append(PromptSaved(saved.id, len(saved.tokens), saved.size))
        self._news += map(PromptDropped, self._cache.put(saved))

    def drop(self, prompt_id: int) -> None:
        """Forget what a client named so."""
        if self._cache.drop(prompt_id):
            self._news.append(PromptDropped(prompt_id))

    def take_news(self) -> list[Message]:
        """What was saved under a client's id, and what had to go, since the last call."""
        news, self._news = self._news, []
        return news

    def release(self, sequence: Sequence, *, is_intact: bool) -> None:
        """The sequence is over. Its slot keeps its tokens, if the engine has not failed."""
        if not is_intact:
            self._engine.truncate(sequence.slot, 0)
            self.slots.release(sequence.slot, [])
        elif sequence.has_begun:
            self.slots.release(sequence.slot, sequence.tokens[: sequence.position])
        else:
            self.slots.release(sequence.slot, self.slots.held(sequence.slot))

    def _in_slots(self, sequence: Sequence, others: Iterable[Sequence]) -> Found:
        """The other slot that has most of the prompt."""
        held = {other.slot: other.tokens[: other.position] for other in others if other.has_begun}
        held |= {slot: self.slots.held(slot) for slot in self.slots.idle()}
        held.pop(sequence.slot, None)
        found = (Found(self._shared(sequence, held[slot]), slot=slot) for slot in held)
        return max(found, key=lambda found: found.tokens, default=Found(0))

    def _coming(self, sequence: Sequence, others: Iterable[Sequence]) -> int:
        """How many tokens of the prompt those that are processed before it will have."""
        ahead = itertools.takewhile(lambda other: other is not sequence, others)
        prefilling = (other.tokens for other in ahead if other.is_prefilling)
        return max((self._shared(sequence, tokens) for tokens in prefilling), default=0)

    def _shared(self, sequence: Sequence, tokens: list[int]) -> int:
        """How many tokens the sequence could begin behind, from a state of these."""
        common = min(common_prefix(tokens, sequence.tokens), len(sequence.tokens) - 1)
        return self._engine.usable_prefix(len(tokens), common)

    def _load(self, slot: int, found: Found) -> bool:
        """Put what was found into the slot; False, with a warning, if that fails."""
        try:
            if found.saved is None:
                self._engine.load(slot, self._engine.save(found.slot))
            else:
                self._engine.load(slot, found.saved.state)
                self._cache.used(found.saved)
        except EngineFailed as error:
            logger.warning("what was processed before is not used: %s", error)
            if found.saved is not None:
                self._cache.discard(found.saved)
            return False
        return True

    def _give_up(self, slot: int, kept: int) -> None:
        """Save what the slot loses when only its first `kept` tokens stay."""
        held = self.slots.held(slot)
        is_worth_it = len(held) >= kept + WORTH and self._can_save and not self._cache.is_off
        if not is_worth_it or self._is_elsewhere(slot):
            return
        try:
            self.remember(SavedPrompt(held, self._engine.save(slot)))
        except EngineFailed as error:
            logger.warning("what a slot held is lost: %s", error)

    def _is_elsewhere(self, slot: int) -> bool:
        """Whether all that the slot holds is in another idle slot, or in the cache."""
        held = self.slots.held(slot)
        others = (self.slots.held(other) for other in self.slots.idle() if other != slot)
        return any(held == other[: len(held)] for other in others) or self._cache.holds(held)
