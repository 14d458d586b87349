"""Tells of changes: many tasks can wait for the next one at the same time."""

from __future__ import annotations

import asyncio


class Change:
    """Wakes all waiting tasks at each change. It does not say what has changed.

    Nothing is missed by a task that looks at the state and then awaits `wait` directly: the loop
    runs nothing in between. A task made of `wait` begins to wait only when it runs.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify_all(self) -> None:
        """Something has changed."""
        self._event.set()
        self._event.clear()

    async def wait(self) -> None:
        """Return at the next change."""
        await self._event.wait()
