"""A soak: clients that ask one thing after the other, the harm that is done, and an account."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from scripts.load.client import Client, Record, Target
from scripts.load.errors import BenchError
from scripts.load.server import HOST, START_S, ServerProcess
from scripts.loadtest.run import unless_stopped
from scripts.soak.cases import FORMATS, Case, World, crash, draw_case
from scripts.soak.faults import Harm, NotReplaced, ready_state, workers_of
from scripts.soak.judge import BY_OTHERS, Broken, Death, Outcome, Verdict, judge, unexplained
from scripts.soak.malformed import OK, draw_malformed, exchange, judge_malformed, post
from scripts.soak.monitor import QUANTITIES, Sample, Trend, Watch, left_open, trend

MALFORMED = "malformed"
MALFORMED_SHARE = 0.06
SAMPLES = 600
"""At most about so many, over the whole time."""
WARMING = 10
"""Requests before the load."""
SHOWN = 20
"""Examples of what was lost."""
REFUSED_PAUSE_S = 0.3
"""Before a client that was refused asks again."""
POISON_TRIES = 20
REST_S = 20.0
"""In which everything must have come to rest after the load."""
LOOK_S = 0.1
MARK = "MARK"
REFUSED = (Outcome.FULL, Outcome.NOT_READY)


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be done. Times in seconds."""

    seconds: float
    clients: int
    seed: str
    silence_s: float
    """Without a byte, after which a request is lost."""
    kill_every_s: float | None
    hang_up_every_s: float | None

    @property
    def sample_s(self) -> float:
        """From one look at memory and files to the next."""
        return max(0.5, self.seconds / SAMPLES)


@dataclass(slots=True)
class Account:
    """What came of it."""

    outcomes: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    """By kind of request."""
    formats: Counter[str] = field(default_factory=Counter)
    """Whole answers by format."""
    lost: list[str] = field(default_factory=list)
    """Requests without an answer or a clear error: a sentence each."""
    troubles: list[str] = field(default_factory=list)
    """What else is wrong: the front, replacements, what is left open."""
    broken: list[Broken] = field(default_factory=list)
    failures: list[tuple[float, float]] = field(default_factory=list)
    """From when to when there was a request that makes a step of the engine fail."""
    deaths: Sequence[Death] = ()
    hang_ups: int = 0
    samples: Sequence[Sample] = ()
    tokens: int = 0
    seconds: float = 0.0
    outlived: int = 0
    """Whole answers that began only after a death that came while they waited."""
    is_complete: bool = True

    @property
    def requests(self) -> int:
        return self.outcomes.total()

    @property
    def trends(self) -> list[Trend]:
        return [trend(quantity, self.samples) for quantity in QUANTITIES] if self.samples else []

    @property
    def growing(self) -> list[Trend]:
        return [each for each in self.trends if each.grows]

    @property
    def is_clean(self) -> bool:
        return bool(self.requests) and not (self.lost or self.troubles or self.growing)

    def count(self, outcome: Outcome) -> int:
        return sum(number for (_, each), number in self.outcomes.items() if each is outcome)


async def explore(server: ServerProcess, *, is_echo: bool) -> World:
    """What is known of the server once all of it is ready. Raises BenchError."""
    state = await all_ready(server)
    names = [model["name"] for model in state["models"]]
    messages = [{"role": "user", "content": MARK}]
    answer = await post(server.port, "/apply-template", messages=messages)
    before, _, after = json.loads(answer.body)["prompt"].partition(MARK)
    vectors = await post(server.port, "/v1/embeddings", input="x", model=names[0])
    context = min(model.get("context", 512) for model in state["models"])
    return World(names, is_echo, context, before, after, vectors.status == OK)


