"""What the service manager is told of a real pool, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.background import BackgroundTasks
from server.service.announce import MIN_INTERVAL_S, start_announcer
from server.service.notify import Notifier
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.settings import ModelSpec
from tests.helpers.notify_socket import NotifySocket, notify_socket
from tests.helpers.support import echo_options, model_settings, pool_settings, run
from workers.pool.catalog import LoadedModels
from workers.pool.pool import WorkerPool


class CountedModels(LoadedModels):
    """Counts how often somebody looks at the pools."""

    looks = 0

    def loaded(self) -> list[tuple[ModelSpec, WorkerPool]]:
        self.looks += 1
        return super().loaded()


@asynccontextmanager
async def announced(address: str, folder: Path, **options: Any) -> AsyncIterator[CountedModels]:
    settings = pool_settings(model_settings(path=echo_options(folder, **options)))
    models = CountedModels([ModelSpec("echo", settings)])
    async with BackgroundTasks() as tasks:
        start_announcer(Notifier(address), models, tasks)
        async with models:
            yield models


async def until_status(manager: NotifySocket, text: str) -> None:
    await asyncio.to_thread(manager.until_status, text)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"{tmp_path}/notify"


def test_while_nothing_changes_nobody_looks(address: str, tmp_path: Path) -> None:
    """It looked twice a second, for ever."""

    async def main() -> None:
        with notify_socket(address) as manager:
            async with announced(address, tmp_path) as models:
                await until_status(manager, "0 streams, 0 waiting, 1 worker")
                await asyncio.sleep(MIN_INTERVAL_S)  # a change that came meanwhile may be told
                before = models.looks
                await asyncio.sleep(3 * MIN_INTERVAL_S)
                assert models.looks == before

    run(main())


def test_each_change_is_told(address: str, tmp_path: Path) -> None:
    async def main() -> None:
        with notify_socket(address) as manager:
            async with announced(address, tmp_path, step_s=0.02) as models:
                await until_status(manager, "0 streams, 0 waiting, 1 worker")
                ((_, pool),) = models.loaded()
                stream = pool.submit(Prompt("x" * 99), SamplingParams(num_predict=200))
                await until_status(manager, "1 stream, 0 waiting")
                pool.release(stream)
                await until_status(manager, "0 streams, 0 waiting")

    run(main())


def test_a_busy_server_tells_its_changes_at_most_twice_a_second(
    address: str, tmp_path: Path
) -> None:
    async def main() -> None:
        with notify_socket(address) as manager:
            async with announced(address, tmp_path) as models:
                await until_status(manager, "1 worker")
                ((_, pool),) = models.loaded()
                started = time.monotonic()
                while (passed := time.monotonic() - started) < 4 * MIN_INTERVAL_S:
                    stream = pool.submit(Prompt("x"), SamplingParams(num_predict=1))
                    await stream.take()
                    pool.release(stream)
            before = len(manager.heard)
            while manager.receive(0.01):
                pass
            assert len(manager.heard) - before <= passed / MIN_INTERVAL_S + 1

    run(main())


def test_while_a_model_loads_the_manager_is_asked_to_wait_again_and_again(
    address: str, tmp_path: Path
) -> None:
    """A model may load for long without any progress that could be told."""

    async def main() -> None:
        with notify_socket(address) as manager:
            async with announced(address, tmp_path, load_s=3.0):
                await until_status(manager, "loading 0 %")
                for _ in range(2):
                    await asyncio.to_thread(
                        manager.until, lambda message: "EXTEND_TIMEOUT_USEC" in message
                    )
                message = await asyncio.to_thread(manager.until_ready)
                assert message["STATUS"] == "0 streams, 0 waiting, 1 worker"

    run(main())
