"""The status of a pool, and waking those who wait for a change of it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shared.errors import ModelUnavailable
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.settings import ModelSpec
from shared.values import ModelInfo
from tests.helpers.support import (
    collect,
    echo_options,
    model_settings,
    pool_settings,
    run,
    with_pool,
)
from workers.pool.change import Change
from workers.pool.on_demand import ModelsOnDemand
from workers.pool.pool import WorkerPool
from workers.pool.status import PoolStatus, State, WorkerCounters, WorkerStatus

FULL = SamplingParams(num_predict=1_000)


async def seen_until(
    look: Callable[[], object], until_change: Callable[[], Awaitable[None]], last: object
) -> list[object]:
    """The different values of `look`, read at each change, up to `last`."""
    seen = [look()]
    while seen[-1] != last:
        await until_change()
        if (now := look()) != seen[-1]:
            seen.append(now)
    return seen


def worker(state: State, *, silence_s: float = 0.0, loaded: float = 0.0) -> WorkerStatus:
    given_up = "why" if state == "given_up" else ""
    return WorkerStatus(
        0, state, 1, loaded, 4, 2, silence_s, given_up, given_up and "worse", WorkerCounters()
    )


def pool(*workers: WorkerStatus, is_draining: bool = False) -> PoolStatus:
    info = ModelInfo("echo", "echo", 256, 257, 4, 64, ())
    is_ready = any(worker.state == "ready" for worker in workers)
    return PoolStatus(info if is_ready else None, workers, 0, is_draining)


def test_why_a_pool_is_not_ready() -> None:
    assert pool(worker("ready"), worker("given_up")).why_not_ready is None
    assert pool(worker("loading"), worker("given_up")).why_not_ready == "no worker is ready yet"
    lost = pool(worker("given_up"))
    assert lost.is_lost
    assert lost.why_not_ready == "no worker is left; the server's log says why"
    draining = pool(worker("ready"), is_draining=True)
    assert draining.why_not_ready == "the server is shutting down"


def test_only_ready_workers_count_and_the_furthest_says_how_far_loading_is() -> None:
    status = pool(worker("ready"), worker("replacing", loaded=0.5), worker("given_up"))
    assert (status.ready_workers, status.active, status.loaded) == (1, 2, 1.0)
    assert status.troubles == ("worse",)
    assert pool(worker("loading", loaded=0.25), worker("loading", loaded=0.5)).loaded == 0.5


def test_a_worker_that_loads_or_was_heard_of_lately_makes_progress() -> None:
    assert pool(worker("loading")).makes_progress(1.0)
    assert pool(worker("ready", silence_s=0.9), worker("given_up")).makes_progress(1.0)
    assert not pool(worker("ready", silence_s=1.0)).makes_progress(1.0)
    assert not pool(worker("given_up", silence_s=float("inf"))).makes_progress(float("inf"))


def test_a_change_wakes_everyone_who_waits_and_nobody_who_comes_later() -> None:
    async def go() -> None:
        change = Change()
        waiting = [asyncio.create_task(change.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        change.notify_all()
        late = asyncio.create_task(change.wait())
        await asyncio.gather(*waiting)
        await asyncio.sleep(0)
        assert not late.done()
        late.cancel()

    run(go())


def test_loading_readiness_a_crash_and_the_next_worker_are_told_as_they_happen(
    tmp_path: Path,
) -> None:
    async def go() -> None:
        model = model_settings(path=echo_options(tmp_path, load_s=0.4))
        async with WorkerPool(pool_settings(model)) as pool:
            loaded = await seen_until(lambda: pool.status().loaded, pool.until_change, 1.0)
            assert len(loaded) > 3
            while not pool.status().ready_workers:
                await pool.until_change()
            (status,) = pool.status().workers
            assert (status.state, status.trouble) == ("ready", "")
            os.kill(status.pid or 0, signal.SIGKILL)

            while pool.status().workers[0].state != "replacing":
                await pool.until_change()
            assert "SIGKILL" in pool.status().troubles[0]
            while pool.status().troubles:
                await pool.until_change()
            assert pool.status().ready_workers == 1

    run(go())


def test_a_requests_start_and_end_and_draining_are_told(tmp_path: Path) -> None:
    async def step(pool: WorkerPool) -> None:
        def load() -> tuple[int, int]:
            return pool.status().active, pool.status().waiting

        full = asyncio.create_task(seen_until(load, pool.until_change, (1, 1)))
        await asyncio.sleep(0)
        running, waiting = (pool.submit(Prompt(text), FULL) for text in ("first", "second"))
        await full
        empty = asyncio.create_task(seen_until(load, pool.until_change, (0, 0)))
        await collect(pool, running)
        await collect(pool, waiting)
        await empty
        draining = asyncio.create_task(pool.drain(1))
        while not pool.status().is_draining:
            await pool.until_change()
        await draining

    with_pool(pool_settings(model_settings(path=echo_options(tmp_path, slots=1))), step)


def test_a_catalog_tells_of_models_that_are_loaded_and_unloaded(tmp_path: Path) -> None:
    def spec(name: str, **options: object) -> ModelSpec:
        (tmp_path / name).mkdir()
        path = echo_options(tmp_path / name, **options)
        return ModelSpec(name, pool_settings(model_settings(path=path)), memory=10)

    specs = [spec("a"), spec("b"), spec("bad", load_error="no such tensor")]

    async def go() -> None:
        async with ModelsOnDemand(lambda: specs, memory_limit=10, queue=4) as models:

            def names() -> list[str]:
                return [spec.name for spec, _ in models.loaded()]

            for name in ("a", "b"):
                following = asyncio.create_task(seen_until(names, models.until_change, [name]))
                await asyncio.sleep(0)
                async with models.use(name):
                    await following
            following = asyncio.create_task(seen_until(names, models.until_change, []))
            with pytest.raises(ModelUnavailable):
                async with models.use("bad"):
                    pass
            await following

    run(go())
