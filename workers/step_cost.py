"""How long a step takes, by the tokens that it carries: measured, then kept up to date.

The shape of the curve is the model's on this machine: it is measured once, when a worker has
loaded. It is no straight line: the first tokens share the reading of the weights, and kernels
work in tiles of 4, 8 or 16. Its height moves with the length of the contexts, with other
programs, with the CPU's heat: each step that is observed corrects it.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from workers.engine import Engine, Feed

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
REPEATS = 3
"""Of each measurement the fastest one counts: disturbances only ever slow a step down."""
ENOUGH_S = 0.1
"""Time for the repeats of one measurement: what takes longer is disturbed less, relatively."""
TILES = 1.3
"""How much worse than in proportion a size may be, because it begins another tile."""
SEQUENCES = 4
"""With so many at once it is measured what a sequence adds to a step."""
SHORTEST_S = 1e-9
"""No step takes less: what is measured is divided by."""
LEARNING_RATE = 0.2
"""Weight of the newest step in the correction: it follows within some ten steps."""
LARGEST_SURPRISE = 4.0
"""A step that took longer than so many times what was expected counts as this."""


class StepCost:
    """Expected seconds of a step.

    `measured`: tokens of one sequence to seconds, at least one pair. `each_sequence_s`: what
    every further sequence adds, for its own attention and its own row of logits.
    """

    def __init__(self, measured: Mapping[int, float], each_sequence_s: float = 0.0) -> None:
        self._each_sequence_s = each_sequence_s
        self._sizes = sorted(measured)
        self._seconds = [measured[self._sizes[0]]]
        for smaller, size in itertools.pairwise(self._sizes):
            self._seconds.append(_plausible(measured[size], self._seconds[-1], size / smaller))
        self._correction = 1.0

    def __str__(self) -> str:
        times = zip(self._sizes, self._seconds, strict=True)
        curve = ", ".join(f"{size} tokens {seconds * 1000:.1f} ms" for size, seconds in times)
        return f"{curve}; each further sequence {self._each_sequence_s * 1000:.1f} ms"

    def expected(self, tokens: int, sequences: int) -> float:
        """Seconds of a step of so many tokens, ≥ 1, of so many sequences that want logits."""
        return self._measured(tokens, sequences) * self._correction

    def observe(self, tokens: int, sequences: int, seconds: float) -> None:
        """Such a step took so long. One beyond the measured sizes tells nothing."""
        if tokens > self._sizes[-1]:
            return
        surprise = seconds / self._measured(tokens, sequences)
        surprise = min(surprise, LARGEST_SURPRISE * self._correction)
        self._correction += LEARNING_RATE * (surprise - self._correction)

    def tokens_within(self, seconds: float, most: int, sequences: int) -> int:
        """The most tokens, up to `most`, whose step is expected to take no longer; may be 0."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.expected(middle, sequences) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def _measured(self, tokens: int, sequences: int) -> float:
        return self._curve(tokens) + self._each_sequence_s * max(0, sequences - 1)

    def _curve(self, tokens: int) -> float:
        """Between two measured sizes on the line through them; beyond the last, in proportion."""
        place = bisect_left(self._sizes, tokens)
        if place == 0:
            return self._seconds[0]
        if place == len(self._sizes):
            return self._seconds[-1] * tokens / self._sizes[-1]
        low, high = self._sizes[place - 1 : place + 1]
        share = (tokens - low) / (high - low)
        return self._seconds[place - 1] * (1 - share) + self._seconds[place] * share


def _plausible(seconds: float, before: float, growth: float) -> float:
    """A measured time, unless a disturbance shows in it.

    More tokens never take less time than fewer, nor more than in proportion, but for the tiles.
    """
    return min(max(seconds, before), before * growth * TILES)


def measure(
    engine: Engine, clock: Callable[[], float], text: Sequence[int], limit_s: float
) -> StepCost:
    """Time the engine on ever larger steps, until one takes longer than `limit_s` seconds.

    `text`: tokens to feed, over and over, in slots that are empty before and after.
    """
    measured: dict[int, float] = {}
    for size in SIZES:
        if size > min(engine.max_batch, engine.info.context):
            break
        tokens = [text[i % len(text)] for i in range(size)]
        measured[size] = _time_step(engine, clock, [Feed(0, tokens, 0, wants_logits=True)])
        if measured[size] > limit_s:
            break
    alone = StepCost(measured)
    together = min(engine.info.slots, SEQUENCES, engine.max_batch)
    if together == 1:
        return alone
    feeds = [Feed(slot, text[:1], 0, wants_logits=True) for slot in range(together)]
    extra = _time_step(engine, clock, feeds) - alone.expected(together, 1)
    return StepCost(measured, max(0.0, extra / (together - 1)))


def _time_step(engine: Engine, clock: Callable[[], float], feeds: Sequence[Feed]) -> float:
    """The fastest of some repeats, in seconds; a step that takes long is not repeated."""
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < ENOUGH_S:
        started = clock()
        engine.decode(feeds)
        times.append(clock() - started)
        for feed in feeds:
            engine.forget(feed.slot)
    return max(min(times), SHORTEST_S)
