"""The events of one request: its worker's handle puts them, the relay takes them."""

from __future__ import annotations

import asyncio
import time

from shared.messages import Embed, Embedded, Failed, Finished, Generate, Token

Event = Token | Embedded | Finished | Failed


class RequestStream:
    """An asynchronous buffer with one reader. It holds at most `num_predict` tokens and an end."""

    def __init__(self, request: Generate | Embed, client: str = "") -> None:
        self.request = request
        self.client = client
        self.key = request.prompt.key
        """The prompt's routing key; computed once, because tokens are formatted for it."""
        self.is_abandoned = False
        self.finished: Finished | None = None
        self.queued_s = 0.0
        """Seconds that the request waited for a slot; 0 while it waits."""
        self.worker: int | None = None
        """Index of the worker that runs the request; None while it waits."""
        self._submitted_at = time.monotonic()
        self._is_over = False
        self._events: list[Event] = []
        self._wake: asyncio.Future[None] | None = None

    def dispatched(self, worker: int) -> None:
        """Note that the request got a slot in the worker of this index."""
        self.worker = worker
        self.queued_s = time.monotonic() - self._submitted_at

    def put(self, event: Event) -> None:
        """Add an event. It is dropped after the last event, or if the stream is abandoned."""
        if self._is_over:
            return
        self._is_over = isinstance(event, Finished | Failed)
        if isinstance(event, Finished):
            self.finished = event
        if not self.is_abandoned:
            self._events.append(event)
            self._wake_reader()

    def abandon(self) -> None:
        """Drop all events from now on; a waiting `take` returns an empty list."""
        self.is_abandoned = True
        self._events.clear()
        self._wake_reader()

    async def take(self) -> list[Event]:
        """All events since the last call; waits for the next one if there are none.

        The last event of a request is its Finished or Failed. The list is empty if the stream is
        abandoned.
        """
        while not self._events and not self.is_abandoned:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        events, self._events = self._events, []
        return events

    def _wake_reader(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
