"""One run of a load: requests are sent by a plan, and a part of the time counts.

      ramp-up         warm-up                counts            last requests end
├──────────────┼────────────────────┼──────────────────────┼─────────────────────┤
0       load grows               Run.start              Run.end

Requests that begin in the time that counts are read to their ends. Throughput is of the tokens
that arrive in that time, including those of requests that began before it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from scripts.load.client import Client
from scripts.load.interrupt import unless_stopped
from scripts.load.record import Record, State
from scripts.loadtest.plan import Plan, arrivals

LAG_STEP_S = 0.01
"""Time between two measurements of the event loop's lag."""
PAUSE_S = 0.1
"""Pause of a stream after a failure, so that a server that refuses is not asked incessantly."""


@dataclass(frozen=True, slots=True)
class Span:
    """The length of a load, as a time or as a number of requests."""

    ramp_s: float
    warm_up_s: float
    duration_s: float | None
    """Time that counts, in seconds; None: until `requests` are sent."""
    requests: int | None
    """Number of requests that count; None: no limit."""

    @property
    def counted_from_s(self) -> float:
        """Seconds from the start until requests count."""
        return self.ramp_s + self.warm_up_s

    @property
    def seconds(self) -> float | None:
        """Seconds until the last request begins; None: unknown."""
        return None if self.duration_s is None else self.counted_from_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed loop: each stream sends its next request when its last one is over."""

    streams: int

    @property
    def label(self) -> str:
        return f"{self.streams} stream{'s' * (self.streams != 1)}"

    @property
    def amount(self) -> float:
        return self.streams


@dataclass(frozen=True, slots=True)
class Open:
    """An open loop: `rate` requests per second on average, whether or not earlier ones are over."""

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
    """The result of one run. Times are readings of time.monotonic, in seconds."""

    begun: float
    start: float
    """Begin of the time that counts."""
    end: float
    """End of the time that counts."""
    records: Sequence[Record]
    cpu_share: float
    """CPU time of the load generator, as a share of one core."""
    lags: Sequence[float]
    """Measurements of the lag of its event loop, in seconds."""
    is_complete: bool
    """False: the run was interrupted."""


@dataclass(slots=True)
class LagMeter:
    """Measures the lag of the event loop, and the CPU time of the process."""

    lags: list[float] = field(default_factory=list)
    _wall: float = 0.0
    _cpu: float = 0.0

    async def watch(self, start: float) -> None:
        """Measure from `start`, a reading of time.monotonic, until cancelled."""
        await asyncio.sleep(start - time.monotonic())
        self._wall, self._cpu = time.monotonic(), time.process_time()
        while True:
            due = time.monotonic() + LAG_STEP_S
            await asyncio.sleep(LAG_STEP_S)
            self.lags.append(max(time.monotonic() - due, 0.0))

    def cpu_share(self) -> float:
        """CPU time since the start of the measurement, as a share of one core."""
        passed = time.monotonic() - self._wall
        return (time.process_time() - self._cpu) / passed if self._wall and passed else 0.0


async def run_load(
    client: Client, shape: Shape, plan: Plan, span: Span, stop: asyncio.Event
) -> Run:
    """Run the load on the client's server, to its end or until `stop` is set."""
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


def _counted(
    start: float, span: Span, records: Sequence[Record], is_complete: bool
) -> tuple[float, float]:
    """Begin and end of the time that counts."""
    last = max((record.ended for record in records if record.ended), default=start)
    if span.duration_s is None:
        return start, max(last, start)
    end = start + span.duration_s
    return start, end if is_complete else max(min(end, time.monotonic()), start)


class _Load:
    """Sends the requests of one run."""

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
        """Send each request when it is due. Its times count from then, even if it is sent late."""
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
        """Send the requests of one stream: its own part of the plan, apart from the warm-up."""
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
        """Whether the load ends before request number `index`."""
        is_late = self._until is not None and now >= self._until
        return is_late or (self._span.requests is not None and index >= self._span.requests)

    async def _send(self, stream: int, index: int, begun: float) -> Record:
        request = self._plan.request(index)
        return await self._client.ask(request, stream=stream, begun=begun, counts=index >= 0)


# ---------------------------------------------------------------- turns


@dataclass(frozen=True, slots=True)
class Turn:
    """One run: of which load, on which target, in which round."""

    target: int
    shape: Shape
    round: int


def turns(shapes: Sequence[Shape], targets: int, rounds: int) -> Iterator[Turn]:
    """Every load on every target, in each round. The order of the targets alternates."""
    for shape in shapes:
        for number in range(rounds):
            order = range(targets) if number % 2 == 0 else reversed(range(targets))
            for target in order:
                yield Turn(target, shape, number)


def seed_of(seed: str, turn: Turn) -> str:
    """The same for all targets, and different in each round, so that caches cannot help."""
    return f"{seed} {turn.shape.label} {turn.round}"
