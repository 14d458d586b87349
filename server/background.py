"""Tasks that run beside the main task: none of them fails unseen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger("tokenflume")


class BackgroundTaskFailed(Exception):
    """An essential background task has failed; the log has the traceback."""


class BackgroundTasks:
    """An asynchronous context, which cancels its tasks at the end.

    A task that fails is logged at once, with its traceback. `failure` reports the first failure of
    an essential task, without which the server must not go on.
    """

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: asyncio.Future[BackgroundTaskFailed]

    async def __aenter__(self) -> BackgroundTasks:
        self._failure = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(
        self, name: str, work: Coroutine[Any, Any, None], *, is_essential: bool = False
    ) -> asyncio.Task[None]:
        """Run `work` in a task that does not raise. `name`: for the log, such as "start screen"."""
        task = asyncio.create_task(self._run(name, work, is_essential=is_essential), name=name)
        self._tasks.append(task)
        return task

    async def failure(self) -> BackgroundTaskFailed:
        """Returns when an essential task has failed."""
        return await asyncio.shield(self._failure)

    async def _run(self, name: str, work: Coroutine[Any, Any, None], *, is_essential: bool) -> None:
        try:
            await work
        except Exception as error:
            logger.exception("the %s failed", name)
            if is_essential and not self._failure.done():
                failure = BackgroundTaskFailed(f"the {name} failed: {error!r}; the log has more")
                self._failure.set_result(failure)
