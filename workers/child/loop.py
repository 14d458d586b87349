"""The worker's loop, in the thread that runs the model.

    request queue ─▶ RequestReader ─▶ Preparation ─▶ Inbox ─▶ Scheduler ─▶ token queue
                           └────────── Cancel … ───────┘

Each turn takes what arrived, runs one step of the engine, and sends what the step brought in one
frame. The policy is the scheduler's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from shared.messages import (
    Cancel,
    DropPrompt,
    Failed,
    Heartbeat,
    Message,
    Shutdown,
    Tokenized,
)
from shared.queues import RequestReceiver, TokenSender
from workers.child.endings import cancelled
from workers.child.inbox import Arrival, Inbox
from workers.child.loading import LoadedModel
from workers.child.preparation import Preparation
from workers.child.prepared import PreparedEmbed, PreparedGenerate
from workers.child.reader import RequestReader

HEARTBEAT_S = 0.5
"""Longest time, in seconds, that an idle loop waits, and between two frames."""
WRITE_GRACE_S = 1.5
"""Seconds that saved prompts may take to be written when the worker ends."""


class Loop:
    """Serves the requests of `receiver` with a loaded model, and answers through `sender`."""

    def __init__(self, model: LoadedModel, receiver: RequestReceiver, sender: TokenSender) -> None:
        self._engine = model.engine
        self._scheduler = model.scheduler
        self._store = model.store
        self._sender = sender
        self._inbox = Inbox()
        self._preparation = Preparation(model.preparer, self._inbox)
        self._last_sent = self._last_counted = time.monotonic()
        RequestReader(receiver, self._inbox, self._preparation.submit, self._interrupt_for)

    def run(self) -> None:
        """Serve until Shutdown comes.

        Raises EOFError or BrokenPipeError when the front is gone, PreparationStuck, and whatever
        ends the thread that reads the request queue.
        """
        try:
            while self._turn():
                pass
        finally:
            self._preparation.close()

    def _turn(self) -> bool:
        """Take what arrived, run a step, send what it brought. False: the worker is to end."""
        self._engine.resume()  # a Cancel that comes after this is taken here, or interrupts a step
        events: list[Message] = []
        for arrival in self._inbox.take(HEARTBEAT_S if self._scheduler.is_idle else 0):
            if isinstance(arrival, Shutdown):
                if self._store is not None:
                    self._store.close(WRITE_GRACE_S)
                return False
            events += self._handle(arrival)
        events += self._scheduler.step()
        saved_prompts = self._scheduler.take_saved()
        if self._store is not None:
            self._store.keep_up(saved_prompts, events)
        self._preparation.check()
        self._send(events)
        return True

    def _handle(self, arrival: Arrival) -> Sequence[Message]:
        """Act on what arrived; return what there is to say at once."""
        match arrival:
            case PreparedGenerate() | PreparedEmbed():
                if self._preparation.accept(arrival.id):
                    self._scheduler.submit(arrival)
            case Tokenized():
                if self._preparation.accept(arrival.id):
                    self._sender.send([arrival])  # alone: it may fill a frame
            case Failed():
                if self._preparation.accept(arrival.id):
                    return [arrival]
            case Cancel(id=request_id):
                if self._preparation.cancel(request_id):
                    return [cancelled(request_id)]
                return self._scheduler.cancel(request_id)
            case DropPrompt(prompt_id=prompt_id):
                self._scheduler.drop(prompt_id)
                if self._store is not None:
                    self._store.delete(prompt_id)
        return []

    def _send(self, events: list[Message]) -> None:
        """Send the events in one frame, with the counts of steps or a heartbeat if one is due."""
        now = time.monotonic()
        if now - self._last_counted >= HEARTBEAT_S:
            events += self._scheduler.steps.take()
            self._last_counted = now
        if not events and now - self._last_sent >= HEARTBEAT_S:
            events.append(Heartbeat())
        if events:
            self._sender.send(events)
            self._last_sent = now

    def _interrupt_for(self, request_id: int) -> None:
        """Interrupt the current step for a Cancel that is in the inbox. In the reader's thread.

        The step may carry the request's prompt unless the request is being prepared, or decodes
        already.
        """
        is_preparing = self._preparation.is_preparing(request_id)
        if not is_preparing and request_id not in self._scheduler.decoding:
            self._engine.interrupt()
