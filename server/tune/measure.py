"""Measures a pool of real workers: throughput, time to first token, stalls.

All requests go through WorkerPool, like those over HTTP, but without HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from shared.errors import ConfigurationError
from shared.messages import Failed, Finished, Token
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.settings import PoolSettings
from workers.pool.pool import WorkerPool

PROMPT_WORDS = 500
SHORT_WORDS = 40
STREAM_WORDS = 3
TEXT = """\
the king went into the deep forest and there he found an old house where a woman sat by the fire
she gave him bread and water then said take this key but open no door before the third night has
come for behind it sleeps one who never wakes unless somebody calls his name"""
"""Prompts consist of its words, in random order."""
MAX_FILLED = 0.7
"""Share of the context that the long prompt may fill."""
MIN_TOKENS = 3
"""Tokens of each stream that a measurement needs."""
MAX_WINDOWS = 4
"""A measurement with too few tokens goes on for this number of windows."""
RUNNING = 3
"""Number of running streams when a prompt arrives."""


@dataclass(frozen=True, slots=True)
class PromptFigure:
    """The time to first token of a prompt."""

    words: int
    tokens: int
    seconds: float
    is_estimate: bool = False
    """Whether it is extrapolated from a shorter prompt."""


@dataclass(frozen=True, slots=True)
class StallFigure:
    """How a prompt and running streams slowed each other down."""

    streams: int
    """Number of running streams."""
    stall_s: float
    """The longest pause of a running stream."""
    usual_s: float
    """Mean inter-token latency of a stream before the prompt arrived."""
    prompt: PromptFigure
    """The prompt that arrived."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of a pool."""

    load_s: float
    rates: dict[int, float]
    """Throughput of all streams together, in tokens/s, by the number of streams."""
    prompt: PromptFigure
    """A long prompt on idle workers."""


def fastest(one: Figures, other: Figures) -> Figures:
    """The better value of each figure: disturbances only ever slow down."""
    rates = {n: max(rate, other.rates[n]) for n, rate in one.rates.items()}
    prompt = min(one.prompt, other.prompt, key=lambda figure: figure.seconds)
    return Figures(min(one.load_s, other.load_s), rates, prompt)


@dataclass(slots=True)
class _Stream:
    """A stream without end: when its request finishes, the next one starts."""

    times: list[float] = field(default_factory=list)
    """When each token came, in seconds of the monotonic clock."""
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)


