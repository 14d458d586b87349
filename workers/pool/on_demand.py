"""A folder of models: each is loaded on its first use, and gives its memory up for another's.

    use ─▶ its turn on the cores ─▶ loaded, or unload the least recently used and load ─▶ pool

All have the same cores. So that none is used twice, the models take turns: while requests of one
run, those of others wait; see workers.pool.turns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.errors import ConfigurationError, ModelUnavailable, NotReady
from shared.settings import ModelSpec
from workers.entry import run_worker
from workers.pool.catalog import ModelStatus, find, name_is_missing, status_of
from workers.pool.change import Change
from workers.pool.child_process import Target
from workers.pool.pool import WorkerPool
from workers.pool.turns import Turns

logger = logging.getLogger("tokenflume.pool")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is in memory, or on its way there."""

    spec: ModelSpec
    pool: WorkerPool


class ModelsOnDemand:
    """`find_models` looks for them, now and whenever a request names one that is not known.

    `memory_limit`: bytes that the loaded ones may take together. `queue`: requests that may wait
    for their model's turn. `target`: what worker processes run. A single model is the default; of
    several there is none.
    """

    def __init__(
        self,
        find_models: Callable[[], Sequence[ModelSpec]],
        memory_limit: int,
        queue: int,
        target: Target = run_worker,
    ) -> None:
        self._find_models = find_models
        self._memory_limit = memory_limit
        self._target = target
        self._change = Change()
        self._turns = Turns(queue, self._change)
        self._specs: dict[str, ModelSpec] = {}
        self._loaded: dict[str, Loaded] = {}  # the least recently used first
        self._loading: dict[str, asyncio.Task[WorkerPool]] = {}
        self._is_draining = False

    async def __aenter__(self) -> ModelsOnDemand:
        self._look()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._loading.values():
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        for name in list(self._loaded):
            await self._unload(name)

    def statuses(self) -> list[ModelStatus]:
        self._look()
        return [self._status(spec) for spec in self._specs.values()]

    async def until_change(self) -> None:
        await self._change.wait()

    def loaded(self) -> list[tuple[ModelSpec, WorkerPool]]:
        """Without those whose workers are lost: they are loaded anew when they are asked for."""
        models = self._loaded.values()
        return [(model.spec, model.pool) for model in models if not model.pool.status().is_lost]

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[tuple[ModelSpec, WorkerPool]]:
        spec = self._spec_of(name)
        if self._is_draining:
            raise NotReady("the server is shutting down")
        async with self._turns.of(spec.name):
            yield spec, await self._ready_pool(spec)

    def why_not_ready(self) -> str | None:
        return "the server is shutting down" if self._is_draining else None

    async def load_failure(self) -> ConfigurationError:
        """Never returns: nothing is loaded at start, and one model's failure is not another's."""
        never: asyncio.Future[ConfigurationError] = asyncio.get_running_loop().create_future()
        return await never

    async def drain(self, timeout_s: float) -> None:
        self._is_draining = True
        self._change.notify_all()
        self._turns.close(NotReady("the server is shutting down"))
        loaded = list(self._loaded.values())
        await asyncio.gather(*(model.pool.drain(timeout_s) for model in loaded))

    def kill_workers(self) -> None:
        for loaded in self._loaded.values():
            loaded.pool.kill_workers()

    def _look(self) -> None:
        self._specs = {spec.name: spec for spec in self._find_models()}

    def _spec_of(self, name: str | None) -> ModelSpec:
        if name not in self._specs:
            self._look()
        if name is None:
            if len(self._specs) != 1:
                raise name_is_missing(self._specs)
            return next(iter(self._specs.values()))
        return find(name, self._specs)

    def _status(self, spec: ModelSpec) -> ModelStatus:
        return status_of(spec, self._pool_of(spec.name), self._turns.waiting_of(spec.name))

    def _pool_of(self, name: str) -> WorkerPool | None:
        loaded = self._loaded.get(name)
        return None if loaded is None else loaded.pool

    async def _ready_pool(self, spec: ModelSpec) -> WorkerPool:
        """The model's pool, with a worker that is ready. Raises ModelUnavailable.

        A client that leaves does not end the loading: the next one may be glad of it.
        """
        task = self._loading.get(spec.name)
        if task is None and (loaded := self._loaded.pop(spec.name, None)) is not None:
            self._loaded[spec.name] = loaded  # now the most recently used
            if not loaded.pool.status().is_lost:
                return loaded.pool
        if task is None:
            task = self._loading[spec.name] = asyncio.create_task(self._load(spec))
            task.add_done_callback(lambda _: self._loading.pop(spec.name))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    async def _load(self, spec: ModelSpec) -> WorkerPool:
        await self._make_room(spec)
        logger.info("loading %s", spec.name)
        started = time.monotonic()
        pool = WorkerPool(spec.pool, target=self._target, change=self._change)
        self._loaded[spec.name] = Loaded(spec, pool)
        self._change.notify_all()
        try:
            await pool.__aenter__()
            reason = await pool.until_ready()
        except asyncio.CancelledError:
            await self._unload(spec.name)
            raise
        if reason is not None:
            given_up = pool.status().workers[0].given_up
            logger.error("%s cannot be loaded: %s", spec.name, given_up)
            await self._unload(spec.name)
            raise ModelUnavailable(f"{spec.name} cannot be loaded; the server's log says why")
        logger.info("%s is loaded, in %.1f s", spec.name, time.monotonic() - started)
        return pool

    async def _make_room(self, spec: ModelSpec) -> None:
        """Unload others, the least recently used first. Raises ModelUnavailable."""
        if spec.name in self._loaded:
            await self._unload(spec.name)
        if spec.memory > self._memory_limit:
            raise ModelUnavailable(
                f"{spec.name} needs about {spec.memory / 2**20:,.0f} MiB; --memory-limit is"
                f" {self._memory_limit / 2**20:,.0f} MiB"
            )
        while self._loaded and self._taken() + spec.memory > self._memory_limit:
            await self._unload(next(iter(self._loaded)))

    def _taken(self) -> int:
        """Bytes that the loaded models are expected to take."""
        return sum(loaded.spec.memory for loaded in self._loaded.values())

    async def _unload(self, name: str) -> None:
        loaded = self._loaded.pop(name)
        self._change.notify_all()
        await loaded.pool.__aexit__()
        logger.info("%s is unloaded", name)
