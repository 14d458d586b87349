"""Models that are loaded on first use, share the cores in turn, and are unloaded for others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from shared.errors import (
    ConfigurationError,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    NotReady,
)
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.settings import ModelSpec
from tests.helpers.support import (
    collect,
    first_tokens,
    model_settings,
    pool_settings,
    run,
    text_of,
    until,
)
from workers.pool.catalog import LoadedModels
from workers.pool.on_demand import ModelsOnDemand
from workers.pool.pool import WorkerPool

FULL = SamplingParams(num_predict=1000)
ENDLESS = SamplingParams(num_predict=200_000, ignore_eos=True)


class Folder:
    """Echo models by name, each with its memory and its options."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.specs: dict[str, ModelSpec] = {}

    def add(self, name: str, memory: int = 10, **options: Any) -> None:
        file = self._path / f"{name}.json"
        file.write_text(json.dumps(options))
        pool = pool_settings(model_settings(path=file))
        self.specs[name] = ModelSpec(name, pool, memory)

    def __call__(self) -> list[ModelSpec]:
        return list(self.specs.values())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    for name in "abc":
        folder.add(name)
    return folder


Story = Callable[[ModelsOnDemand], Coroutine[Any, Any, None]]


def on_demand(folder: Folder, story: Story, limit: int = 25, queue: int = 8) -> None:
    async def go() -> None:
        async with ModelsOnDemand(folder, limit, queue) as models:
            await story(models)

    run(go())


async def ask(models: ModelsOnDemand, name: str | None, text: str = "hello") -> str:
    async with models.use(name) as (_, pool):
        return text_of(await collect(pool, pool.submit(Prompt(text), FULL)))


def loaded(models: ModelsOnDemand) -> set[str]:
    return {status.spec.name for status in models.statuses() if status.info is not None}


async def hold(models: ModelsOnDemand, name: str) -> tuple[asyncio.Task[None], asyncio.Event]:
    """Start a stream of the model that runs until the event is set."""
    runs, may_end = asyncio.Event(), asyncio.Event()

    async def stream() -> None:
        async with models.use(name) as (_, pool):
            stream = pool.submit(Prompt("x"), ENDLESS)
            try:
                await first_tokens(stream)
                runs.set()
                await may_end.wait()
            finally:
                pool.release(stream)

    task = asyncio.create_task(stream())
    await runs.wait()
    return task, may_end


def test_a_model_is_loaded_on_its_first_use_and_stays(folder: Folder) -> None:
    async def story(models: ModelsOnDemand) -> None:
        assert loaded(models) == set()
        assert await ask(models, "b") == "hello"
        assert loaded(models) == {"b"}
        async with models.use("b") as (_, pool):
            first = pool
        async with models.use("b") as (spec, pool):
            assert pool is first
            assert spec.name == "b"

    on_demand(folder, story)


def test_the_least_recently_used_gives_its_memory_up(folder: Folder) -> None:
    async def story(models: ModelsOnDemand) -> None:
        for name in "aba":
            await ask(models, name)
        assert loaded(models) == {"a", "b"}
        await ask(models, "c")
        assert loaded(models) == {"a", "c"}

    on_demand(folder, story)


def test_a_model_that_is_too_large_alone_is_refused_and_disturbs_none(folder: Folder) -> None:
    folder.add("huge", memory=26 * 2**20)

    async def story(models: ModelsOnDemand) -> None:
        await ask(models, "a")
        with pytest.raises(ModelUnavailable, match="huge needs about 26 MiB; --memory-limit is 25"):
            await ask(models, "huge")
        assert loaded(models) == {"a"}

    on_demand(folder, story, limit=25 * 2**20)


def test_requests_that_come_while_a_model_loads_wait_for_the_same_loading(folder: Folder) -> None:
    folder.add("slow", load_s=0.3)

    async def story(models: ModelsOnDemand) -> None:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(models, "slow", str(i))) for i in range(5)]
        assert [task.result() for task in asked] == [str(i) for i in range(5)]

    on_demand(folder, story)


def test_a_client_that_leaves_does_not_end_the_loading(folder: Folder) -> None:
    folder.add("slow", load_s=0.3)

    async def story(models: ModelsOnDemand) -> None:
        left = asyncio.create_task(ask(models, "slow"))
        await until(lambda: "slow" in models._loading)
        loading = models._loading["slow"]
        left.cancel()
        assert await ask(models, "slow") == "hello"
        assert loading.done()
        assert not loading.cancelled()
        assert left.cancelled()

    on_demand(folder, story)


