"""Prompts on their way to a vector: one after the other, chunk by chunk, beside all slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shared.errors import ContextTooShort, ServingError
from shared.messages import Embed, Embedded, Failed, Finished, Message
from shared.values import FinishReason, Timings, Usage
from workers.child.tokenize import tokens_of
from workers.engines.base import Engine


class Embedding:
    """One prompt, and how far it is. `now` is in seconds."""

    def __init__(self, request_id: int, tokens: list[int], now: float) -> None:
        self.id = request_id
        self.tokens = tokens
        self.position = 0
        """The engine has processed all tokens before it."""
        self._began_at = now

    def finished(self, reason: FinishReason, now: float) -> Finished:
        usage = Usage(len(self.tokens), 0, 0)
        return Finished(self.id, reason, usage, Timings(now - self._began_at, 0.0))


class Embeddings:
    """The prompts that wait, and the one that is processed. `clock` tells the time in seconds."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._waiting: deque[Embed] = deque()
        self._current: Embedding | None = None

    @property
    def is_idle(self) -> bool:
        return not self._waiting and self._current is None

    def submit(self, request: Embed) -> None:
        """Embed the prompt when those before it are done."""
        self._waiting.append(request)

    def cancel(self, request_id: int) -> list[Message]:
        """Stop the request; an unknown id is no news."""
        if self._current is not None and self._current.id == request_id:
            current, self._current = self._current, None
            return [current.finished("cancelled", self._clock())]
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                return [Finished(request_id, "cancelled", Usage(0, 0, 0), Timings(0.0, 0.0))]
        return []

    def begin(self) -> list[Message]:
        """Take the next prompt, if none is processed; those that cannot be fail here."""
        failures: list[Message] = []
        while self._waiting and self._current is None:
            request = self._waiting.popleft()
            try:
                self._current = Embedding(request.id, self._tokens_of(request), self._clock())
            except ServingError as error:
                failures.append(Failed(request.id, error.code, error.message))
        return failures

    def next_length(self, room: int) -> int:
        """Tokens of the next chunk, at most `room`; 0: there is none."""
        if self._current is None:
            return 0
        return min(room, len(self._current.tokens) - self._current.position)

    def step(self, length: int) -> list[Message]:
        """Process so many tokens of the current prompt, as `next_length` has said."""
        current = self._current
        if current is None:
            return []
        end = current.position + length
        is_last = end == len(current.tokens)
        try:
            chunk = current.tokens[current.position : end]
            vector = self._engine.embed(chunk, current.position, is_last=is_last)
        except ServingError as error:
            self._current = None
            return [Failed(current.id, error.code, error.message)]
        current.position = end
        if not is_last:
            return []
        self._current = None
        return [Embedded(current.id, vector), current.finished("stop", self._clock())]

    def _tokens_of(self, request: Embed) -> list[int]:
        tokens = tokens_of(request.prompt, self._engine, is_start=True)
        context = self._engine.info.context
        if len(tokens) > context:
            raise ContextTooShort(
                f"the prompt has {len(tokens)} tokens; the context holds {context}"
            )
        return tokens
