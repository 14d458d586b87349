"""A folder of models: each is loaded on its first use, and unloaded when another needs its memory.

    use ─▶ GroupLock ─▶ loaded already, or unload the least recently used and load ─▶ WorkerPool

All models use the same cores. So that no core runs two engines at a time, requests of one model run
while those of others wait: see workers.pool.group_lock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from shared.errors import ConfigurationError, ModelUnavailable, NotReady, ServingError
from shared.settings import ModelSpec
from workers.entry import run_worker
from workers.pool.catalog import ModelStatus, find, name_is_missing, named, status_of
from workers.pool.change import Change
from workers.pool.child_process import Target
from workers.pool.group_lock import GroupLock
from workers.pool.listing import MAX_AGE_S, ModelListing
from workers.pool.pool import WorkerPool
from workers.pool.status import SHUTTING_DOWN, PoolStatus
from workers.pool.tasks import finish, log_failure

UNREADABLE = "the models' folder cannot be read; the server's log says why"

logger = logging.getLogger("tokenflume.pool")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is in memory, or being loaded."""

    spec: ModelSpec
    pool: WorkerPool


class ModelsOnDemand:
    """`find_models` scans the folder: see ModelListing.

    `memory_limit`: bytes that the loaded models may take together. `queue`: requests that may wait
    until their model may use the cores. `target`: what worker processes run. A single model is the
    default; if there are several, there is no default.
    """

    def __init__(
        self,
        find_models: Callable[[], Sequence[ModelSpec]],
        memory_limit: int,
        queue: int,
        target: Target = run_worker,
    ) -> None:
        self._memory_limit = memory_limit
        self._target = target
        self._change = Change()
        self._listing = ModelListing(find_models, self._change)
        self._cores = GroupLock(queue, self._change)
        self._loaded: dict[str, LoadedModel] = {}  # the least recently used first
        self._loading: dict[str, asyncio.Task[WorkerPool]] = {}
        self._draining: asyncio.Future[None]  # done as soon as the server shuts down

    async def __aenter__(self) -> ModelsOnDemand:
        self._draining = asyncio.get_running_loop().create_future()
        await self._listing.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._loading.values():
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        for name in list(self._loaded):
            await self._unload(name)

    async def refresh(self, max_age_s: float = MAX_AGE_S) -> None:
        await self._listing.refresh(max_age_s)

    def statuses(self) -> list[ModelStatus]:
        return [self._status(spec) for spec in self._listing.specs.values()]

    async def until_change(self) -> None:
        await self._change.wait()

    def loaded(self) -> list[tuple[ModelSpec, WorkerPool]]:
        """Without models that have lost all workers: they are loaded again when they are used."""
        models = self._loaded.values()
        return [(model.spec, model.pool) for model in models if not model.pool.status().is_lost]

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[tuple[ModelSpec, WorkerPool]]:
        self._refuse_if_draining()
        spec = await self._find(name)
        self._refuse_if_draining()
        async with self._cores.held_by(spec.name):
            yield spec, await self._ready_pool(spec)

    def why_not_ready(self) -> str | None:
        return SHUTTING_DOWN if self._draining.done() else None

    async def load_failure(self) -> ConfigurationError:
        """Never returns: nothing is loaded at start, and one model's failure is not another's."""
        never: asyncio.Future[ConfigurationError] = asyncio.get_running_loop().create_future()
        return await never

    async def drain(self, timeout_s: float) -> None:
        if not self._draining.done():
            self._draining.set_result(None)
        self._cores.close(NotReady(SHUTTING_DOWN))
        self._change.notify_all()
        loaded = list(self._loaded.values())
        await asyncio.gather(*(model.pool.drain(timeout_s) for model in loaded))

    def kill_workers(self) -> None:
        for loaded in self._loaded.values():
            loaded.pool.kill_workers()

    def _refuse_if_draining(self) -> None:
        """Raises NotReady."""
        if self._draining.done():
            raise NotReady(SHUTTING_DOWN)

    async def _find(self, name: str | None) -> ModelSpec:
        """The model of this name; None: the only one. Raises ServingError.

        A loaded model is found without a look into the folder.
        """
        spec = self._known(name)
        if spec is not None and spec.name in self._loaded:
            return spec
        is_known = spec is not None and self._listing.is_readable
        await self._listing.refresh(MAX_AGE_S if is_known else 0.0)
        if not self._listing.is_readable:
            raise NotReady(UNREADABLE)
        specs = self._listing.specs
        if name is None:
            if len(specs) != 1:
                raise name_is_missing(specs)
            return next(iter(specs.values()))
        return find(name, specs)

    def _known(self, name: str | None) -> ModelSpec | None:
        specs = self._listing.specs
        if name is not None:
            return named(name, specs)
        return next(iter(specs.values())) if len(specs) == 1 else None

    def _status(self, spec: ModelSpec) -> ModelStatus:
        loaded = self._loaded.get(spec.name)
        pool = None if loaded is None else loaded.pool
        return status_of(spec, pool, self._cores.waiting_of(spec.name))

    async def _ready_pool(self, spec: ModelSpec) -> WorkerPool:
        """The model's pool, with a worker that is ready. Raises ServingError.

        The caller holds the cores, and keeps them until the model is loaded, even if it is
        cancelled: another model must not run meanwhile. The next request finds the model loaded.
        """
        self._refuse_if_draining()
        if (pool := self._loaded_pool(spec)) is not None:
            return pool
        task = self._loading.get(spec.name) or self._start_loading(spec)
        ends: set[asyncio.Future[Any]] = {task, self._draining}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            raise
        self._refuse_if_draining()
        return task.result()

    def _loaded_pool(self, spec: ModelSpec) -> WorkerPool | None:
        """The pool of a model that is loaded, which is then the most recently used one."""
        if spec.name in self._loading or spec.name not in self._loaded:
            return None
        loaded = self._loaded[spec.name] = self._loaded.pop(spec.name)
        return None if loaded.pool.status().is_lost else loaded.pool

    def _start_loading(self, spec: ModelSpec) -> asyncio.Task[WorkerPool]:
        task = asyncio.create_task(self._load(spec), name=f"loading {spec.name}")
        self._loading[spec.name] = task
        task.add_done_callback(partial(self._on_loaded, spec.name))
        return task

    def _on_loaded(self, name: str, task: asyncio.Task[WorkerPool]) -> None:
        del self._loading[name]
        if task.cancelled() or not isinstance(task.exception(), ServingError):
            log_failure(task)

    async def _load(self, spec: ModelSpec) -> WorkerPool:
        """Raises ServingError."""
        await self._make_room(spec)
        logger.info("loading %s", spec.name)
        started = time.monotonic()
        pool = WorkerPool(spec.pool, target=self._target, change=self._change)
        self._loaded[spec.name] = LoadedModel(spec, pool)
        self._change.notify_all()
        try:
            await pool.__aenter__()
            if await pool.until_ready() is not None:
                self._refuse_if_draining()
                raise unloadable(spec, pool.status())
        except BaseException:  # also when cancelled
            await self._unload(spec.name)
            raise
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
        while self._loaded and self._loaded_bytes() + spec.memory > self._memory_limit:
            await self._unload(next(iter(self._loaded)))

    def _loaded_bytes(self) -> int:
        """Bytes that the loaded models are expected to take."""
        return sum(loaded.spec.memory for loaded in self._loaded.values())

    async def _unload(self, name: str) -> None:
        loaded = self._loaded.pop(name)
        self._change.notify_all()
        await finish(loaded.pool.__aexit__())
        logger.info("%s is unloaded", name)


def unloadable(spec: ModelSpec, status: PoolStatus) -> ModelUnavailable:
    """The error of a model that its workers could not load; the log says why."""
    logger.error("%s cannot be loaded: %s", spec.name, status.workers[0].given_up)
    return ModelUnavailable(f"{spec.name} cannot be loaded; the server's log says why")
