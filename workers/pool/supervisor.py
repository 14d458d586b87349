"""Keeps the workers alive: spawn, wait until ready, watch, replace, and end them.

Each worker has a task that reads as its story: start a process, watch it until it dies, wait, start
the next one. A worker whose processes die too often is given up.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shared.errors import ConfigurationError
from shared.messages import Ready
from shared.settings import PoolSettings, RestartPolicy, WorkerSettings
from workers.entry import run_worker
from workers.pool.child_process import SHUT_DOWN, Death, Target
from workers.pool.handle import WorkerHandle
from workers.pool.status import State, WorkerCounters, WorkerStatus

OWN_DELAY_S = 1.0
"""If the watch itself wakes this late, the front was stopped, and the worker is not to blame."""

logger = logging.getLogger("tokenflume.pool")


@dataclass(slots=True)
class SupervisedWorker:
    """One worker, across the processes that run it one after the other."""

    settings: WorkerSettings
    handle: WorkerHandle | None = None
    """The process that runs now."""
    given_up: str = ""
    """Why no further process will be started; empty otherwise."""
    deaths: deque[float] = field(default_factory=deque)
    """When processes died, in the loop's seconds, within the policy's window."""
    last_death: str = ""
    """Why the process before died; empty again when the next one is ready."""
    counters: WorkerCounters = field(default_factory=WorkerCounters)

    @property
    def name(self) -> str:
        return f"worker {self.settings.index}"

    @property
    def trouble(self) -> str:
        """What is wrong, in words; empty if nothing is."""
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
            pid=None if handle is None else handle.process.pid,
            loaded=0.0 if handle is None else handle.loaded,
            slots=0 if handle is None else handle.slots,
            active=0 if handle is None else handle.in_flight,
            silence_s=math.inf if handle is None else handle.silence_s,
            given_up=self.given_up,
            trouble=self.trouble,
            counters=self.counters,
        )


class Supervisor:
    """Runs the workers. `on_change` is called when the state of one changes: see `status`."""

    def __init__(
        self,
        settings: PoolSettings,
        on_change: Callable[[], None],
        target: Target = run_worker,
    ) -> None:
        self.workers = [SupervisedWorker(worker) for worker in settings.workers]
        self.load_failure: asyncio.Future[ConfigurationError] = (
            asyncio.get_running_loop().create_future()
        )
        """Done when a worker says, before any was ever ready, that its model cannot be loaded."""
        self._settings = settings
        self._on_change = on_change
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._was_ready = False

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._supervise(worker)) for worker in self.workers]

    @property
    def is_lost(self) -> bool:
        """All workers are given up."""
        return all(worker.given_up for worker in self.workers)

    async def stop(self, grace_s: float) -> None:
        """End all workers; those that have not ended after `grace_s` seconds are killed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        handles = [worker.handle for worker in self.workers if worker.handle is not None]
        for handle in handles:
            handle.process.shut_down()
        if handles:
            await asyncio.wait([handle.process.ended for handle in handles], timeout=grace_s)
        self.kill_all()
        for handle in handles:
            await handle.process.until_ended()

    def kill_all(self) -> None:
        """SIGKILL every worker that is alive."""
        for worker in self.workers:
            if worker.handle is not None:
                worker.handle.process.kill(SHUT_DOWN)

    async def _supervise(self, worker: SupervisedWorker) -> None:
        """The story of one worker."""
        failures = 0
        while not worker.given_up:
            try:
                handle = await self._start_worker(worker)
            except OSError as error:
                # No memory, no process or no descriptor to be had: nobody died, and it may pass.
                logger.error("%s cannot be started: %s", worker.name, error)
                worker.counters.deaths["not_started"] += 1
                failures += 1
                await asyncio.sleep(back_off_s(self._settings.restart, failures + 1))
                continue
            failures = 0
            self._on_change()
            await self._watch(worker, handle)
            worker.handle = None
            if not worker.given_up:
                await self._after_death(worker)
        if not self.load_failure.done():  # whose waiter tells it
            logger.error("%s is given up: %s", worker.name, worker.given_up)
        self._on_change()

    async def _start_worker(self, worker: SupervisedWorker) -> WorkerHandle:
        """Start a process. If cancelled meanwhile, finish the start first, so that `stop` knows it.

        Raises OSError.
        """
        starting = asyncio.ensure_future(
            WorkerHandle.start(worker.settings, self._on_change, worker.counters, self._target)
        )
        try:
            worker.handle = await asyncio.shield(starting)
        except asyncio.CancelledError:
            worker.handle = await starting
            raise
        return worker.handle

    async def _watch(self, worker: SupervisedWorker, handle: WorkerHandle) -> None:
        """Stay with one worker until it has ended."""
        try:
            ready = await self._until_ready(handle)
        except ConfigurationError as error:
            self._refuse(worker, error)
        else:
            if ready is not None:
                self._was_ready = True
                worker.last_death = ""
                self._on_change()
                pid = handle.process.pid
                logger.info("%s (pid %d): %s", worker.name, pid, describe_ready(ready))
                await self._watch_progress(handle)
        death = await handle.process.until_ended()
        if not worker.given_up:
            worker.last_death = death.reason
            worker.counters.deaths[death.cause] += 1
            logger.error("%s %s", worker.name, death.reason)

    async def _until_ready(self, handle: WorkerHandle) -> Ready | None:
        """The worker's Ready; None when it dies before, or takes too long and is killed."""
        timeout = self._settings.load_timeout_s
        news: list[asyncio.Future[Any]] = [handle.ready, handle.process.ended]
        await asyncio.wait(news, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if handle.ready.done():
            return handle.ready.result()
        if not handle.process.ended.done():
            reason = f"was not ready after {timeout:g} s, and was killed"
            handle.process.kill(Death("load_timeout", reason))
        return None

    async def _watch_progress(self, handle: WorkerHandle) -> None:
        """Return when the worker has ended; kill it when it makes no progress."""
        timeout = self._settings.progress_timeout_s
        while not handle.process.ended.done():
            deadline = handle.last_heard + timeout
            await asyncio.wait(
                [handle.process.ended], timeout=max(0.0, deadline - self._loop.time())
            )
            late = self._loop.time() - deadline
            if late > OWN_DELAY_S:
                handle.last_heard = self._loop.time()
            elif handle.last_heard + timeout <= self._loop.time():
                reason = f"made no progress for {timeout:g} s, and was killed"
                handle.process.kill(Death("no_progress", reason))
                return

    def _refuse(self, worker: SupervisedWorker, error: ConfigurationError) -> None:
        worker.given_up = str(error)
        if not self._was_ready and not self.load_failure.done():
            self.load_failure.set_result(error)

    async def _after_death(self, worker: SupervisedWorker) -> None:
        """Wait before the next worker, or give the place up."""
        policy, now = self._settings.restart, self._loop.time()
        worker.deaths.append(now)
        while worker.deaths[0] < now - policy.window_s:
            worker.deaths.popleft()
        if len(worker.deaths) >= policy.deaths:
            worker.given_up = f"{policy.deaths} workers died within {policy.window_s:g} s"
            return
        self._on_change()
        await asyncio.sleep(back_off_s(policy, len(worker.deaths)))


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
