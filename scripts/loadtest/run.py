"""Loads: requests that are sent by a plan, and the time in which they count.

      ramp-up        warm-up              counted              the last ones end
├──────────────┼──────────────┼───────────────────────────┼─────────────────────┤
0        more and more      all            Run.start    Run.end

Requests that begin while it counts are seen to their ends. Tokens a second are those of all
requests that come while it counts, those of requests that began before it too.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.load.client import Client, Record, State
from scripts.loadtest.plan import Plan, arrivals

LAG_STEP_S = 0.01
"""Between two looks at how late the event loop is."""
PAUSE_S = 0.1
"""What a stream waits after a failure: a server that refuses is not to be asked without pause."""


@dataclass(frozen=True, slots=True)
class Span:
    """How long, in seconds, or how many requests."""

    ramp_s: float
    warm_up_s: float
    duration_s: float | None
    """None: until there were so many requests."""
    requests: int | None

    @property
    def counted_from_s(self) -> float:
        """Seconds from the start, after which requests count."""
        return self.ramp_s + self.warm_up_s

    @property
    def seconds(self) -> float | None:
        """Until the last request begins; None: it is not known."""
        return None if self.duration_s is None else self.counted_from_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Closed:
    """So many streams, each of which sends its next request when the last one is over."""

    streams: int

    @property
    def label(self) -> str:
        return f"{self.streams} stream{'s' * (self.streams != 1)}"

    @property
    def amount(self) -> float:
        return self.streams


@dataclass(frozen=True, slots=True)
class Open:
    """So many requests a second on average, whatever becomes of them."""

    rate: float

    @property
    def label(self) -> str:
        return f"{self.rate:g} requests/s"

    @property
    def amount(self) -> float:
        return self.rate


Shape = Closed | Open


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a load. Times are of time.monotonic, in seconds."""

    begun: float
    start: float
    """From here on it counts."""
    end: float
    """Until here."""
    records: Sequence[Record]
    cpu_share: float
    """Of a core, that the load generator took."""
    lags: Sequence[float]
    """How late its event loop was, in seconds, whenever that was looked at."""
    is_complete: bool
    """It was not interrupted."""


@dataclass(slots=True)
class LagMeter:
    """Looks how late the event loop is, and how much CPU time the process takes."""

    lags: list[float] = field(default_factory=list)
    _wall: float = 0.0
    _cpu: float = 0.0

    async def watch(self, until_s: float) -> None:
        """Until it is cancelled, from that time of time.monotonic on."""
        await asyncio.sleep(until_s - time.monotonic())
        self._wall, self._cpu = time.monotonic(), time.process_time()
        while True:
            due = time.monotonic() + LAG_STEP_S
            await asyncio.sleep(LAG_STEP_S)
            self.lags.append(max(time.monotonic() - due, 0.0))

    def cpu_share(self) -> float:
        """Of a core, since then."""
        passed = time.monotonic() - self._wall
        return (time.process_time() - self._cpu) / passed if self._wall and passed else 0.0


async def run_load(
    client: Client, shape: Shape, plan: Plan, span: Span, stop: asyncio.Event
) -> Run:
    """Put the load on the client's server, to its end or until `stop` is set."""
    begun = time.monotonic()
    meter = LagMeter()
    load = _Load(client, plan, span, begun)
    work = load.closed(shape) if isinstance(shape, Closed) else load.open(shape)
    watching = asyncio.create_task(meter.watch(load.counted_from))
    is_complete = await unless_stopped(work, stop)
    share = meter.cpu_share()
    watching.cancel()
    start, end = _counted(load.counted_from, span, client.records, is_complete)
    return Run(begun, start, end, client.records, share, meter.lags, is_complete)


async def unless_stopped(work: Coroutine[Any, Any, object], stop: asyncio.Event) -> bool:
    """Do the work to its end, or until `stop` is set. Whether it came to its end; its errors."""
    tasks = [asyncio.create_task(work), asyncio.create_task(stop.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    is_complete = tasks[0].done()
    for task in tasks:
        task.cancel()
    outcome, _ = await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome
    return is_complete


def _counted(
    start: float, span: Span, records: Sequence[Record], is_complete: bool
) -> tuple[float, float]:
    """From when to when it counted."""
    last = max((record.ended for record in records if record.ended), default=start)
    if span.duration_s is None:
        return start, max(last, start)
    end = start + span.duration_s
    return start, end if is_complete else max(min(end, time.monotonic()), start)


class _Load:
    """One run's requests."""

    def __init__(self, client: Client, plan: Plan, span: Span, begun: float) -> None:
        self._client = client
        self._plan = plan
        self._span = span
        self._begun = begun
        self.counted_from = begun + span.counted_from_s
        self._until = None if span.seconds is None else begun + span.seconds

    async def closed(self, shape: Closed) -> None:
        async with asyncio.TaskGroup() as group:
            for stream in range(shape.streams):
                group.create_task(self._stream(stream, shape.streams))

    async def open(self, shape: Open) -> None:
        """A request is late if this client is: its time counts from when it was to begin."""
        seed, span = self._plan.seed, self._span
        warm_up, counted = itertools.count(-1, -1), itertools.count()
        async with asyncio.TaskGroup() as group:
            for arrival in arrivals(shape.rate, span.ramp_s, seed):
                begun = self._begun + arrival
                counts = arrival >= span.counted_from_s
                index = next(counted if counts else warm_up)
                if self._is_over(begun, index):
                    return
                await asyncio.sleep(begun - time.monotonic())
                group.create_task(self._send(index, index, begun))

    async def _stream(self, stream: int, streams: int) -> None:
        """The requests of one stream: its own row of the plan's, warm-up apart."""
        await asyncio.sleep(self._span.ramp_s * stream / streams)
        warm_up = itertools.count(-1 - stream, -streams)
        counted = itertools.count(stream, streams)
        while True:
            now = time.monotonic()
            index = next(counted if now >= self.counted_from else warm_up)
            if self._is_over(now, index):
                return
            record = await self._send(stream, index, now)
            if record.state is State.FAILED:
                await asyncio.sleep(PAUSE_S)

    def _is_over(self, now: float, index: int) -> bool:
        """No request of that number begins any more."""
        is_late = self._until is not None and now >= self._until
        return is_late or (self._span.requests is not None and index >= self._span.requests)

    async def _send(self, stream: int, index: int, begun: float) -> Record:
        ask = self._plan.ask(index)
        return await self._client.ask(ask, stream=stream, begun=begun, counts=index >= 0)


# ---------------------------------------------------------------- turns


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of many: which target, which load, which round."""

    target: int
    shape: Shape
    round: int


def turns(shapes: Sequence[Shape], targets: int, rounds: int) -> Iterator[Turn]:
    """Every load on every target, so often; which target is first changes with each round."""
    for shape in shapes:
        for number in range(rounds):
            order = range(targets) if number % 2 == 0 else reversed(range(targets))
            for target in order:
                yield Turn(target, shape, number)


def seed_of(seed: str, turn: Turn) -> str:
    """The same for all targets; another in each round, lest what was cached before helps."""
    return f"{seed} {turn.shape.label} {turn.round}"
