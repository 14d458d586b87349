"""Restarts workers: each has a task that starts a process, watches it, and replaces it.

spawn ─▶ wait for Ready (load timeout) ─▶ watch progress (progress timeout) ─▶ death
  ▲                                                                             │
  └──────────────────── backoff, unless the worker is given up ◀────────────────┘
"""

from __future__ import annotations

import asyncio
import logging
import math
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
from workers.pool.tasks import finish, log_failure

OWN_DELAY_S = 1.0
"""If the watching task wakes this late, the front itself was stopped: the worker is not stuck."""
SUPERVISING_FAILED = Death("internal_error", "was ended because supervising it failed")

logger = logging.getLogger("tokenflume.pool")


@dataclass(slots=True)
class SupervisedWorker:
    """One worker, across the processes that run it one after the other."""

    settings: WorkerSettings
    handle: WorkerHandle | None = None
    """The process that runs now."""
    given_up: str = ""
    """Why no further process will be started; empty otherwise."""
    deaths_in_a_row: int = 0
    """See RestartPolicy."""
    spawn_failures: int = 0
    """Attempts in a row that started no process."""
    last_death: str = ""
    """Why the last process died; empty again when the next one is ready."""
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
    """Runs the workers of one pool. `on_change` is called when a worker's state changes."""

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
        """Set if a worker reports that its model cannot be loaded, before any was ready."""
        self._settings = settings
        self._on_change = on_change
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._was_ready = False

    def start(self) -> None:
        for worker in self.workers:
            task = asyncio.create_task(self._supervise(worker), name=f"supervising {worker.name}")
            task.add_done_callback(log_failure)
            self._tasks.append(task)

    @property
    def is_lost(self) -> bool:
        """All workers are given up."""
        return all(worker.given_up for worker in self.workers)

    async def stop(self, grace_s: float) -> None:
        """Shut down all workers, and SIGKILL those that have not ended after `grace_s` seconds."""
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
        """SIGKILL all worker processes."""
        for worker in self.workers:
            if worker.handle is not None:
                worker.handle.process.kill(SHUT_DOWN)

    async def _supervise(self, worker: SupervisedWorker) -> None:
        """Run one process after the other, until the worker is given up."""
        while not worker.given_up:
            try:
                wait_s = await self._run_process(worker)
            except Exception:
                # A bug. It must not leave the worker without a process, or a process unwatched.
                logger.exception("supervising %s failed", worker.name)
                wait_s = await self._end_process(worker)
            await asyncio.sleep(wait_s)
        self._on_change()

    async def _run_process(self, worker: SupervisedWorker) -> float:
        """Start a process and watch it until it ends; return the seconds to wait before the next.

        That is 0 when the worker is given up.
        """
        try:
            handle = await self._spawn(worker)
        except OSError as error:
            return self._count_spawn_failure(worker, error)
        worker.spawn_failures = 0
        self._on_change()
        try:
            ready = await self._until_ready(handle)
        except ConfigurationError as error:
            self._give_up_unloadable(worker, error)
        else:
            if ready is not None:
                self._on_ready(worker)
                await self._watch_progress(handle)
        death = await handle.process.until_ended()
        worker.handle = None
        wait_s = 0.0 if worker.given_up else self._count_death(worker, handle, death)
        self._on_change()
        return wait_s

    async def _spawn(self, worker: SupervisedWorker) -> WorkerHandle:
        """Start a process. Raises OSError.

        If cancelled meanwhile, the process is started first, so that `stop` knows of it.
        """

        async def start() -> WorkerHandle:
            worker.handle = await WorkerHandle.start(
                worker.settings, self._on_change, worker.counters, self._target
            )
            return worker.handle

        return await finish(start())

    async def _end_process(self, worker: SupervisedWorker) -> float:
        """Kill the process, if one runs; return the seconds to wait before the next."""
        handle = worker.handle
        if handle is not None:
            handle.process.kill(SUPERVISING_FAILED)
            await handle.process.until_ended()
            worker.handle = None
        return self._count_death(worker, handle, SUPERVISING_FAILED)

    async def _until_ready(self, handle: WorkerHandle) -> Ready | None:
        """Wait for Ready. None: the process died, or took too long and is killed.

        Raises ConfigurationError if the model cannot be loaded.
        """
        timeout = self._settings.load_timeout_s
        events: list[asyncio.Future[Any]] = [handle.ready, handle.process.ended]
        await asyncio.wait(events, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if handle.ready.done():
            return handle.ready.result()
        if not handle.process.ended.done():
            reason = f"was not ready after {timeout:g} s, and was killed"
            handle.process.kill(Death("load_timeout", reason))
        return None

    async def _watch_progress(self, handle: WorkerHandle) -> None:
        """Return when the process has ended; kill it if it is silent for the progress timeout."""
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

    def _on_ready(self, worker: SupervisedWorker) -> None:
        self._was_ready = True
        worker.last_death = ""
        self._on_change()

    def _give_up_unloadable(self, worker: SupervisedWorker, error: ConfigurationError) -> None:
        worker.given_up = str(error)
        if not self._was_ready and not self.load_failure.done():
            self.load_failure.set_result(error)
        if not self.load_failure.done():  # otherwise whoever waits for it reports it
            logger.error("%s is given up: %s", worker.name, worker.given_up)

    def _count_spawn_failure(self, worker: SupervisedWorker, error: OSError) -> float:
        """Spawning failed for lack of memory, processes or descriptors; return the seconds to wait.

        That is not a crash: the worker is never given up for it.
        """
        logger.error("%s cannot be started: %s", worker.name, error)
        worker.counters.deaths["not_started"] += 1
        worker.spawn_failures += 1
        return back_off_s(self._settings.restart, worker.spawn_failures + 1)

    def _count_death(
        self, worker: SupervisedWorker, handle: WorkerHandle | None, death: Death
    ) -> float:
        """Give the worker up after too many deaths; return the seconds to wait otherwise."""
        logger.error("%s %s", worker.name, death.reason)
        worker.last_death = death.reason
        worker.counters.deaths[death.cause] += 1
        policy = self._settings.restart
        if handle is not None and handle.was_healthy(policy.healthy_s):
            worker.deaths_in_a_row = 0
        worker.deaths_in_a_row += 1
        if worker.deaths_in_a_row < policy.max_deaths:
            return back_off_s(policy, worker.deaths_in_a_row)
        worker.given_up = (
            f"{policy.max_deaths} processes died in a row without completing a request"
        )
        logger.error("%s is given up: %s", worker.name, worker.given_up)
        return 0.0


def back_off_s(policy: RestartPolicy, deaths: int) -> float:
    """Seconds to wait before a restart after `deaths` in a row: 0, then doubling, bounded."""
    if deaths <= 1:
        return 0.0
    doublings = min(deaths - 2, 60)
    return min(policy.first_wait_s * 2.0**doublings, policy.longest_wait_s)