class Gauge:
    """Measures a pool whose workers are ready. `window_s`: duration of each measurement, about."""

    def __init__(self, pool: WorkerPool, window_s: float, seed: int = 1) -> None:
        status = pool.status()
        model = status.model
        if model is None:
            raise ConfigurationError(status.why_not_ready or "no worker is ready")
        self._pool = pool
        self._window_s = window_s
        self._words = TEXT.split()
        self._random = random.Random(seed)
        self._seeds = itertools.count(seed)
        self.slots = model.slots * len(status.workers)
        self._context = model.context
        length = max(1, min(256, self._context // 2))
        self._sampling = SamplingParams(num_predict=length, ignore_eos=True)

    async def figures(self, load_s: float, streams: tuple[int, ...]) -> Figures:
        """Raises ConfigurationError when a request fails."""
        prompt = await self.prompt()
        rates = {n: await self.rate(n) for n in streams}
        return Figures(load_s, rates, prompt)

    async def rate(self, streams: int) -> float:
        """Throughput of this number of streams, in tokens/s. Streams beyond the slots wait."""
        async with self._running(streams) as running:
            for stream in running:
                del stream.times[:-1]
            await self._window(running[: self.slots])
        return sum(_rate(stream.times) for stream in running)

    async def prompt(self) -> PromptFigure:
        """A long prompt on idle workers, which have no part of it in their KV cache."""
        short = await self._first_token(SHORT_WORDS)
        words = self._words_that_fit(short)
        if short.seconds * words / SHORT_WORDS > MAX_WINDOWS * self._window_s:
            return _scaled(short, words)
        return await self._first_token(words)

    async def stall(self) -> StallFigure:
        """A long prompt arrives while streams run. Needs at least two slots."""
        short = await self._first_token(SHORT_WORDS)
        words = self._words_that_fit(short)
        if short.seconds * words / SHORT_WORDS > MAX_WINDOWS / 2 * self._window_s:
            words = SHORT_WORDS
        count = min(RUNNING, self.slots - 1)
        async with self._running(count) as running:
            for stream in running:
                del stream.times[:-1]
            await self._window(running)
            usual_s = sum(1 / _rate(stream.times) for stream in running) / count
            for stream in running:
                del stream.times[:-1]
            prompt = await self._first_token(words)
        gaps = [b - a for stream in running for a, b in itertools.pairwise(stream.times)]
        stall_s = max(gaps, default=usual_s)
        full = self._words_that_fit(short)
        return StallFigure(
            count, stall_s, usual_s, prompt if words == full else _scaled(prompt, full)
        )

    def _words_that_fit(self, short: PromptFigure) -> int:
        room = MAX_FILLED * self._context * SHORT_WORDS / short.tokens
        return max(1, min(PROMPT_WORDS, int(room)))

    def _text(self, words: int) -> Prompt:
        return Prompt(" ".join(self._random.choice(self._words) for _ in range(words)))

    async def _first_token(self, words: int) -> PromptFigure:
        sampling = replace(self._sampling, num_predict=1, seed=next(self._seeds))
        started = time.monotonic()
        stream = self._pool.submit(self._text(words), sampling)
        seconds = 0.0
        try:
            while True:
                for event in await stream.take():
                    match event:
                        case Token():
                            seconds = time.monotonic() - started
                        case Finished(usage=usage):
                            return PromptFigure(words, usage.prompt_tokens, seconds)
                        case Failed(message=message):
                            raise ConfigurationError(f"a request failed: {message}")
        finally:
            self._pool.release(stream)

    async def _window(self, running: list[_Stream]) -> None:
        """Let the streams run; for longer if they bring few tokens."""
        for _ in range(MAX_WINDOWS):
            await asyncio.sleep(self._window_s)  # this is the measurement itself
            if all(len(stream.times) > MIN_TOKENS for stream in running):
                return

    @asynccontextmanager
    async def _running(self, count: int) -> AsyncIterator[list[_Stream]]:
        """A context in which `count` streams run. Each that has a slot has its first token."""
        streams = [_Stream() for _ in range(count)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._keep_running(stream)) for stream in streams]
                for stream in streams[: self.slots]:
                    await stream.has_begun.wait()
                yield streams
                for task in tasks:
                    task.cancel()
        except* ConfigurationError as failures:
            raise ConfigurationError(str(failures.exceptions[0])) from None

    async def _keep_running(self, running: _Stream) -> None:
        while True:
            sampling = replace(self._sampling, seed=next(self._seeds))
            stream = self._pool.submit(self._text(STREAM_WORDS), sampling)
            try:
                is_over = False
                while not is_over:
                    for event in await stream.take():
                        if isinstance(event, Token):
                            running.times.append(time.monotonic())
                            running.has_begun.set()
                        elif isinstance(event, Failed):
                            raise ConfigurationError(f"a request failed: {event.message}")
                        else:
                            is_over = True
            finally:
                self._pool.release(stream)


@asynccontextmanager
async def ready_pool(settings: PoolSettings) -> AsyncIterator[tuple[WorkerPool, float]]:
    """A pool whose workers are all ready, and the seconds that this took.

    Raises ConfigurationError if they cannot be ready.
    """
    started = time.monotonic()
    async with WorkerPool(settings) as pool:
        failure = asyncio.ensure_future(pool.load_failure())
        ready = asyncio.ensure_future(pool.until_ready(len(settings.workers)))
        try:
            await asyncio.wait({failure, ready}, return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                raise failure.result()
            if (reason := ready.result()) is not None:
                raise ConfigurationError(reason)
            yield pool, time.monotonic() - started
        finally:
            failure.cancel()
            ready.cancel()


def _rate(times: list[float]) -> float:
    """Tokens per second, from the times at which the tokens came; 0 for fewer than two."""
    if len(times) < 2 or times[-1] <= times[0]:
        return 0.0
    return (len(times) - 1) / (times[-1] - times[0])


def _scaled(short: PromptFigure, words: int) -> PromptFigure:
    factor = words / short.words
    return PromptFigure(words, round(short.tokens * factor), short.seconds * factor, factor != 1)
