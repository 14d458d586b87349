"""One generation: its tokens, its position, and when it is finished."""

from __future__ import annotations

from shared.messages import Finished, Generate, Token
from shared.values import FinishReason, Logprobs, Timings, Usage
from workers.child.text_assembly import Piece, TextAssembler
from workers.engines.base import Engine, Feed, Sampler


class Sequence:
    """A request in a slot: what to feed next, and what each sampled token means.

    `prompt`: its tokens; the list is the sequence's from now on. `now`: the time in seconds.
    """

    def __init__(
        self, request: Generate, slot: int, prompt: list[int], sampler: Sampler, now: float
    ) -> None:
        self.id = request.id
        self.prompt_id = request.prompt_id
        self.slot = slot
        self.tokens = prompt
        """The tokens of the prompt, then those of the answer."""
        self.position = 0
        """The engine has processed all tokens before it."""
        self.is_prefilling = True
        self.has_begun = False
        """`begin` was called: the position is behind what the slot already holds."""
        self.finish_reason: FinishReason | None = None
        self._sampler = sampler
        self._params = request.sampling
        self._shows_control = request.shows_control
        self._assembler = TextAssembler(request.sampling.stop)
        self._prompt_tokens = len(prompt)
        self._cached_tokens = 0
        self._completion_tokens = 0
        self._sent = 0
        self._received_at = now
        self._first_token_at: float | None = None

    def begin(self, position: int) -> None:
        """Begin behind the first `position` tokens of the prompt, which the slot holds already.

        At least one token must be left.
        """
        self.has_begun = True
        self.position = self._cached_tokens = position

    def chunk_limit(self, batch: int) -> int:
        """Return the most prompt tokens of a chunk: the request's `n_batch`, else `batch`."""
        return self._params.n_batch or batch

    def next_chunk(self, room: int, batch: int) -> Feed:
        """Return the next chunk of the prompt: at most `room` tokens, and at most the limit."""
        end = min(self.position + min(room, self.chunk_limit(batch)), self._prompt_tokens)
        chunk = self.tokens[self.position : end]
        return Feed(self.slot, chunk, self.position, wants_logits=end == self._prompt_tokens)

    def next_token(self) -> Feed:
        """Return the token that was sampled last."""
        return Feed(self.slot, self.tokens[-1:], self.position, wants_logits=True)

    def fed(self, feed: Feed) -> None:
        """Note that the engine has processed `feed`."""
        self.position += len(feed.tokens)

    def sample(self, engine: Engine, now: float) -> list[Token]:
        """Sample the next token; return what may now be sent. Raises EngineFailed.

        Sets `finish_reason` if the generation is finished.
        """
        token = engine.sample(self.slot, self._sampler)
        top = self._params.logprobs
        logprobs = None if top is None else engine.logprobs(self.slot, token, top)
        return self.sampled(token, engine, now, logprobs)

    def sampled(
        self, token: int, engine: Engine, now: float, logprobs: Logprobs | None = None
    ) -> list[Token]:
        """Take the next token; return what may now be sent.

        Sets `finish_reason` if the generation is finished.
        """
        if self._first_token_at is None:
            self._first_token_at = now
        if engine.is_end(token):
            self.finish_reason = "stop"
            return self._numbered(self._assembler.flush())
        self.tokens.append(token)
        self._completion_tokens += 1
        piece = engine.piece(token, shows_control=self._shows_control)
        released = self._numbered(self._assembler.push(token, piece, logprobs))
        if self._assembler.stopped:
            self.finish_reason = "stop"
        elif self._is_full(engine):
            self.finish_reason = "length"
            released += self._numbered(self._assembler.flush())
        return released

    def finished(self, reason: FinishReason, now: float) -> Finished:
        """Return the last message of this sequence. Its times count from the admission."""
        first = self._first_token_at if self._first_token_at is not None else now
        return Finished(
            id=self.id,
            reason=reason,
            usage=Usage(self._prompt_tokens, self._cached_tokens, self._completion_tokens),
            timings=Timings(first - self._received_at, now - first),
        )

    def _is_full(self, engine: Engine) -> bool:
        is_long = self._completion_tokens >= self._params.num_predict
        return is_long or len(self.tokens) >= engine.info.context

    def _numbered(self, pieces: list[Piece]) -> list[Token]:
        first = self._sent
        self._sent += len(pieces)
        return [
            Token(self.id, piece.token, position, piece.text, piece.logprobs)
            for position, piece in enumerate(pieces, start=first)
        ]
