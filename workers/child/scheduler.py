"""The worker's scheduling policy, without any I/O: which sequence is fed what in each step.

    waiting ──(a slot is free, first come first served)──▶ prefill ──▶ decode ──▶ finished

There are two kinds of steps. A decode step carries the last token of every sequence that decodes.
A prefill step carries chunks of prompts, first come first served. While there are both, the two
kinds take turns, and a chunk is as large as keeps both steps together within `max_stall_s`. While
no stream runs, a chunk is as large as is fastest. Sequences join and leave between any two steps.
A cancel takes effect before the next step, and can interrupt a long prefill step. A prompt begins
behind those of its tokens that have been processed before.

Prompts that are embedded need no slot. While there are such prompts, every other prefill step
carries a chunk of one.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable

from shared.errors import ServingError
from shared.messages import Failed, Message, Token, Tokens
from shared.steps import StepTally
from workers.child.embedding import Embeddings
from workers.child.endings import cancelled, failed
from workers.child.prepared import PreparedEmbed, PreparedGenerate
from workers.child.reuse import Reuse
from workers.child.sequence import Sequence
from workers.child.step_cost import Curve, SequenceStep, StepCost
from workers.engines.base import Engine, Feed, Interrupted
from workers.prompts.cache import PromptCache, SavedPrompt

SMALLEST_CHUNK = 16
"""Prompt tokens that a prefill step carries in any case: one tile of the kernels. Half as many take
nearly as long, so on a machine that is too slow for the limit they would starve the prompt and
spare the streams little."""
MOST_INTERRUPTIONS = 3
"""Prefill steps in a row that may be interrupted. The next one runs to its end."""
LONGEST_STEP_S = 2.0
"""Longest prefill step, in seconds, while no stream runs: far below any deadline for progress."""


class Scheduler:
    """Runs prepared requests on an engine. `clock` returns the time in seconds.

    `cost`: how long steps take; None: the same, whatever they carry. `max_stall_s`: the longest
    time that a decode step and a prefill step may take together, unless SMALLEST_CHUNK tokens take
    longer. `cache`: saved prompts.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], float],
        cost: StepCost | None,
        max_stall_s: float,
        cache: PromptCache | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._cost = cost
        self._max_stall_s = max_stall_s
        self._waiting: deque[PreparedGenerate] = deque()
        self._prefilling: dict[int, Sequence] = {}  # by slot, in the order of admission
        self._decoding: dict[int, Sequence] = {}  # by slot
        self._reuse = Reuse(engine, cache or PromptCache(0))
        self._saved: list[SavedPrompt] = []
        self._prompts_are_next = False
        self._embeddings = Embeddings(engine, clock)
        self._embeddings_are_next = False
        # An embedding computes the hidden states of all its tokens to the end, so its curve has a
        # height of its own.
        self._embed_cost = copy.copy(cost.prefill) if cost else None
        self._interruptions = 0  # of steps in a row
        self.steps = StepTally()
        """The durations of the steps that were neither interrupted nor failed, without sampling."""
        self.decoding: set[int] = set()
        """Ids of the requests whose streams have begun. Other threads may look an id up."""

    @property
    def is_idle(self) -> bool:
        """There is nothing to do."""
        has_sequences = self._waiting or self._prefilling or self._decoding
        return not has_sequences and self._embeddings.is_idle

    def submit(self, request: PreparedGenerate | PreparedEmbed) -> None:
        """Run the request: as soon as a slot is free; a PreparedEmbed after those before it."""
        if isinstance(request, PreparedEmbed):
            self._embeddings.submit(request)
            return
        if request.saved is not None:
            self.remember(request.saved)
        self._waiting.append(request)

    def remember(self, saved: SavedPrompt) -> None:
        """Put a saved prompt into the cache, for requests to begin from."""
        self._reuse.remember(saved)

    def drop(self, prompt_id: int) -> None:
        """Remove the prompt that a client saved under this id from the cache."""
        self._reuse.drop(prompt_id)

    def preload(self, tokens: list[int]) -> None:
        """Note that the engine's first slot holds these tokens. Before the first request."""
        self._reuse.slots.release(0, tokens)

    def take_saved(self) -> list[SavedPrompt]:
        """Return the prompts that were saved under a client's id since the last call."""
        saved, self._saved = self._saved, []
        return saved

    def cancel(self, request_id: int) -> list[Message]:
        """Stop the request: no token of it follows. Return nothing if it has ended already."""
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                return [cancelled(request_id)]
        for sequence in (*self._prefilling.values(), *self._decoding.values()):
            if sequence.id == request_id:
                self._release(sequence)
                return [sequence.finished("cancelled", self._clock())]
        return self._embeddings.cancel(request_id)

    def step(self) -> list[Message]:
        """Run the next step; return its messages."""
        self._admit()
        self._embeddings.begin()
        events: list[Message] = []
        has_prompts = bool(self._prefilling) or not self._embeddings.is_idle
        if self._decoding and not (has_prompts and self._prompts_are_next):
            self._prompts_are_next = True
            events += self._decode()
        elif has_prompts:
            self._prompts_are_next = False
            events += self._process_prompts()
        return events + self._reuse.take_messages()

    # ---------------------------------------------------------------- the two kinds of steps

    def _decode(self) -> list[Message]:
        sequences = list(self._decoding.values())
        feeds = [sequence.next_token() for sequence in sequences]
        width = self._cost.padding.width(len(feeds)) if self._cost else 0
        return self._run("decode", sequences, feeds, width=width)

    def _process_prompts(self) -> list[Message]:
        """Run a prefill step. Sequences and embeddings take turns."""
        is_embedding = not self._embeddings.is_idle and (
            self._embeddings_are_next or not self._prefilling
        )
        self._embeddings_are_next = not is_embedding
        return self._embed() if is_embedding else self._prefill()

    def _embed(self) -> list[Message]:
        length = self._embeddings.next_length(self._room_for_prompts(self._embed_cost))
        started = self._clock()
        events = self._embeddings.step(length)
        if length and not any(isinstance(event, Failed) for event in events):
            seconds = self._clock() - started
            self.steps.observe("embed", length, seconds)
            if self._embed_cost is not None:
                self._embed_cost.observe(length, seconds)
        return events

    def _prefill(self) -> list[Message]:
        """Feed the first prompt, and as much of each further one as there is room for.

        Chunks of equal length share one pass over the weights; a different length needs another.
        """
        events: list[Message] = []
        sequences: list[Sequence] = []
        feeds: list[Feed] = []
        curve = self._cost.prefill if self._cost else None
        room, batch = self._room_for_prompts(curve), self._engine.info.batch
        for sequence in list(self._prefilling.values()):
            if not self._has_begun(sequence, events):
                continue
            length = len(feeds[0].tokens) if feeds else room
            if feeds and sequences[0].chunk_limit(batch) < SMALLEST_CHUNK:
                length = SMALLEST_CHUNK  # a client's own n_batch must not slow down the others
            feed = sequence.next_chunk(min(length, room), batch)
            if feeds and len(feed.tokens) < len(feeds[0].tokens):
                continue
            if not feed.tokens:
                break
            sequences.append(sequence)
            feeds.append(feed)
            room -= len(feed.tokens)
        if not feeds:
            return events
        # Clients that leave one after the other must not starve those who stay.
        interruptible = self._interruptions < MOST_INTERRUPTIONS
        return events + self._run("prefill", sequences, feeds, interruptible=interruptible)

    def _has_begun(self, sequence: Sequence, events: list[Message]) -> bool:
        """Let the sequence begin, if it can.

        An error, but a MemoryError, fails only its request.
        """
        if sequence.has_begun:
            return True
        try:
            return self._reuse.begin(sequence, self._in_order())
        except Exception as error:
            events.append(self._fail(sequence, error))
            return False

    def _room_for_prompts(self, curve: Curve | None) -> int:
        """Return how many prompt tokens the next prefill step may carry. `curve`: its cost."""
        most = self._engine.max_batch
        if curve is None or self._cost is None:
            return most
        limit_s = LONGEST_STEP_S
        if self._decoding:
            limit_s = self._max_stall_s - self._cost.decode.expected(len(self._decoding))
        return min(most, max(curve.most_within(limit_s, most), SMALLEST_CHUNK))

    def _run(
        self,
        kind: SequenceStep,
        sequences: list[Sequence],
        feeds: list[Feed],
        *,
        interruptible: bool = False,
        width: int = 0,
    ) -> list[Message]:
        """Feed the sequences, and sample for those whose prompts are complete."""
        started = self._clock()
        try:
            self._engine.decode(feeds, interruptible=interruptible, width=width)
        except Interrupted:
            self._interruptions += 1
            return []
        except ServingError as error:
            return [self._fail(sequence, error) for sequence in sequences]
        self._interruptions = 0
        now = self._clock()
        tokens, seconds = sum(len(feed.tokens) for feed in feeds), now - started
        if tokens:
            self.steps.observe(kind, tokens, seconds)
        if self._cost is not None:
            self._cost.observe(kind, tokens, seconds)
        ready: list[Sequence] = []
        for sequence, feed in zip(sequences, feeds, strict=True):
            sequence.fed(feed)
            if feed.wants_logits:
                ready.append(sequence)
        self._save(ready)
        return self._sample(ready, now)

    def _save(self, sequences: Iterable[Sequence]) -> None:
        """Save the prompts that are complete and have an id."""
        for sequence in sequences:
            if sequence.prompt_id and sequence.is_prefilling:
                saved = self._reuse.save(sequence)
                if saved is not None:
                    self._saved.append(saved)

    def _sample(self, sequences: Iterable[Sequence], now: float) -> list[Message]:
        """Sample the next token of each sequence; end those that are finished.

        An error, but a MemoryError, fails only its request.
        """
        tokens: list[Token] = []
        ends: list[Message] = []
        for sequence in sequences:
            try:
                tokens += sequence.sample(self._engine, now)
            except Exception as error:
                ends.append(self._fail(sequence, error))
                continue
            if sequence.finish_reason is not None:
                self._release(sequence)
                ends.append(sequence.finished(sequence.finish_reason, self._clock()))
            elif sequence.is_prefilling:
                self._begin_decoding(sequence)
        return [Tokens(tuple(tokens)), *ends] if tokens else ends

    # ---------------------------------------------------------------- joining and leaving

    def _admit(self) -> None:
        """Move waiting requests into free slots."""
        while self._waiting and self._reuse.slots.has_free:
            request = self._waiting.popleft()
            slot = self._reuse.slots.take(request.tokens)
            self._prefilling[slot] = Sequence(
                request.request, slot, request.tokens, request.sampler, self._clock()
            )

    def _in_order(self) -> Iterable[Sequence]:
        """Return the running sequences: first those whose prompts are processed, in order."""
        return (*self._prefilling.values(), *self._decoding.values())

    def _begin_decoding(self, sequence: Sequence) -> None:
        sequence.is_prefilling = False
        self._decoding[sequence.slot] = self._prefilling.pop(sequence.slot)
        self.decoding.add(sequence.id)

    def _fail(self, sequence: Sequence, error: Exception) -> Failed:
        self._release(sequence, is_intact=False)
        return failed(sequence.id, error)

    def _release(self, sequence: Sequence, *, is_intact: bool = True) -> None:
        self._prefilling.pop(sequence.slot, None)
        self._decoding.pop(sequence.slot, None)
        self.decoding.discard(sequence.id)
        self._reuse.release(sequence, is_intact=is_intact)