async def all_ready(server: ServerProcess) -> Mapping[str, Any]:
    """What /ready says once every worker is. Raises BenchError."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        state = await ready_state(server.port)
        if state.get("workers") == len(workers_of(server.pid)):
            return state
        await asyncio.sleep(LOOK_S)
    raise BenchError(f"not all workers got ready in {START_S:g} s")


class Soak:
    """One soak of a server that is ready."""

    def __init__(self, server: ServerProcess, world: World, load: Load) -> None:
        self.account = Account()
        self._server = server
        self._world = world
        self._load = load
        self._numbers = itertools.count(1)
        self._clients: dict[str, Client] = {}
        self._watch = Watch(server.pid)
        self._harm: Harm

    async def run(self, stop: asyncio.Event) -> Account:
        """To its end, or until `stop` is set."""
        account, load = self.account, self._load
        state = await ready_state(self._server.port)
        self._harm = Harm(
            front=self._server.pid,
            port=self._server.port,
            workers=int(state["workers"]),
            replace_s=load.silence_s,
            chance=random.Random(f"{load.seed} harm"),
            poison=self._poison if self._world.is_echo else None,
        )
        slots = max(int(model.get("slots", 1)) for model in state["models"])
        async with AsyncExitStack() as stack:
            for name, format_ in FORMATS.items():
                target = Target(f"http://{HOST}:{self._server.port}", format_)
                client = Client(target, load.silence_s)
                self._clients[name] = await stack.enter_async_context(client)
            await self._warm()
            begun = self._watch.begun = time.monotonic()
            account.is_complete = await unless_stopped(self._under_load(begun), stop)
        account.seconds = time.monotonic() - begun
        account.deaths, account.hang_ups = self._harm.deaths, self._harm.hang_ups
        account.lost += unexplained(account.broken, account.deaths, account.failures, slots)
        account.samples = self._watch.samples[1:]
        await self._check_rest(self._watch.samples[0])
        return account

    async def _warm(self) -> None:
        """Some requests, before the first look at what is open at rest."""
        cases = [draw_case(self._world, number, self._load.seed) for number in range(-WARMING, 0)]
        await asyncio.gather(*map(self._ask, cases))
        await self._at_rest()
        self._watch.look()

    async def _under_load(self, begun: float) -> None:
        """Clients to their end; what goes on beside them ends with them."""
        load, until = self._load, begun + self._load.seconds
        front = asyncio.create_task(self._see_front())
        beside = [front, asyncio.create_task(self._watch.every(load.sample_s, until))]
        if load.hang_up_every_s is not None:
            beside.append(asyncio.create_task(self._harm.hang_up_every(load.hang_up_every_s)))
        clients = [asyncio.create_task(self._client(until)) for _ in range(load.clients)]
        clients.append(asyncio.create_task(self._do_harm(load.kill_every_s, until)))
        working = asyncio.gather(*clients, return_exceptions=True)
        try:
            await asyncio.wait({working, front}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in [*beside, *clients]:
                task.cancel()
            outcomes = await asyncio.gather(*beside, *clients, return_exceptions=True)
        if self._server.status is None:
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome

    async def _see_front(self) -> None:
        """Returns when the front has died."""
        await until_ended(self._server.pid)
        self.account.troubles.append(f"the front died: status {self._server.status}")

    async def _do_harm(self, every_s: float | None, until: float) -> None:
        """Kill until then, and see the last deaths to their ends."""
        if every_s is None:
            return
        try:
            async with asyncio.TaskGroup() as group:
                due = time.monotonic() + every_s
                while due < until:
                    await asyncio.sleep(due - time.monotonic())
                    group.create_task(self._harm.strike())
                    due += every_s
        except* NotReplaced as errors:
            self.account.troubles += map(str, errors.exceptions)

    async def _client(self, until: float) -> None:
        while time.monotonic() < until:
            number = next(self._numbers)
            chance = random.Random(f"{self._load.seed} {number} client")
            if chance.random() < MALFORMED_SHARE:
                await self._ask_malformed(chance)
                continue
            verdict = await self._ask(draw_case(self._world, number, self._load.seed))
            if verdict.outcome in REFUSED or verdict.outcome is Outcome.LOST:
                await asyncio.sleep(REFUSED_PAUSE_S)

    async def _ask(self, case: Case) -> Verdict:
        client, begun = self._clients[case.format], time.monotonic()
        record = await client.ask(case.ask, stream=0, begun=begun, counts=True)
        client.records.clear()
        verdict = judge(case, record)
        self._enter(case, record, verdict)
        return verdict

    def _enter(self, case: Case, record: Record, verdict: Verdict) -> None:
        account = self.account
        account.outcomes[case.kind, verdict.outcome] += 1
        account.tokens += len(record.arrivals)
        if case.fails:
            account.failures.append((record.begun, record.ended))
        if verdict.outcome is Outcome.WHOLE:
            account.formats[case.format] += 1
            first = record.arrivals[0] if record.arrivals else record.ended
            account.outlived += any(record.begun < d.begun < first for d in self._harm.deaths)
        elif verdict.outcome is Outcome.LOST:
            self._lose(f"{case.kind}, {case.format}: {verdict.why}")
        elif verdict.outcome in BY_OTHERS:
            account.broken.append(Broken(case, verdict.outcome, record.begun, record.ended))

    async def _ask_malformed(self, chance: random.Random) -> None:
        request = draw_malformed(chance)
        try:
            wrong = judge_malformed(request, await exchange(self._server.port, request.data))
        except (OSError, TimeoutError) as error:
            wrong = f"no answer: {error!r}"
        outcome = Outcome.LOST if wrong else Outcome.REJECTED
        self.account.outcomes[MALFORMED, outcome] += 1
        if wrong:
            self._lose(f"{MALFORMED}, {request.name}: {wrong}")

    async def _poison(self) -> bool:
        """Whether it came to a worker."""
        for _ in range(POISON_TRIES):
            number = next(self._numbers)
            chance = random.Random(f"{self._load.seed} {number} poison")
            verdict = await self._ask(crash(self._world, number, chance))
            if verdict.outcome not in REFUSED:
                return True
            await asyncio.sleep(REFUSED_PAUSE_S)
        return False

    def _lose(self, what: str) -> None:
        since = time.monotonic() - self._watch.begun
        self.account.lost.append(f"after {since:.1f} s: {what}")

    async def _check_rest(self, before: Sample) -> None:
        """After the load everything is as it was before."""
        troubles = self.account.troubles
        if self._server.status is not None:
            if not troubles:
                troubles.append(f"the front died: status {self._server.status}")
            return
        state = await self._at_rest()
        if state.get("workers") != self._harm.workers:
            troubles.append(f"not all workers are ready after the load: {_shown(state)}")
        elif state.get("active") or state.get("waiting"):
            troubles.append(f"requests of nobody hold slots after the load: {_shown(state)}")
        self._watch.look()
        if self.account.samples:
            troubles += left_open(before, self._watch.samples[-1])

    async def _at_rest(self) -> Mapping[str, Any]:
        """What /ready says when nothing runs any more, or after REST_S."""
        deadline, state = time.monotonic() + REST_S, await ready_state(self._server.port)
        while time.monotonic() < deadline:
            is_full = state.get("workers") == self._harm.workers
            if is_full and not state.get("active") and not state.get("waiting"):
                break
            await asyncio.sleep(LOOK_S)
            state = await ready_state(self._server.port)
        return state


async def until_ended(pid: int) -> None:
    """Returns when our child has ended."""
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
