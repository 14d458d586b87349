"""Chooses the worker for a request: by prefix affinity, weighed against load.

The front knows texts, not tokens, and remembers the texts that it sent to each worker. The cost of
a worker, in seconds:

    requests that it runs × SLOWER × seconds that a stream takes
    - characters of the prompt's prefix that it has processed × seconds of prefill per character

Both durations are moving averages over completed requests. The worker with the lowest cost is
chosen; among equals the one with the fewest requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from shared.messages import Finished
from workers.pool.estimates import Average
from workers.prompts.prefix import common_prefix

Worker = TypeVar("Worker", bound=Hashable)

MOST_PROMPTS = 64
"""Prompts that are remembered for each worker."""
MOST_CHARACTERS = 2**22
"""Characters of these prompts together."""
SLOWER = 0.2
"""By which share one more stream slows down each other stream of a worker. Measured on two cores
with 1.1 billion weights: 16 streams take 190 ms a token, a single one 44 ms."""


class RecentPrompts:
    """The last prompts that one worker got."""

    def __init__(self) -> None:
        self._texts: deque[str] = deque()
        self._characters = 0

    def add(self, text: str) -> None:
        self._texts.append(text)
        self._characters += len(text)
        while len(self._texts) > MOST_PROMPTS or self._characters > MOST_CHARACTERS:
            self._characters -= len(self._texts.popleft())

    def known(self, text: str) -> int:
        """Length of the longest common prefix with any remembered prompt, in characters."""
        return max((common_prefix(other, text) for other in self._texts), default=0)


class Router(Generic[Worker]):
    """Implements the module's rule, for any hashable kind of worker."""

    def __init__(self) -> None:
        self._prompts: dict[Worker, RecentPrompts] = {}
        self._character_s = Average()
        self._stream_s = Average()

    def choose(self, busy: Mapping[Worker, int], text: str) -> Worker:
        """Choose one of the workers in `busy`, which says how many requests each one runs."""
        if len(busy) == 1:
            return next(iter(busy))
        return min(busy, key=lambda worker: (self._cost(worker, busy[worker], text), busy[worker]))

    def sent(self, worker: Worker, text: str) -> None:
        """Remember that the worker got the text."""
        self._prompts.setdefault(worker, RecentPrompts()).add(text)

    def keep_only(self, workers: Iterable[Worker]) -> None:
        """Forget all other workers: their processes have ended, and their caches with them."""
        for worker in self._prompts.keys() - set(workers):
            del self._prompts[worker]

    def learn(self, text: str, finished: Finished) -> None:
        """Take a completed request of this text into account."""
        usage, timings = finished.usage, finished.timings
        processed = usage.prompt_tokens - usage.cached_tokens
        if processed > 0 and usage.completion_tokens > 0:
            characters = len(text) * processed / usage.prompt_tokens
            self._character_s.add(timings.prefill_s / max(1.0, characters))
            self._stream_s.add(timings.decode_s)

    def _cost(self, worker: Worker, requests: int, text: str) -> float:
        known = self._prompts[worker].known(text) if worker in self._prompts else 0
        return requests * SLOWER * self._stream_s.value - known * self._character_s.value
