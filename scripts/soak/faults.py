"""Faults that are injected into the server under test: workers are ended, the front gets SIGHUPs.

Each crash is followed until all workers are ready again.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from scripts.soak.crashes import Crash
from scripts.soak.server_state import POLL_S, ready_state, workers_of

KILL, STOP, POISON = "SIGKILL", "SIGSTOP", "a poison prompt"
FAULTS = (KILL, STOP, POISON)
WEIGHTS = (7, 1.5, 1.5)
"""How often each fault is injected, relative to the others."""


class NotReplaced(Exception):
    """Not all workers are ready in time after a crash; the message has the server's state."""


@dataclass(slots=True)
class FaultInjector:
    """Injects faults and records them. Times are in seconds."""

    front: int
    """Process id of the server."""
    port: int
    workers: int
    """Number of workers when all are ready."""
    replace_s: float
    """Time after a crash in which all workers must be ready again."""
    chance: random.Random
    poison: Callable[[], Awaitable[bool]] | None
    """Sends a prompt that ends its worker, and waits for its answer. Returns whether the prompt
    reached a worker. None: the engine has no such prompt."""
    crashes: list[Crash] = field(default_factory=list)
    hang_ups: int = 0
    """Number of SIGHUPs."""
    _ended: set[int] = field(default_factory=set)
    """Process ids of the workers that were ended."""

    async def hang_up_every(self, seconds: float) -> None:
        """Send a SIGHUP to the front, again and again."""
        while True:
            await asyncio.sleep(seconds)
            psutil.Process(self.front).send_signal(signal.SIGHUP)
            self.hang_ups += 1

    async def end_a_worker(self) -> None:
        """Inject one fault, and wait until all workers are ready again. Raises NotReplaced."""
        fault = self.chance.choices(FAULTS, WEIGHTS)[0]
        if fault == POISON and self.poison is not None:
            await self._send_poison(self.poison)
            return
        victim = self._victim()
        if victim is None:
            return
        crash = self._record(STOP if fault == STOP else KILL)
        victim.send_signal(signal.SIGSTOP if fault == STOP else signal.SIGKILL)
        await self._until_replaced(crash, victim.pid)

    async def _send_poison(self, poison: Callable[[], Awaitable[bool]]) -> None:
        crash = self._record(POISON)
        if await poison():
            await self._until_replaced(crash, None)
        else:
            self.crashes.remove(crash)

    def _record(self, fault: str) -> Crash:
        crash = Crash(fault, time.monotonic())
        self.crashes.append(crash)
        return crash

    def _victim(self) -> psutil.Process | None:
        """The oldest worker that was not ended yet, so that each has its turn."""
        running = [each for each in workers_of(self.front) if each.pid not in self._ended]
        oldest = min(running, key=lambda process: process.create_time(), default=None)
        if oldest is not None:
            self._ended.add(oldest.pid)
        return oldest

    async def _until_replaced(self, crash: Crash, pid: int | None) -> None:
        deadline = time.monotonic() + self.replace_s
        state: Mapping[str, Any] = {}
        while time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
            if pid is not None and psutil.pid_exists(pid):
                continue
            state = await ready_state(self.port)
            if state.get("workers") == self.workers:
                crash.ended = time.monotonic()
                return
        raise NotReplaced(
            f"{self.replace_s:g} s after {crash.fault} not all {self.workers} workers are ready:"
            f" {dict(state) or 'no answer'}"
        )


def replace_times(crashes: Sequence[Crash]) -> list[float]:
    """Seconds from each fault until all workers were ready again."""
    return [crash.ended - crash.begun for crash in crashes if crash.ended is not None]
