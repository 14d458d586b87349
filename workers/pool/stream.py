"""The events of one request, on their way from its worker's handle to whoever relays them."""

from __future__ import annotations

import asyncio
import time

from shared.messages import Embed, Embedded, Failed, Finished, Generate, Token

Event = Token | Embedded | Finished | Failed


class RequestStream:
    """An asynchronous buffer with one reader. It is bounded by the request's num_predict."""

    def __init__(self, request: Generate | Embed, client: str = "") -> None:
        self.request = request
        self.client = client
        self.key = request.prompt.key
        """Of the prompt; made once, as tokens have to be written out for it."""
        self.is_abandoned = False
        self.finished: Finished | None = None
        self.queued_s = 0.0
        """How long the request waited for a slot, in seconds."""
        self.worker: int | None = None
        """The index of the worker that has it; None while it waits."""
        self._submitted_at = time.monotonic()
        self._is_over = False
        self._events: list[Event] = []
        self._wake: asyncio.Future[None] | None = None

    def dispatched(self, worker: int) -> None:
        """The request has its slot, in the worker of this index."""
        self.worker = worker
        self.queued_s = time.monotonic() - self._submitted_at

    def put(self, event: Event) -> None:
        """Add an event; none is taken after the last one, nor once the stream is abandoned."""
        if self._is_over:
            return
        self._is_over = isinstance(event, Finished | Failed)
        if isinstance(event, Finished):
            self.finished = event
        if not self.is_abandoned:
            self._events.append(event)
            self._wake_reader()

    def abandon(self) -> None:
        """Nobody wants the events any more: a waiting `take` returns nothing."""
        self.is_abandoned = True
        self._events.clear()
        self._wake_reader()

    async def take(self) -> list[Event]:
        """All events that have come since the last call; waits for one when there is none.

        The last event of a request is its Finished or Failed; nothing follows
        it. Empty once the stream is abandoned.
        """
        while not self._events and not self.is_abandoned:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        events, self._events = self._events, []
        return events

    def _wake_reader(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