def test_while_one_model_runs_anothers_requests_wait(folder: Folder) -> None:
    async def story(models: ModelsOnDemand) -> None:
        running, may_end = await hold(models, "a")
        waiting = asyncio.create_task(ask(models, "b"))
        await asyncio.wait([waiting], timeout=0.3)
        assert not waiting.done()
        assert loaded(models) == {"a"}
        may_end.set()
        await running
        assert await waiting == "hello"

    on_demand(folder, story)


def test_one_models_requests_run_together(folder: Folder) -> None:
    async def story(models: ModelsOnDemand) -> None:
        running, may_end = await hold(models, "a")
        assert await ask(models, "a") == "hello"
        may_end.set()
        await running

    on_demand(folder, story)


def test_a_model_that_cannot_be_loaded_is_an_error_for_its_requests_alone(folder: Folder) -> None:
    folder.add("bad", load_error="there is a tensor missing")

    async def story(models: ModelsOnDemand) -> None:
        for _ in range(2):  # tried anew each time
            with pytest.raises(ModelUnavailable, match="bad cannot be loaded; the server's log"):
                await ask(models, "bad")
        assert await ask(models, "a") == "hello"
        assert loaded(models) == {"a"}

    on_demand(folder, story)


def test_a_model_that_is_lost_is_loaded_again(folder: Folder) -> None:
    folder.add("frail", dies_after_s=0.05)

    async def story(models: ModelsOnDemand) -> None:
        async with models.use("frail") as (_, pool):
            await until(lambda: pool.status().is_lost)
        folder.add("frail")
        await models.refresh(0)
        assert await ask(models, "frail") == "hello"

    on_demand(folder, story)


def test_a_file_that_has_just_come_is_found_and_an_unknown_one_is_told(folder: Folder) -> None:
    async def story(models: ModelsOnDemand) -> None:
        with pytest.raises(ModelNotFound, match="no model 'new'; there are: a, b, c"):
            await ask(models, "new")
        folder.add("new")
        assert await ask(models, "new") == "hello"

    on_demand(folder, story)


def test_without_a_name_only_a_single_model_can_be_meant(folder: Folder) -> None:
    async def story(models: ModelsOnDemand) -> None:
        with pytest.raises(InvalidRequest, match="model is missing; there are: a, b, c"):
            await ask(models, None)
        del folder.specs["a"], folder.specs["c"]
        await models.refresh(0)
        assert await ask(models, None) == "hello"

    on_demand(folder, story)


def test_draining_ends_what_runs_in_time_and_refuses_what_waits(folder: Folder) -> None:
    async def story(models: ModelsOnDemand) -> None:
        running, may_end = await hold(models, "a")
        waiting = asyncio.create_task(ask(models, "b"))
        await asyncio.wait([waiting], timeout=0.05)
        draining = asyncio.create_task(models.drain(20))
        with pytest.raises(NotReady, match="shutting down"):
            await waiting
        with pytest.raises(NotReady, match="shutting down"):
            await ask(models, "a")
        assert models.why_not_ready() == "the server is shutting down"
        assert not draining.done()
        may_end.set()
        await running
        await draining

    on_demand(folder, story)


def test_draining_refuses_requests_whose_model_is_still_being_loaded(folder: Folder) -> None:
    """They used to get a 500, "cannot be loaded: ", as soon as loading had ended."""
    folder.add("slow", load_s=1.0)

    async def story(models: ModelsOnDemand) -> None:
        asked = asyncio.create_task(ask(models, "slow"))
        await until(lambda: bool(models.loaded()))
        started = asyncio.get_running_loop().time()
        await models.drain(20)
        with pytest.raises(NotReady, match="shutting down"):
            await asked
        assert asyncio.get_running_loop().time() - started < 0.9  # not when loading has ended

    on_demand(folder, story)


