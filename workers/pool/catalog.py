"""The models that requests can name. Here: all loaded at start, each on cores of its own.

See workers.pool.on_demand for a folder of models that share their cores.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from shared.errors import ConfigurationError, InvalidRequest, ModelNotFound
from shared.settings import ModelSpec
from shared.values import ModelInfo
from workers.entry import run_worker
from workers.pool.change import Change
from workers.pool.child_process import Target
from workers.pool.pool import WorkerPool
from workers.pool.status import PoolStatus

NOT_LOADED = PoolStatus(model=None, workers=(), waiting=0, is_draining=False)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model that requests can name, and the state of its pool."""

    spec: ModelSpec
    pool: PoolStatus = NOT_LOADED
    waiting_for_cores: int = 0
    """Requests that wait until the model may use the cores."""

    @property
    def info(self) -> ModelInfo | None:
        """What its workers have loaded; None before one is ready."""
        return self.pool.model

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot, or until the model may use the cores."""
        return self.pool.waiting + self.waiting_for_cores


class Catalog(Protocol):
    """What the front sees of all models. Leaving this asynchronous context ends all workers."""

    async def __aenter__(self) -> Catalog: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def refresh(self) -> None:
        """Look for new models, unless that was done a moment ago. Raises nothing."""

    def statuses(self) -> list[ModelStatus]:
        """The status of each known model; the default one, if there is one, is the first."""

    async def until_change(self) -> None:
        """Return when `statuses` have changed, but for counters and silence; see `Change`."""

    def loaded(self) -> list[tuple[ModelSpec, WorkerPool]]:
        """The models that are in memory, or being loaded, with their pools."""

    def use(self, name: str | None) -> AbstractAsyncContextManager[tuple[ModelSpec, WorkerPool]]:
        """Within the context the model is loaded; entering it may load the model first.

        `name`: None for the default model. Raises ServingError.
        """

    def why_not_ready(self) -> str | None:
        """Why no request can be served now, in a sentence; None if some can."""

    async def load_failure(self) -> ConfigurationError:
        """Returns if a model cannot be loaded at start. The server must then end."""

    async def drain(self, timeout_s: float) -> None:
        """As WorkerPool.drain, for all models at the same time."""

    def kill_workers(self) -> None:
        """SIGKILL all workers; their streams are cut."""


class LoadedModels:
    """Models that are loaded from start to end. The first is the default.

    `target`: what worker processes run.
    """

    def __init__(self, specs: Sequence[ModelSpec], target: Target = run_worker) -> None:
        self._target = target
        self._change = Change()
        self._specs = {spec.name: spec for spec in specs}
        self._pools: dict[str, WorkerPool] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> LoadedModels:
        for spec in self._specs.values():
            pool = WorkerPool(spec.pool, target=self._target, change=self._change)
            self._pools[spec.name] = await self._stack.enter_async_context(pool)
            self._change.notify_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def refresh(self) -> None:
        """Nothing to do: the models are given."""

    def statuses(self) -> list[ModelStatus]:
        return [status_of(spec, self._pools.get(spec.name)) for spec in self._specs.values()]

    async def until_change(self) -> None:
        await self._change.wait()

    def loaded(self) -> list[tuple[ModelSpec, WorkerPool]]:
        return [(self._specs[name], pool) for name, pool in self._pools.items()]

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[tuple[ModelSpec, WorkerPool]]:
        spec = find(next(iter(self._specs)) if name is None else name, self._specs)
        yield spec, self._pools[spec.name]

    def why_not_ready(self) -> str | None:
        reasons = [pool.status().why_not_ready for pool in self._pools.values()]
        return None if None in reasons else next(iter(reasons), "no worker is ready yet")

    async def load_failure(self) -> ConfigurationError:
        waiters = [asyncio.ensure_future(pool.load_failure()) for pool in self._pools.values()]
        try:
            done, _ = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for waiter in waiters:
                waiter.cancel()

    async def drain(self, timeout_s: float) -> None:
        await asyncio.gather(*(pool.drain(timeout_s) for pool in self._pools.values()))

    def kill_workers(self) -> None:
        for pool in self._pools.values():
            pool.kill_workers()


def status_of(spec: ModelSpec, pool: WorkerPool | None, waiting_for_cores: int = 0) -> ModelStatus:
    """`pool`: None if the model is neither loaded nor being loaded."""
    return ModelStatus(spec, NOT_LOADED if pool is None else pool.status(), waiting_for_cores)


def named(name: str, specs: Mapping[str, ModelSpec]) -> ModelSpec | None:
    """The model of this name. "x:latest", as Ollama's clients write it, also means "x"."""
    return specs.get(name) or specs.get(name.removesuffix(":latest"))


def find(name: str, specs: Mapping[str, ModelSpec]) -> ModelSpec:
    """As `named`, but raises ModelNotFound, whose message lists the models."""
    spec = named(name, specs)
    if spec is None:
        sentence = f"there is no model {name!r:.100}; there are: {listed(specs)}"
        raise ModelNotFound(sentence, field="model")
    return spec


def name_is_missing(specs: Mapping[str, ModelSpec]) -> InvalidRequest:
    """The error of a request that names no model although there is no default model."""
    return InvalidRequest(f"model is missing; there are: {listed(specs)}", field="model")


def listed(specs: Mapping[str, ModelSpec]) -> str:
    """The models' names, for a sentence."""
    return ", ".join(specs) or "none"
