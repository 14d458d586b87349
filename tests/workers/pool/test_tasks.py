"""Tasks that end before their caller does, and failures that are seen."""

from __future__ import annotations

import asyncio

import pytest

from tests.helpers.support import run
from workers.pool.tasks import finish, log_failure


async def fail() -> None:
    raise RuntimeError("a bug")


def test_work_is_finished_although_its_caller_is_cancelled() -> None:
    async def go() -> None:
        may_end, is_done = asyncio.Event(), False

        async def work() -> None:
            nonlocal is_done
            await may_end.wait()
            is_done = True

        caller = asyncio.create_task(finish(work()))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
        may_end.set()
        await asyncio.wait([caller])
        assert caller.cancelled()
        assert is_done

    run(go())


def test_the_result_and_the_error_of_work_are_its_callers() -> None:
    async def work() -> int:
        return 3

    async def go() -> None:
        assert await finish(work()) == 3
        with pytest.raises(RuntimeError, match="a bug"):
            await finish(fail())

    run(go())


def test_a_failure_is_logged_with_its_traceback_and_a_cancellation_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def go() -> None:
        failing = asyncio.create_task(fail(), name="failing")
        cancelled = asyncio.create_task(asyncio.sleep(60))
        for task in (failing, cancelled):
            task.add_done_callback(log_failure)
        cancelled.cancel()
        await asyncio.wait([failing, cancelled])
        await asyncio.sleep(0)

    run(go())
    (record,) = caplog.records
    assert record.message == "the task failing failed"
    assert "RuntimeError: a bug" in caplog.text
