"""All of a worker's policy, without any I/O: which sequence is fed what in each step.

    waiting ──(a slot is free, first come first served)──▶ prefill ──▶ decode ──▶ over

A step is of one of two kinds. A decode step carries the last token of every sequence that
decodes. A prefill step carries chunks of prompts, first come first served. While there are both,
the two take turns: a prompt's chunk is so large that both steps together stay within
`max_stall_s`. While no stream runs, it is as large as is fastest. Sequences join and leave between
any two steps. A cancel takes effect at the next one, and a long prefill step can be interrupted
for it. A prompt begins behind the tokens of it that have been processed before.

Prompts that are embedded need no slot. Every other prefill step is one of theirs, of one chunk.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Collection, Iterable

from shared.errors import ContextTooShort, ServingError
from shared.messages import Embed, Failed, Finished, Generate, Message, Token, Tokens
from shared.steps import StepTally
from shared.values import Timings, Usage
from workers.child.embedding import Embeddings
from workers.child.reuse import Reuse
from workers.child.sequence import Sequence
from workers.child.step_cost import Curve, SequenceStep, StepCost
from workers.child.tokenize import tokens_of
from workers.engines.base import Engine, Feed, Interrupted
from workers.prompts.cache import PromptCache, SavedPrompt

SMALLEST_CHUNK = 16
"""Prompt tokens that a prefill step carries in any case: a tile of the kernels. Half as many take
nearly as long, so on a machine that is too slow for the limit they would starve the prompt and
spare the streams little."""
MOST_INTERRUPTIONS = 3
"""In a row; the step after them goes on to its end."""
LONGEST_STEP_S = 2.0
"""Of a step that stalls nobody: far below any deadline for progress."""


class Scheduler:
    """Runs requests on an engine. `clock` tells the time in seconds.

    `cost`: what steps take; None: always about the same. `max_stall_s`: the longest time that a
    decode step and a prefill step may take together, unless SMALLEST_CHUNK tokens take longer.
    `cache`: saved prompts. `root`: tokens that stand before every prompt.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], float],
        cost: StepCost | None,
        max_stall_s: float,
        cache: PromptCache | None = None,
        root: Collection[int] = (),
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._cost = cost
        self._max_stall_s = max_stall_s
        self._waiting: deque[Generate] = deque()
        self._prefilling: dict[int, Sequence] = {}  # by slot, in the order of admission
        self._decoding: dict[int, Sequence] = {}
        self._reuse = Reuse(engine, cache or PromptCache(0))
        self._root = list(root)
        self._saved: list[SavedPrompt] = []
        self._prompts_are_next = False
        self._embeddings = Embeddings(engine, clock)
        self._embeddings_are_next = False
        # Of all its tokens the hidden state is computed to its end: a height of its own.
        self._embed_cost = copy.copy(cost.prefill) if cost else None
        self._interruptions = 0  # of steps, one after the other
        self.steps = StepTally()
        """What the steps took that were neither interrupted nor failed, without sampling."""
        self.decoding: set[int] = set()
        """Ids of the requests whose streams have begun. Other threads may look something up."""

    @property
    def prefix_tokens(self) -> int:
        """How many tokens stand before each prompt that is not whole."""
        return len(self._root)

    @property
    def is_idle(self) -> bool:
        has_sequences = self._waiting or self._prefilling or self._decoding
        return not has_sequences and self._embeddings.is_idle

    def submit(self, request: Generate | Embed) -> None:
        """Run the request as soon as a slot is free; an Embed, when those before it are done."""
        if isinstance(request, Embed):
            self._embeddings.submit(request)
        else:
            self._waiting.append(request)

    def remember(self, saved: SavedPrompt) -> None:
        """A prompt that was saved before, for requests to begin from."""
        self._reuse.remember(saved)

    def drop(self, prompt_id: int) -> None:
        """Forget the prompt that clients named so."""
        self._reuse.drop(prompt_id)

    def preload(self, tokens: list[int]) -> None:
        """The engine's first slot holds these tokens. Before the first request."""
        self._reuse.slots.release(0, tokens)

    def take_saved(self) -> list[SavedPrompt]:
        """The prompts that were saved under a client's name since the last call."""
        saved, self._saved = self._saved, []
        return saved

    def cancel(self, request_id: int) -> list[Message]:
        """Stop the request; no token of it follows. An unknown id has ended already: no news."""
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                return [Finished(request_id, "cancelled", Usage(0, 0, 0), Timings(0.0, 0.0))]
        for sequence in (*self._prefilling.values(), *self._decoding.values()):
            if sequence.id == request_id:
                self._release(sequence)
                return [sequence.finished("cancelled", self._clock())]
        return self._embeddings.cancel(request_id)

    def step(self) -> list[Message]:
        """Run the next step; return what it brought."""
        events = self._admit() + self._embeddings.begin()
        has_prompts = bool(self._prefilling) or not self._embeddings.is_idle
        if self._decoding and not (has_prompts and self._prompts_are_next):
            self._prompts_are_next = True
            events += self._decode()
        elif has_prompts:
            self._prompts_are_next = False
            events += self._process_prompts()
        return events + self._reuse.take_news()

    # ---------------------------------------------------------------- the two kinds of steps

    def _decode(self) -> list[Message]:
        sequences = list(self._decoding.values())
        feeds = [sequence.next_token() for sequence in sequences]
        width = self._cost.widths.width(len(feeds)) if self._cost else 0
        return self._run("decode", sequences, feeds, width=width)

    def _process_prompts(self) -> list[Message]:
        """Sequences and embeddings take turns, too."""
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
        """Feed the first prompt, and as much of each further one for which there is room.

        Chunks of one length are computed together; others would be read the weights for again.
        """
        sequences: list[Sequence] = []
        feeds: list[Feed] = []
        curve = self._cost.prefill if self._cost else None
        room, batch = self._room_for_prompts(curve), self._engine.info.batch
        for sequence in list(self._prefilling.values()):
            if not sequence.has_begun and not self._reuse.begin(sequence, self._in_order()):
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
        # Not for ever: clients that leave one after the other would starve those who stay.
        interruptible = self._interruptions < MOST_INTERRUPTIONS
        return self._run("prefill", sequences, feeds, interruptible=interruptible)

    def _room_for_prompts(self, curve: Curve | None) -> int:
        """Prompt tokens that the next step of prompts may carry. `curve`: what they take."""
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
        """Feed the sequences, and sample where their prompts are done."""
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
        """Keep the prompts that are done and have a name."""
        for sequence in sequences:
            if sequence.prompt_id and sequence.is_prefilling:
                saved = self._reuse.save(sequence)
                if saved is not None:
                    self._saved.append(saved)

    def _sample(self, sequences: Iterable[Sequence], now: float) -> list[Message]:
        """The next token of each; end what has come to its end."""
        tokens: list[Token] = []
        over: list[Message] = []
        for sequence in sequences:
            try:
                tokens += sequence.sample(self._engine, now)
            except ServingError as error:
                over.append(self._fail(sequence, error))
                continue
            if sequence.finish_reason is not None:
                self._release(sequence)
                over.append(sequence.finished(sequence.finish_reason, self._clock()))
            elif sequence.is_prefilling:
                self._begin_decoding(sequence)
        return [Tokens(tuple(tokens)), *over] if tokens else over

    # ---------------------------------------------------------------- joining and leaving

    def _admit(self) -> list[Message]:
        """Move waiting requests into free slots; those that cannot run fail here."""
        failures: list[Message] = []
        while self._waiting and self._reuse.slots.has_free:
            request = self._waiting.popleft()
            try:
                sequence = self._begin(request)
            except ServingError as error:
                failures.append(Failed(request.id, error.code, error.message))
            else:
                self._prefilling[sequence.slot] = sequence
        return failures

    def _begin(self, request: Generate) -> Sequence:
        now, context = self._clock(), self._engine.info.context
        root = [] if request.prompt.is_whole else self._root
        prompt = root + tokens_of(request.prompt, self._engine, is_start=not root)
        if len(prompt) >= context:
            raise ContextTooShort(
                f"the prompt has {len(prompt)} tokens; the context holds {context},"
                " of which one must be left for the answer"
            )
        sampler = self._engine.sampler(request.sampling, prompt)
        return Sequence(request, self._reuse.slots.take(prompt), prompt, sampler, now)

    def _in_order(self) -> Iterable[Sequence]:
        """The running sequences; prompts that come first stand first."""
        return (*self._prefilling.values(), *self._decoding.values())

    def _begin_decoding(self, sequence: Sequence) -> None:
        sequence.is_prefilling = False
        self._decoding[sequence.slot] = self._prefilling.pop(sequence.slot)
        self.decoding.add(sequence.id)

    def _fail(self, sequence: Sequence, error: ServingError) -> Failed:
        self._release(sequence, is_intact=False)
        return Failed(sequence.id, error.code, error.message)

    def _release(self, sequence: Sequence, *, is_intact: bool = True) -> None:
        self._prefilling.pop(sequence.slot, None)
        self._decoding.pop(sequence.slot, None)
        self.decoding.discard(sequence.id)
        self._reuse.release(sequence, is_intact=is_intact)
