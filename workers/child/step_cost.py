"""How long a step takes, by what it carries: measured, then kept up to date.

A step carries a token each of some sequences that decode, or a chunk of a prompt: two curves.
Their shapes depend on the model and the machine, and are measured once, when a worker has loaded
its model. They are not straight lines: the first tokens share the reading of the weights, and
kernels work in tiles of 4, 8 or 16. Their heights change with the length of the contexts, with
other programs and with the CPU's temperature: each observed step corrects its curve.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from workers.child.interpolation import interpolate
from workers.child.padding import BatchPadding
from workers.engines.base import Engine, Feed

SequenceStep = Literal["decode", "prefill"]
"""The two kinds of steps that sequences take."""
PREFILL_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
DECODE_SIZES = (1, 2, 4, 3, 8, 7, 16, 15, 32, 31, 64, 63, 128, 256)
"""Whole tiles, and one less: a tile that is not full is often computed row by row."""
REPEATS = 3
"""How often a step is measured. The fastest counts: disturbances only slow a step."""
ENOUGH_S = 0.1
"""Seconds after which a measurement is not repeated: longer steps are disturbed relatively less."""
TILES = 1.3
"""How much more than in proportion a larger size may take, because it begins another tile."""
SHORTEST_S = 1e-9
"""Shortest time of a step, in seconds: measured times are divided by."""
LEARNING_RATE = 0.2
"""Weight of the newest step in the correction, which so follows within some ten steps."""
LARGEST_SURPRISE = 4.0
"""Largest ratio of measured to expected seconds that counts; a larger one counts as this."""


class Curve:
    """Expected seconds of a step by its size, ≥ 1.

    `measured`: seconds by size, of at least one size.
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        self._sizes = sorted(measured)
        self._seconds = [measured[self._sizes[0]]]
        for smaller, size in itertools.pairwise(self._sizes):
            self._seconds.append(_plausible(measured[size], self._seconds[-1], size / smaller))
        self._correction = 1.0

    def __str__(self) -> str:
        times = zip(self._sizes, self._seconds, strict=True)
        return ", ".join(f"{size}: {seconds * 1000:.1f} ms" for size, seconds in times)

    def expected(self, size: int) -> float:
        """Return the expected seconds of a step of `size`; 0 for size 0."""
        return self._measured(size) * self._correction if size else 0.0

    def observe(self, size: int, seconds: float) -> None:
        """Learn from a step. One beyond the measured sizes tells nothing."""
        if size > self._sizes[-1]:
            return
        surprise = seconds / self._measured(size)
        surprise = min(surprise, LARGEST_SURPRISE * self._correction)
        self._correction += LEARNING_RATE * (surprise - self._correction)

    def most_within(self, seconds: float, most: int) -> int:
        """Return the largest size, 0 to `most`, that is expected to take at most `seconds`."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.expected(middle) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def _measured(self, size: int) -> float:
        return interpolate(self._sizes, self._seconds, size)


@dataclass(frozen=True, slots=True)
class StepCost:
    """How long the two kinds of steps are expected to take."""

    decode: Curve
    """Seconds of a decode step by its sequences."""
    prefill: Curve
    """Seconds of a prefill step by its tokens."""
    padding: BatchPadding = field(default_factory=lambda: BatchPadding({}))
    """Chooses the batch size of decode steps."""

    def __str__(self) -> str:
        return f"decode {self.decode}; prefill {self.prefill}"

    def observe(self, kind: SequenceStep, tokens: int, seconds: float) -> None:
        """Learn from a step. A decode step had the batch size that `padding` has chosen."""
        if kind == "prefill":
            self.prefill.observe(tokens, seconds)
        else:
            self.decode.observe(tokens, seconds)
            self.padding.observe(tokens, seconds)


def decode_cost(measured: Mapping[int, float]) -> Curve:
    """Return the curve of decode steps, from the seconds measured for numbers of sequences.

    16 sequences may take less time than 15: then 15 are computed as 16, and take as long.
    """
    sizes = sorted(measured)
    seconds = [measured[size] for size in sizes]
    return Curve({size: min(seconds[index:]) for index, size in enumerate(sizes)})


def _plausible(seconds: float, before: float, growth: float) -> float:
    """Return a measured time, limited where it shows a disturbance.

    More tokens never take less time than fewer, nor more than in proportion, except for tiles.
    """
    return min(max(seconds, before), before * growth * TILES)


def measure(
    engine: Engine, clock: Callable[[], float], text: Sequence[int], limit_s: float
) -> StepCost:
    """Time the engine on increasing steps of both kinds.

    Prefill steps are measured until one takes more than `limit_s` seconds. Decode steps may take
    twice that: there are fewer sizes, and the largest occur most often.
    `text`: tokens to feed, repeatedly, in slots that are empty before and after.
    """

    def decode(size: int) -> list[Feed]:
        return [Feed(slot, text[:1], 0, wants_logits=True) for slot in range(size)]

    def prefill(size: int) -> list[Feed]:
        tokens = [text[i % len(text)] for i in range(size)]
        return [Feed(0, tokens, 0, wants_logits=False)]

    def times(
        feeds: Callable[[int], list[Feed]], sizes: Sequence[int], most: int, limit_s: float
    ) -> dict[int, float]:
        measured: dict[int, float] = {}
        for size in sizes:
            if size > most:
                break
            measured[size] = _time_step(engine, clock, feeds(size))
            if measured[size] > limit_s:
                break
        return measured

    streams = min(engine.info.slots, engine.max_batch)
    decoded = times(decode, DECODE_SIZES, streams, 2 * limit_s)
    most = min(engine.info.context, engine.max_batch)
    prefilled = times(prefill, PREFILL_SIZES, most, limit_s)
    return StepCost(decode_cost(decoded), Curve(prefilled), BatchPadding(decoded))


def _time_step(engine: Engine, clock: Callable[[], float], feeds: Sequence[Feed]) -> float:
    """Return the fastest of some repeats, in seconds. A step that takes long is not repeated."""
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < ENOUGH_S:
        started = clock()
        engine.decode(feeds)
        times.append(clock() - started)
        for feed in feeds:
            engine.truncate(feed.slot, 0)
    return max(min(times), SHORTEST_S)
