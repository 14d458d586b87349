"""What is done to the server under test: workers are killed, stopped and poisoned; SIGHUP.

Each death is followed until all workers are ready again.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from scripts.soak.judge import Death
from scripts.soak.malformed import OK, get

LOOK_S = 0.1
BLOWS = ("SIGKILL", "SIGSTOP", "a poison prompt")
WEIGHTS = (7, 1.5, 1.5)


class NotReplaced(Exception):
    """A worker that died has no successor that can serve; the message says what is there."""


def workers_of(front: int) -> list[psutil.Process]:
    """The server's workers that live. None of a front that has died."""
    try:
        children = psutil.Process(front).children()
    except psutil.NoSuchProcess:
        return []
    found = []
    for child in children:
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # it has just died
    return found


@dataclass(slots=True)
class Harm:
    """Does it, and keeps an account. Times in seconds."""

    front: int
    port: int
    workers: int
    """That are ready when all are."""
    replace_s: float
    """In which all must be ready again."""
    chance: random.Random
    poison: Callable[[], Awaitable[bool]] | None
    """Sends a prompt that ends its worker, and waits for its answer; whether it came to a worker.
    None: there is no such prompt."""
    deaths: list[Death] = field(default_factory=list)
    hang_ups: int = 0
    _struck: dict[int, float] = field(default_factory=dict)

    async def hang_up_every(self, seconds: float) -> None:
        """SIGHUP to the front, without end."""
        while True:
            await asyncio.sleep(seconds)
            psutil.Process(self.front).send_signal(signal.SIGHUP)
            self.hang_ups += 1

    async def strike(self) -> None:
        """One death, to its end. Raises NotReplaced."""
        how = self.chance.choices(BLOWS, WEIGHTS)[0]
        if how == BLOWS[2]:
            if self.poison is None:
                how = BLOWS[0]
            else:
                await self._poison()
                return
        victim = self._victim()
        if victim is None:
            return
        death = Death(how, time.monotonic())
        self.deaths.append(death)
        victim.send_signal(signal.SIGSTOP if how == BLOWS[1] else signal.SIGKILL)
        await self._until_replaced(death, victim.pid)

    async def _poison(self) -> None:
        death = Death(BLOWS[2], time.monotonic())
        self.deaths.append(death)
        assert self.poison is not None
        if await self.poison():
            await self._until_replaced(death, 0)
        else:
            self.deaths.remove(death)

    def _victim(self) -> psutil.Process | None:
        """The oldest that was not struck yet, so all places have their turn."""
        living = [each for each in workers_of(self.front) if each.pid not in self._struck]
        oldest = min(living, key=lambda process: process.create_time(), default=None)
        if oldest is not None:
            self._struck[oldest.pid] = time.monotonic()
        return oldest

    async def _until_replaced(self, death: Death, pid: int) -> None:
        deadline = time.monotonic() + self.replace_s
        state: Mapping[str, Any] = {}
        while time.monotonic() < deadline:
            await asyncio.sleep(LOOK_S)
            if pid and psutil.pid_exists(pid):
                continue
            state = await ready_state(self.port)
            if state.get("workers") == self.workers:
                death.ended = time.monotonic()
                return
        raise NotReplaced(
            f"{self.replace_s:g} s after {death.how} not all {self.workers} workers are ready:"
            f" {state or 'no answer'}"
        )


async def ready_state(port: int) -> Mapping[str, Any]:
    """What /ready says; empty where it is not ready."""
    try:
        answer = await get(port, "/ready")
        found = json.loads(answer.body) if answer.status == OK else {}
    except (OSError, TimeoutError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def replace_times(deaths: Sequence[Death]) -> list[float]:
    """Seconds from each blow until all workers were ready again."""
    return [death.ended - death.begun for death in deaths if death.ended is not None]
