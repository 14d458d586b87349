"""Prompts that become vectors: one after the other, chunk by chunk, without a slot."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shared.messages import Embedded, Finished, Message
from shared.values import FinishReason, Timings, Usage
from workers.child.endings import cancelled, failed
from workers.child.prepared import PreparedEmbed
from workers.engines.base import Engine


class Embedding:
    """One prompt and its progress. `now` is in seconds."""

    def __init__(self, request: PreparedEmbed, now: float) -> None:
        self.id = request.id
        self.tokens = request.tokens
        self.position = 0
        """The engine has processed all tokens before it."""
        self._began_at = now

    def finished(self, reason: FinishReason, now: float) -> Finished:
        """Return the request's last message."""
        usage = Usage(len(self.tokens), 0, 0)
        return Finished(self.id, reason, usage, Timings(now - self._began_at, 0.0))


class Embeddings:
    """The prompt that is embedded, and those that wait. `clock` returns the time in seconds."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._waiting: deque[PreparedEmbed] = deque()
        self._current: Embedding | None = None

    @property
    def is_idle(self) -> bool:
        """There is nothing to embed."""
        return not self._waiting and self._current is None

    def submit(self, request: PreparedEmbed) -> None:
        """Embed the prompt after those before it."""
        self._waiting.append(request)

    def cancel(self, request_id: int) -> list[Message]:
        """Stop the request. Return nothing if it is not here."""
        if self._current is not None and self._current.id == request_id:
            current, self._current = self._current, None
            return [current.finished("cancelled", self._clock())]
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                return [cancelled(request_id)]
        return []

    def begin(self) -> None:
        """Take the next prompt, if none is being embedded."""
        if self._current is None and self._waiting:
            self._current = Embedding(self._waiting.popleft(), self._clock())

    def next_length(self, room: int) -> int:
        """Return the length of the next chunk in tokens, at most `room`; 0: there is none."""
        if self._current is None:
            return 0
        return min(room, len(self._current.tokens) - self._current.position)

    def step(self, length: int) -> list[Message]:
        """Process `length` tokens of the current prompt, at most what `next_length` returned."""
        current = self._current
        if current is None:
            return []
        end = current.position + length
        is_last = end == len(current.tokens)
        try:
            chunk = current.tokens[current.position : end]
            vector = self._engine.embed(chunk, current.position, is_last=is_last)
        except Exception as error:  # of any kind: it belongs to this request only
            self._current = None
            return [failed(current.id, error)]
        current.position = end
        if not is_last:
            return []
        self._current = None
        return [Embedded(current.id, vector), current.finished("stop", self._clock())]
