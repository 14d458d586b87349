"""Background tasks: a failure is logged at once, and one of an essential task is reported."""

from __future__ import annotations

import asyncio
import logging

import pytest

from server.background import BackgroundTasks
from tests.helpers.support import run


async def defect() -> None:
    raise RuntimeError("a defect")


async def forever() -> None:
    await asyncio.Event().wait()


def test_a_failure_is_logged_with_its_traceback_when_it_happens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio logs it when the task is collected as garbage, which was when the server ended."""

    async def main() -> None:
        async with BackgroundTasks() as tasks:
            await tasks.start("start screen", defect())
            (record,) = caplog.records
            assert record.message == "the start screen failed"
            assert record.exc_info is not None
            assert str(record.exc_info[1]) == "a defect"

    run(main())


def test_only_an_essential_task_s_failure_is_reported() -> None:
    async def main() -> None:
        async with BackgroundTasks() as tasks:
            await tasks.start("start screen", defect())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await tasks.failure()
            tasks.start("announcer", defect(), is_essential=True)
            failure = await tasks.failure()
            assert str(failure) == (
                "the announcer failed: RuntimeError('a defect'); the log has more"
            )

    run(main())


def test_a_second_failure_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with BackgroundTasks() as tasks:
            await tasks.start("announcer", defect(), is_essential=True)
            await tasks.start("watchdog feed", defect(), is_essential=True)
            assert "announcer" in str(await tasks.failure())

    run(main())
    assert caplog.messages == ["the announcer failed", "the watchdog feed failed"]


def test_tasks_end_with_their_context_and_that_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "tokenflume")

    async def main() -> list[asyncio.Task[None]]:
        async with BackgroundTasks() as tasks:
            started = [tasks.start(name, forever(), is_essential=True) for name in ("one", "two")]
            await asyncio.sleep(0)
        return started

    assert all(task.cancelled() for task in run(main()))
    assert caplog.messages == []
