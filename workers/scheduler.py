"""All of a worker's policy, without any I/O: which sequence is fed what in each step.

    waiting ──(a slot is free, first come first served)──▶ prefill ──▶ decode ──▶ over

Every step carries the last token of each sequence that decodes. What room is left goes to
prompts, first come first served, in chunks: while a stream runs, so much that the step stays
within `max_stall_s`; while none does, as much as is fastest. Sequences join and leave between
any two steps. A cancel takes effect at the next one, in prompt processing too, and a long step
that carries only prompts can be interrupted for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shared.errors import ContextTooShort, ServingError
from shared.messages import Failed, Finished, Generate, Message, Timings, Token, Tokens, Usage
from workers.engine import Engine, Feed, Interrupted
from workers.sequence import Sequence
from workers.step_cost import StepCost

SMALLEST_CHUNK = 8
"""Prompt tokens that a step carries in any case. The weights are read for one as for eight, so
fewer would starve the prompt and spare the streams little, on machines too slow for the limit."""
LONGEST_STEP_S = 2.0
"""Of a step that stalls nobody: far below any deadline for progress."""


class Scheduler:
    """Runs requests on an engine. `clock` tells the time in seconds.

    `cost`: what steps take; None: always about the same. `max_stall_s`: the longest step that
    may carry both a running stream and a prompt, unless SMALLEST_CHUNK tokens take longer.
    """

    def __init__(
        self, engine: Engine, clock: Callable[[], float], cost: StepCost | None, max_stall_s: float
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._cost = cost
        self._max_stall_s = max_stall_s
        self._waiting: deque[Generate] = deque()
        self._running: dict[int, Sequence] = {}  # by slot, in the order of admission
        self._free_slots = list(range(engine.info.slots))
        self.interruptible: frozenset[int] = frozenset()
        """Requests whose cancel is worth an interrupt of the running step; for other threads."""

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    def submit(self, request: Generate) -> None:
        """Run the request as soon as a slot is free."""
        self._waiting.append(request)

    def cancel(self, request_id: int) -> list[Message]:
        """Stop the request; no token of it follows. An unknown id has ended already: no news."""
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                return [Finished(request_id, "cancelled", Usage(0, 0, 0), Timings(0.0, 0.0))]
        for slot, sequence in self._running.items():
            if sequence.id == request_id:
                self._release(slot)
                return [sequence.finished("cancelled", self._clock())]
        return []

    def step(self) -> list[Message]:
        """Feed the running sequences once; return what that brought, tokens first."""
        failures = self._admit()
        feeds = self._feeds()
        if not feeds:
            return failures
        started = self._clock()
        try:
            self._decode(feeds)
        except Interrupted:
            return failures
        except ServingError as error:
            return [*failures, *(self._fail(feed.slot, error) for feed in feeds)]
        events = self._collect(feeds)
        self._learn(feeds, self._clock() - started)
        return [*failures, *events]

    def _learn(self, feeds: list[Feed], seconds: float) -> None:
        if self._cost is not None:
            tokens = sum(len(feed.tokens) for feed in feeds)
            self._cost.observe(tokens, sum(feed.wants_logits for feed in feeds), seconds)

    def _admit(self) -> list[Message]:
        """Move waiting requests into free slots; those that cannot run fail here."""
        failures: list[Message] = []
        while self._waiting and self._free_slots:
            request = self._waiting.popleft()
            try:
                sequence = self._begin(request)
            except ServingError as error:
                failures.append(Failed(request.id, error.code, error.message))
            else:
                self._running[self._free_slots.pop()] = sequence
        return failures

    def _begin(self, request: Generate) -> Sequence:
        now, context = self._clock(), self._engine.info.context
        prompt = self._engine.tokenize(request.prompt)
        if len(prompt) >= context:
            raise ContextTooShort(
                f"the prompt has {len(prompt)} tokens; the context holds {context},"
                " of which one must be left for the answer"
            )
        sampler = self._engine.sampler(request.sampling, prompt)
        return Sequence(request, prompt, sampler, now)

    def _feeds(self) -> list[Feed]:
        """What each sequence gets in the next step; nothing for prompts that must wait."""
        decoding = sum(not sequence.is_prefilling for sequence in self._running.values())
        room, batch = self._room_for_prompts(decoding), self._engine.info.batch
        feeds = []
        for slot, sequence in self._running.items():
            if not sequence.is_prefilling:
                feeds.append(sequence.next_feed(slot, 1, batch))
            elif room > 0:
                feeds.append(sequence.next_feed(slot, room, batch))
                room -= len(feeds[-1].tokens)
        return feeds

    def _room_for_prompts(self, decoding: int) -> int:
        """Prompt tokens that the next step may carry beside the decoding sequences."""
        if decoding == len(self._running):
            return 0
        most = self._engine.max_batch - decoding
        if self._cost is None:
            return most
        limit_s = self._max_stall_s if decoding else LONGEST_STEP_S
        within = self._cost.tokens_within(limit_s, self._engine.max_batch, decoding) - decoding
        return min(most, max(within, SMALLEST_CHUNK))

    def _decode(self, feeds: list[Feed]) -> None:
        sequences = [self._running[feed.slot] for feed in feeds]
        if all(sequence.is_prefilling for sequence in sequences):
            self.interruptible = frozenset(sequence.id for sequence in sequences)
        try:
            self._engine.decode(feeds)
        finally:
            self.interruptible = frozenset()

    def _collect(self, feeds: list[Feed]) -> list[Message]:
        """Sample where the engine has logits, and end what has come to its end."""
        tokens: list[Token] = []
        over: list[Message] = []
        for feed in feeds:
            sequence = self._running[feed.slot]
            sequence.fed(feed)
            if not feed.wants_logits:
                continue
            try:
                tokens += sequence.sample(feed.slot, self._engine, self._clock)
            except ServingError as error:
                over.append(self._fail(feed.slot, error))
                continue
            if sequence.finish_reason is not None:
                self._release(feed.slot)
                over.append(sequence.finished(sequence.finish_reason, self._clock()))
        return [Tokens(tuple(tokens)), *over] if tokens else over

    def _fail(self, slot: int, error: ServingError) -> Failed:
        failed = Failed(self._running[slot].id, error.code, error.message)
        self._release(slot)
        return failed

    def _release(self, slot: int) -> None:
        del self._running[slot]
        self._free_slots.append(slot)
        self._engine.forget(slot)
