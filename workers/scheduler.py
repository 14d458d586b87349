"""All of a worker's policy, without any I/O: which sequence is fed what in each step.

    waiting ──(a slot is free, first come first served)──▶ prefill ──▶ decode ──▶ over

A step feeds every running sequence once: a chunk of its prompt, or its last
token. Sequences join and leave between any two steps. A cancel takes effect at
the next step, in prompt processing too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shared.errors import ContextTooShort, ServingError
from shared.messages import Failed, Finished, Generate, Message, Timings, Token, Tokens, Usage
from workers.engine import Engine, Feed
from workers.sequence import Sequence


class Scheduler:
    """Runs requests on an engine. `clock` tells the time in seconds."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._waiting: deque[Generate] = deque()
        self._running: dict[int, Sequence] = {}  # by slot
        self._free_slots = list(range(engine.info.slots))

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
        """Feed every running sequence once; return what that brought, tokens first."""
        failures = self._admit()
        feeds = [sequence.next_feed(slot, self._engine) for slot, sequence in self._running.items()]
        if not feeds:
            return failures
        try:
            self._engine.decode(feeds)
        except ServingError as error:
            return [*failures, *(self._fail(feed.slot, error) for feed in feeds)]
        return [*failures, *self._collect(feeds)]

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
                token = self._engine.sample(feed.slot, sequence.sampler)
            except ServingError as error:
                over.append(self._fail(feed.slot, error))
                continue
            tokens += sequence.sampled(token, self._engine, self._clock())
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
