"""One generation: its tokens, its position, and when it is over."""

from __future__ import annotations

from collections.abc import Callable

from shared.messages import (
    Finished,
    FinishReason,
    Generate,
    Logprobs,
    Timings,
    Token,
    Usage,
)
from workers.engine import Engine, Feed, Sampler
from workers.text_assembly import Piece, TextAssembler


class Sequence:
    """A request in a slot. It knows what to feed next and what each sampled token means."""

    def __init__(self, request: Generate, prompt: list[int], sampler: Sampler, now: float) -> None:
        self.id = request.id
        self.sampler = sampler
        self.finish_reason: FinishReason | None = None
        self._params = request.sampling
        self._assembler = TextAssembler(request.sampling.stop)
        self._unfed = prompt
        self._prompt_tokens = len(prompt)
        self._position = 0
        self._completion_tokens = 0
        self._sent = 0
        self._received_at = now
        self._first_token_at: float | None = None

    @property
    def is_prefilling(self) -> bool:
        """Its prompt is not processed yet: nobody sees its tokens stall."""
        return self._first_token_at is None

    def next_feed(self, slot: int, room: int, batch: int) -> Feed:
        """What the engine must process next: a chunk of the prompt, or the last token.

        A chunk has at most `room` tokens, and at most `batch` where the request does not say.
        """
        chunk = self._unfed[: min(room, self._params.n_batch or batch)]
        return Feed(slot, chunk, self._position, wants_logits=len(chunk) == len(self._unfed))

    def fed(self, feed: Feed) -> None:
        """The engine has processed `feed`."""
        del self._unfed[: len(feed.tokens)]
        self._position += len(feed.tokens)

    def sample(self, slot: int, engine: Engine, clock: Callable[[], float]) -> list[Token]:
        """Choose the next token; return what may now be sent. Raises EngineFailed."""
        token = engine.sample(slot, self.sampler)
        top = self._params.logprobs
        logprobs = None if top is None else engine.logprobs(slot, token, top)
        return self.sampled(token, engine, clock(), logprobs)

    def sampled(
        self, token: int, engine: Engine, now: float, logprobs: Logprobs | None = None
    ) -> list[Token]:
        """Take the next token; return what may now be sent. May set `finish_reason`."""
        if self._first_token_at is None:
            self._first_token_at = now
        if engine.is_end(token):
            self.finish_reason = "stop"
            return self._numbered(self._assembler.flush())
        self._completion_tokens += 1
        released = self._numbered(self._assembler.push(token, engine.piece(token), logprobs))
        if self._assembler.stopped:
            self.finish_reason = "stop"
        elif self._is_full(engine):
            self.finish_reason = "length"
            released += self._numbered(self._assembler.flush())
        else:
            self._unfed.append(token)
        return released

    def finished(self, reason: FinishReason, now: float) -> Finished:
        """The last word on this sequence. Times in seconds, since the worker received it."""
        first = self._first_token_at if self._first_token_at is not None else now
        return Finished(
            id=self.id,
            reason=reason,
            usage=Usage(self._prompt_tokens, 0, self._completion_tokens),
            timings=Timings(first - self._received_at, now - first),
        )

    def _is_full(self, engine: Engine) -> bool:
        used = self._prompt_tokens + self._completion_tokens
        return self._completion_tokens >= self._params.num_predict or used >= engine.info.context

    def _numbered(self, pieces: list[Piece]) -> list[Token]:
        first = self._sent
        self._sent += len(pieces)
        return [
            Token(self.id, piece.token, position, piece.text, piece.logprobs)
            for position, piece in enumerate(pieces, start=first)
        ]
