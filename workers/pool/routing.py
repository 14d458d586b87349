"""Which worker gets a request: the one that has processed its beginning, unless it is busier by
more than that is worth.

The front knows texts, not tokens. It remembers what it sent to each worker. A beginning of n
characters that a worker had before saves n × the seconds that a character of a prompt takes; a
request more that runs there than elsewhere costs SLOWER × the seconds that a stream takes. Both
seconds are learned from the requests that finish. The worker with the smallest balance is chosen,
of equal ones the least busy.
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
MOST_CHARACTERS = 2**22
"""What is remembered of each worker."""
SLOWER = 0.2
"""How much slower a neighbour makes a stream. On two cores 16 streams of 1.1 billion weights take
190 ms a token, one alone 44 ms: a fifth for each."""


class RecentPrompts:
    """The last texts that one worker got."""

    def __init__(self) -> None:
        self._texts: deque[str] = deque()
        self._characters = 0

    def add(self, text: str) -> None:
        self._texts.append(text)
        self._characters += len(text)
        while len(self._texts) > MOST_PROMPTS or self._characters > MOST_CHARACTERS:
            self._characters -= len(self._texts.popleft())

    def known(self, text: str) -> int:
        """Characters at the beginning of the text that some earlier one began with too."""
        return max((common_prefix(other, text) for other in self._texts), default=0)


class Router(Generic[Worker]):
    """See the module's docstring."""

    def __init__(self) -> None:
        self._prompts: dict[Worker, RecentPrompts] = {}
        self._character_s = Average()
        self._stream_s = Average()

    def choose(self, busy: Mapping[Worker, int], text: str) -> Worker:
        """One of the workers that could take the text; `busy`: the requests that each has."""
        if len(busy) == 1:
            return next(iter(busy))
        return min(busy, key=lambda worker: (self._cost(worker, busy[worker], text), busy[worker]))

    def sent(self, worker: Worker, text: str) -> None:
        """The worker got the text."""
        self._prompts.setdefault(worker, RecentPrompts()).add(text)

    def keep_only(self, workers: Iterable[Worker]) -> None:
        """All others are gone, and what they had processed with them."""
        for worker in self._prompts.keys() - set(workers):
            del self._prompts[worker]

    def learn(self, text: str, finished: Finished) -> None:
        """A request of this text took so long."""
        usage, timings = finished.usage, finished.timings
        processed = usage.prompt_tokens - usage.cached_tokens
        if processed > 0 and usage.completion_tokens > 0:
            characters = len(text) * processed / usage.prompt_tokens
            self._character_s.add(timings.prefill_s / max(1.0, characters))
            self._stream_s.add(timings.decode_s)

    def _cost(self, worker: Worker, requests: int, text: str) -> float:
        known = self._prompts[worker].known(text) if worker in self._prompts else 0
        return requests * SLOWER * self._stream_s.value - known * self._character_s.value
