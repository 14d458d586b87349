"""Which requests are sent, and when they arrive. A seed determines both."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from scripts.load.request import Request
from scripts.loadtest.prompts import Source


@dataclass(frozen=True, slots=True)
class Plan:
    """All requests of a load.

    The same seed and index give the same request, in whatever order they are drawn.
    """

    source: Source
    seed: str
    cancelled_share: float = 0.0
    """Share of the requests whose client disconnects before the end, from 0 to 1."""

    def request(self, index: int) -> Request:
        """Request number `index`. Requests of the warm-up have negative numbers."""
        chance = random.Random(f"{self.seed} {index}")
        request = self.source.draw(index, chance, self.seed)
        if chance.random() >= self.cancelled_share:
            return request
        return replace(request, cancel_after_tokens=chance.randrange(request.tokens))


def arrivals(rate: float, ramp_s: float, seed: str) -> Iterator[float]:
    """Endless arrival times of requests, in seconds: a Poisson process.

    Its rate, in requests per second, rises linearly from 0 during the first `ramp_s` seconds.
    """
    chance = random.Random(f"{seed} arrivals")
    expected = 0.0  # number of requests until the arrival
    for _ in itertools.count():
        expected += chance.expovariate(1.0)
        in_ramp = rate * ramp_s / 2
        if expected < in_ramp:
            yield math.sqrt(2 * ramp_s * expected / rate)
        else:
            yield ramp_s + (expected - in_ramp) / rate
