"""One generation: its tokens, its position, and when it is over."""

from __future__ import annotations

from shared.messages import Finished, FinishReason, Generate, Timings, Token, Usage
from workers.engine import Engine, Feed, Sampler
from workers.text_assembly import TextAssembler


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

    def next_feed(self, slot: int, engine: Engine) -> Feed:
        """What the engine must process next: a chunk of the prompt, or the last token."""
        size = min(self._params.n_batch or engine.info.batch, engine.max_batch)
        chunk = self._unfed[:size]
        return Feed(slot, chunk, self._position, wants_logits=len(chunk) == len(self._unfed))

    def fed(self, feed: Feed) -> None:
        """The engine has processed `feed`."""
        del self._unfed[: len(feed.tokens)]
        self._position += len(feed.tokens)

    def sampled(self, token: int, engine: Engine, now: float) -> list[Token]:
        """Take the next token; return what may now be sent. May set `finish_reason`."""
        if self._first_token_at is None:
            self._first_token_at = now
        if engine.is_end(token):
            self.finish_reason = "stop"
            return self._tokens(flush=True)
        self._completion_tokens += 1
        released = self._tokens(token, engine.piece(token))
        if self._assembler.stopped:
            self.finish_reason = "stop"
        elif self._is_full(engine):
            self.finish_reason = "length"
            released += self._tokens(flush=True)
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

    def _tokens(self, token: int = 0, data: bytes = b"", *, flush: bool = False) -> list[Token]:
        pieces = self._assembler.flush() if flush else self._assembler.push(token, data)
        first = self._sent
        self._sent += len(pieces)
        return [
            Token(self.id, piece.token, position, piece.text)
            for position, piece in enumerate(pieces, start=first)
        ]