def test_a_loading_that_ends_while_draining_is_no_failure(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.add("slow", load_s=0.3)

    async def story(models: ModelsOnDemand) -> None:
        asked = asyncio.create_task(ask(models, "slow"))
        await until(lambda: bool(models.loaded()))
        await models.drain(20)
        with pytest.raises(NotReady, match="shutting down"):
            await asked
        await until(lambda: not models._loading)

    on_demand(folder, story)
    assert "cannot be loaded" not in caplog.text


def test_a_loading_that_fails_by_a_bug_is_logged_and_leaves_nothing_behind(
    folder: Folder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half-started pool used to stay, and the next request took it for a loaded model."""

    async def fail(_: WorkerPool) -> None:
        raise RuntimeError("a bug")

    async def story(models: ModelsOnDemand) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(WorkerPool, "until_ready", fail)
            with pytest.raises(RuntimeError):
                await ask(models, "a")
        assert models.loaded() == []
        assert await ask(models, "a") == "hello"

    on_demand(folder, story)
    assert "the task loading a failed" in caplog.text
    assert "RuntimeError: a bug" in caplog.text


def test_a_folder_that_becomes_unreadable_refuses_what_is_not_loaded_and_serves_the_rest(
    folder: Folder,
) -> None:
    """Everything that looked into the folder used to answer 500."""
    is_readable = True

    def find_models() -> list[ModelSpec]:
        if not is_readable:
            raise ConfigurationError("the folder cannot be read")
        return folder()

    async def go() -> None:
        nonlocal is_readable
        async with ModelsOnDemand(find_models, 25, 8) as models:
            await ask(models, "a")
            is_readable = False
            await models.refresh(0)
            assert [status.spec.name for status in models.statuses()] == ["a", "b", "c"]
            assert await ask(models, "a") == "hello"
            for name in ("b", "new", None):
                with pytest.raises(NotReady, match="the models' folder cannot be read"):
                    await ask(models, name)
            is_readable = True
            assert await ask(models, "b") == "hello"

    run(go())


def test_leaving_ends_a_loading_and_all_workers(folder: Folder) -> None:
    folder.add("slow", load_s=30)

    async def story(models: ModelsOnDemand) -> None:
        await ask(models, "a")
        asked = asyncio.create_task(ask(models, "slow"))
        await until(lambda: "slow" in models._loading)
        await models.__aexit__()
        await asyncio.wait([asked])
        assert loaded(models) == set()

    on_demand(folder, story)


def loaded_models(
    story: Callable[[LoadedModels], Coroutine[Any, Any, None]], folder: Folder
) -> None:
    async def go() -> None:
        async with LoadedModels(folder()) as models:
            await until(lambda: all(status.info for status in models.statuses()))
            await story(models)

    run(go())


def test_models_side_by_side_are_all_loaded_and_run_at_the_same_time(folder: Folder) -> None:
    async def story(models: LoadedModels) -> None:
        pools: list[WorkerPool] = []
        for name in (None, "b", "c"):
            async with models.use(name) as (_, pool):
                pools.append(pool)
        streams = [pool.submit(Prompt("x"), ENDLESS) for pool in pools]
        for stream in streams:
            await first_tokens(stream, 3)
        for pool, stream in zip(pools, streams, strict=True):
            pool.release(stream)
        with pytest.raises(ModelNotFound, match="no model 'd'; there are: a, b, c"):
            async with models.use("d"):
                pass
        assert models.why_not_ready() is None

    loaded_models(story, folder)


def test_one_model_that_cannot_be_loaded_at_start_is_told(folder: Folder) -> None:
    folder.add("bad", load_error="there is a tensor missing")

    async def go() -> None:
        async with LoadedModels(folder()) as models:
            assert "tensor missing" in str(await models.load_failure())

    run(go())


def test_requests_that_wait_for_their_models_turn_are_its_waiting_ones(folder: Folder) -> None:
    async def story(models: ModelsOnDemand) -> None:
        task, may_end = await hold(models, "a")
        asked = [asyncio.create_task(ask(models, "b")) for _ in range(2)]
        await until(lambda: waiting(models) == {"a": 0, "b": 2, "c": 0})
        may_end.set()
        await task
        assert await asyncio.gather(*asked) == ["hello", "hello"]
        assert waiting(models) == {"a": 0, "b": 0, "c": 0}

    def waiting(models: ModelsOnDemand) -> dict[str, int]:
        return {status.spec.name: status.waiting for status in models.statuses()}

    on_demand(folder, story)
