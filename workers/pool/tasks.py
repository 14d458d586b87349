"""Small helpers for tasks: work that must not be left half done, and failures that must be seen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger("tokenflume.pool")


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`. If the caller is cancelled meanwhile, `work` ends before the caller does."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        log_failure(task)
        raise


def log_failure(task: asyncio.Task[Any]) -> None:
    """Log the exception of a task that is done, with its traceback. As a done callback, or called.

    The exception then counts as retrieved: asyncio does not report it again.
    """
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.error("the task %s failed", task.get_name(), exc_info=error)
