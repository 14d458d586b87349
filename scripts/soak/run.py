"""One soak: clients that send requests, faults that are injected, and checks at the end."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from scripts.load.client import Client
from scripts.load.interrupt import unless_stopped
from scripts.load.record import Record
from scripts.load.server import ServerProcess
from scripts.load.target import Target
from scripts.soak.cases import DIALECTS, Case
from scripts.soak.crashes import Broken, unexplained
from scripts.soak.faults import FaultInjector, NotReplaced
from scripts.soak.growth import left_open
from scripts.soak.judge import BY_OTHERS, Outcome, Verdict, judge
from scripts.soak.kinds import draw_case, draw_poison
from scripts.soak.malformed import draw_malformed, judge_malformed
from scripts.soak.monitor import Monitor, Sample
from scripts.soak.raw_http import exchange
from scripts.soak.results import Results
from scripts.soak.server_state import POLL_S, ServerFacts, ready_state

MALFORMED = "malformed"
MALFORMED_SHARE = 0.06
"""Share of the requests that are malformed."""
MOST_SAMPLES = 600
"""Approximate limit for the number of samples of resources."""
WARM_UP_REQUESTS = 10
"""Requests before the load."""
REFUSED_PAUSE_S = 0.3
"""Pause of a client that was refused."""
POISON_TRIES = 20
"""Attempts to send a poison prompt to a server that refuses."""
REST_S = 20.0
"""Time after the load in which all slots must become free and all workers ready."""
BUSY = (Outcome.FULL, Outcome.NOT_READY)
"""Outcomes of requests that may be tried again."""


@dataclass(frozen=True, slots=True)
class Load:
    """Settings of a soak. Times are in seconds."""

    seconds: float
    clients: int
    seed: str
    silence_s: float
    """Time without a byte after which a request is lost, and in which a worker must be replaced."""
    kill_every_s: float | None
    hang_up_every_s: float | None

    @property
    def sample_s(self) -> float:
        """Time between two samples of resources."""
        return max(0.5, self.seconds / MOST_SAMPLES)


class Soak:
    """One soak of a server that is ready."""

    def __init__(self, server: ServerProcess, facts: ServerFacts, load: Load) -> None:
        self.results = Results()
        self._server = server
        self._facts = facts
        self._load = load
        self._numbers = itertools.count(1)
        self._clients: dict[str, Client] = {}
        self._monitor = Monitor(server.pid)
        self._injector: FaultInjector

    async def run(self, stop: asyncio.Event) -> Results:
        """Run the soak to its end, or until `stop` is set."""
        results, load = self.results, self._load
        state = await ready_state(self._server.port)
        self._injector = FaultInjector(
            front=self._server.pid,
            port=self._server.port,
            workers=int(state["workers"]),
            replace_s=load.silence_s,
            chance=random.Random(f"{load.seed} faults"),
            poison=self._poison if self._facts.is_echo else None,
        )
        slots = max(int(model.get("slots", 1)) for model in state["models"])
        async with AsyncExitStack() as stack:
            for name, dialect in DIALECTS.items():
                target = Target(self._server.url, dialect)
                client = Client(target, load.silence_s)
                self._clients[name] = await stack.enter_async_context(client)
            await self._warm_up()
            begun = self._monitor.begun = time.monotonic()
            results.is_complete = await unless_stopped(self._under_load(begun), stop)
        results.seconds = time.monotonic() - begun
        results.crashes, results.hang_ups = self._injector.crashes, self._injector.hang_ups
        results.lost += unexplained(results.broken, results.crashes, results.failures, slots)
        results.samples = self._monitor.samples[1:]
        await self._check_rest(self._monitor.samples[0])
        return results

    async def _warm_up(self) -> None:
        """Send some requests, and take the first sample of the resources at rest."""
        numbers = range(-WARM_UP_REQUESTS, 0)
        cases = [draw_case(self._facts, number, self._load.seed) for number in numbers]
        await asyncio.gather(*map(self._ask, cases))
        await self._at_rest()
        self._monitor.sample()

    async def _under_load(self, begun: float) -> None:
        """Run the clients to their end, with faults and samples beside them."""
        load, until = self._load, begun + self._load.seconds
        front = asyncio.create_task(self._watch_front())
        sampling = self._monitor.sample_every(load.sample_s, until)
        beside = [front, asyncio.create_task(sampling)]
        if load.hang_up_every_s is not None:
            beside.append(asyncio.create_task(self._injector.hang_up_every(load.hang_up_every_s)))
        clients = [asyncio.create_task(self._client(until)) for _ in range(load.clients)]
        clients.append(asyncio.create_task(self._inject_faults(load.kill_every_s, until)))
        working = asyncio.create_task(_all_ended(clients))
        try:
            await asyncio.wait((working, front), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in [*beside, *clients, working]:
                task.cancel()
            outcomes = await asyncio.gather(*beside, *clients, return_exceptions=True)
        if self._server.status is None:
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome

    async def _watch_front(self) -> None:
        """Wait until the front ends, which is a fault."""
        await until_ended(self._server.pid)
        self.results.faults.append(f"the front ended with status {self._server.status}")

    async def _inject_faults(self, every_s: float | None, until: float) -> None:
        """End workers until `until`, and wait until the last ones are replaced."""
        if every_s is None:
            return
        try:
            async with asyncio.TaskGroup() as group:
                due = time.monotonic() + every_s
                while due < until:
                    await asyncio.sleep(due - time.monotonic())
                    group.create_task(self._injector.end_a_worker())
                    due += every_s
        except* NotReplaced as errors:
            self.results.faults += map(str, errors.exceptions)

    async def _client(self, until: float) -> None:
        while time.monotonic() < until:
            number = next(self._numbers)
            chance = random.Random(f"{self._load.seed} {number} client")
            if chance.random() < MALFORMED_SHARE:
                await self._ask_malformed(chance)
                continue
            verdict = await self._ask(draw_case(self._facts, number, self._load.seed))
            if verdict.outcome in BUSY or verdict.outcome is Outcome.LOST:
                await asyncio.sleep(REFUSED_PAUSE_S)

    async def _ask(self, case: Case) -> Verdict:
        client, begun = self._clients[case.dialect], time.monotonic()
        record = await client.ask(case.request, begun=begun)
        client.records.clear()
        verdict = judge(case, record)
        self._count(case, record, verdict)
        return verdict

    def _count(self, case: Case, record: Record, verdict: Verdict) -> None:
        results = self.results
        results.outcomes[case.kind, verdict.outcome] += 1
        results.tokens += len(record.arrivals)
        if case.fails:
            results.failures.append((record.begun, record.ended))
        if verdict.outcome is Outcome.COMPLETED:
            results.dialects[case.dialect] += 1
            first = record.arrivals[0] if record.arrivals else record.ended
            results.outlived += any(
                record.begun < crash.begun < first for crash in self._injector.crashes
            )
        elif verdict.outcome is Outcome.LOST:
            self._lose(f"{case.kind}, {case.dialect}: {verdict.why}")
        elif verdict.outcome in BY_OTHERS:
            results.broken.append(Broken(case, verdict.outcome, record.begun, record.ended))

    async def _ask_malformed(self, chance: random.Random) -> None:
        request = draw_malformed(chance)
        try:
            wrong = judge_malformed(request, await exchange(self._server.port, request.data))
        except (OSError, TimeoutError) as error:
            wrong = f"no answer: {error!r}"
        outcome = Outcome.LOST if wrong else Outcome.REFUSED
        self.results.outcomes[MALFORMED, outcome] += 1
        if wrong:
            self._lose(f"{MALFORMED}, {request.name}: {wrong}")

    async def _poison(self) -> bool:
        """Send a poison prompt. Returns whether it reached a worker."""
        for _ in range(POISON_TRIES):
            number = next(self._numbers)
            chance = random.Random(f"{self._load.seed} {number} poison")
            verdict = await self._ask(draw_poison(self._facts, number, chance))
            if verdict.outcome not in BUSY:
                return True
            await asyncio.sleep(REFUSED_PAUSE_S)
        return False

    def _lose(self, what: str) -> None:
        since = time.monotonic() - self._monitor.begun
        self.results.lost.append(f"after {since:.1f} s: {what}")

    async def _check_rest(self, before: Sample) -> None:
        """Check that the server is at rest, as it was before the load."""
        faults = self.results.faults
        if self._server.status is not None:
            if not faults:
                faults.append(f"the front ended with status {self._server.status}")
            return
        state = await self._at_rest()
        if state.get("workers") != self._injector.workers:
            faults.append(f"not all workers are ready after the load: {_shown(state)}")
        elif state.get("active") or state.get("waiting"):
            faults.append(f"slots are not free after the load: {_shown(state)}")
        self._monitor.sample()
        if self.results.samples:
            faults += left_open(before, self._monitor.samples[-1])

    async def _at_rest(self) -> Mapping[str, Any]:
        """The answer of /ready when no request is running, or after REST_S."""
        deadline, state = time.monotonic() + REST_S, await ready_state(self._server.port)
        while time.monotonic() < deadline:
            is_full = state.get("workers") == self._injector.workers
            if is_full and not state.get("active") and not state.get("waiting"):
                break
            await asyncio.sleep(POLL_S)
            state = await ready_state(self._server.port)
        return state


async def _all_ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait until all tasks have ended, whatever their results."""
    await asyncio.wait(tasks)


async def until_ended(pid: int) -> None:
    """Wait until this child process has ended."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    descriptor = os.pidfd_open(pid)
    loop.add_reader(descriptor, ended.set_result, None)
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _shown(state: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {state[name]}" for name in ("workers", "active", "waiting")
                     if name in state) or "no answer"  # fmt: skip
