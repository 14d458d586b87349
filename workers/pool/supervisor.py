"""Keeps the workers alive: spawn, wait until ready, watch, replace, and end them.

Each worker has a Place, and each place a task that reads as its story: start a
worker, serve until it dies, wait, start the next. A worker that dies too often
gives its place up.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shared.errors import ConfigurationError
from shared.messages import Ready
from shared.settings import PoolSettings, RestartPolicy, WorkerSettings
from workers.pool.handle import WorkerHandle
from workers.pool.status import State, WorkerCounters, WorkerStatus

OWN_DELAY_S = 1.0
"""If the watch itself wakes so late, the front was stopped, and the worker is not to blame."""

logger = logging.getLogger("tokenflume.pool")


@dataclass(slots=True)
class Place:
    """One worker's place: who is in it now, and what has become of the earlier ones."""

    settings: WorkerSettings
    handle: WorkerHandle | None = None
    given_up: str = ""
    """Why no further worker is started here; empty while one is."""
    deaths: deque[float] = field(default_factory=deque)
    """When workers died here, in the loop's seconds, within the policy's window."""
    last_death: str = ""
    """Why the worker before died; empty again when the next one is ready."""
    counters: WorkerCounters = field(default_factory=WorkerCounters)

    @property
    def name(self) -> str:
        return f"worker {self.settings.index}"

    @property
    def trouble(self) -> str:
        """What is wrong here, in words; empty if nothing is."""
        if self.given_up:
            return f"{self.name} is given up: {self.given_up}"
        return self.last_death and f"{self.name} {self.last_death}; it is being replaced"

    @property
    def state(self) -> State:
        if self.given_up:
            return "given_up"
        if self.handle is not None and self.handle.is_ready:
            return "ready"
        return "replacing" if self.last_death else "loading"

    @property
    def status(self) -> WorkerStatus:
        handle = self.handle
        return WorkerStatus(
            index=self.settings.index,
            state=self.state,
            pid=None if handle is None else handle.pid,
            slots=0 if handle is None else handle.slots,
            active=0 if handle is None else handle.in_flight,
            counters=self.counters,
        )


class Supervisor:
    """Runs the places. `on_change` is called when a slot or a place may have become free."""

    def __init__(self, settings: PoolSettings, on_change: Callable[[], None]) -> None:
        self.places = [Place(worker) for worker in settings.workers]
        self.load_failure: asyncio.Future[ConfigurationError] = (
            asyncio.get_running_loop().create_future()
        )
        """Done when a worker says, before any was ever ready, that its model cannot be loaded."""
        self._settings = settings
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._was_ready = False

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep(place)) for place in self.places]

    async def stop(self, grace_s: float) -> None:
        """End all workers; those that have not ended after `grace_s` seconds are killed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        handles = [place.handle for place in self.places if place.handle is not None]
        for handle in handles:
            handle.shut_down()
        if handles:
            await asyncio.wait([handle.ended for handle in handles], timeout=grace_s)
        self.kill_all()
        for handle in handles:
            await handle.until_ended()

    def kill_all(self) -> None:
        """SIGKILL every worker that is alive."""
        for place in self.places:
            if place.handle is not None:
                place.handle.kill("killed at shutdown", "shutdown")

    async def _keep(self, place: Place) -> None:
        """The story of one place."""
        failures = 0
        while not place.given_up:
            try:
                handle = await self._start_worker(place)
            except OSError as error:
                # No memory, no process or no descriptor to be had: nobody died, and it may pass.
                logger.error("%s cannot be started: %s", place.name, error)
                place.counters.deaths["not_started"] += 1
                failures += 1
                await asyncio.sleep(back_off_s(self._settings.restart, failures + 1))
                continue
            failures = 0
            await self._attend(place, handle)
            place.handle = None
            if not place.given_up:
                await self._after_death(place)
        if not self.load_failure.done():  # whose waiter tells it
            logger.error("%s is given up: %s", place.name, place.given_up)
        self._on_change()

    async def _start_worker(self, place: Place) -> WorkerHandle:
        """A new worker in the place, also when cancelled half way: no process is ever unknown."""
        starting = asyncio.ensure_future(
            WorkerHandle.start(place.settings, self._on_change, place.counters)
        )
        try:
            place.handle = await asyncio.shield(starting)
        except asyncio.CancelledError:
            place.handle = await starting
            raise
        return place.handle

    async def _attend(self, place: Place, handle: WorkerHandle) -> None:
        """Stay with one worker until it has ended."""
        try:
            ready = await self._until_ready(handle)
        except ConfigurationError as error:
            self._refuse(place, error)
        else:
            if ready is not None:
                self._was_ready = True
                place.last_death = ""
                logger.info("%s (pid %d): %s", place.name, handle.pid, describe_ready(ready))
                await self._watch_progress(handle)
        cause = await handle.until_ended()
        if not place.given_up:
            place.last_death = cause
            place.counters.deaths[handle.cause] += 1
            logger.error("%s %s", place.name, cause)

    async def _until_ready(self, handle: WorkerHandle) -> Ready | None:
        """The worker's Ready; None when it dies before, or takes too long and is killed."""
        timeout = self._settings.load_timeout_s
        news: list[asyncio.Future[Any]] = [handle.ready, handle.ended]
        await asyncio.wait(news, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if handle.ready.done():
            return handle.ready.result()
        if not handle.ended.done():
            handle.kill(f"was not ready after {timeout:g} s, and was killed", "load_timeout")
        return None

    async def _watch_progress(self, handle: WorkerHandle) -> None:
        """Return when the worker has ended; kill it when it makes no progress."""
        timeout = self._settings.progress_timeout_s
        while not handle.ended.done():
            deadline = handle.last_heard + timeout
            await asyncio.wait([handle.ended], timeout=max(0.0, deadline - self._loop.time()))
            late = self._loop.time() - deadline
            if late > OWN_DELAY_S:
                handle.last_heard = self._loop.time()
            elif handle.last_heard + timeout <= self._loop.time():
                handle.kill(f"made no progress for {timeout:g} s, and was killed", "no_progress")
                return

    def _refuse(self, place: Place, error: ConfigurationError) -> None:
        place.given_up = str(error)
        if not self._was_ready and not self.load_failure.done():
            self.load_failure.set_result(error)

    async def _after_death(self, place: Place) -> None:
        """Wait before the next worker, or give the place up."""
        policy, now = self._settings.restart, self._loop.time()
        place.deaths.append(now)
        while place.deaths[0] < now - policy.window_s:
            place.deaths.popleft()
        if len(place.deaths) >= policy.deaths:
            place.given_up = f"{policy.deaths} workers died within {policy.window_s:g} s"
            return
        self._on_change()
        await asyncio.sleep(back_off_s(policy, len(place.deaths)))


def back_off_s(policy: RestartPolicy, deaths: int) -> float:
    """Seconds to wait after the last of so many recent deaths: 0, then doubling, bounded."""
    if deaths <= 1:
        return 0.0
    doublings = min(deaths - 2, 60)
    return min(policy.first_wait_s * 2.0**doublings, policy.longest_wait_s)


def describe_ready(ready: Ready) -> str:
    """What was loaded and how long it took, for the log."""
    info = ready.info
    return (
        f"loaded {info.architecture} on {info.engine} in {ready.load_s:.2f} s;"
        f" context {info.context} tokens, vocabulary {info.vocabulary},"
        f" {info.slots} slot{'s' * (info.slots != 1)}"
    )
