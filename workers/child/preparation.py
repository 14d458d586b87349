"""Prepares requests beside the loop, so that no running stream waits for a tokenizer.

    RequestReader ─▶ submit ─▶ a lane's thread: Preparer.prepare ─▶ Inbox ─▶ the loop: accept
                                                                            the loop: cancel

There are two lanes, each first come first served. A prompt cannot be tokenized in slices without
changing its tokens, so requests of more than SHORT_CHARACTERS have their own lane: short requests
do not wait for them, and may overtake them. (The ctransformers engine has a lock, so there a short
prompt may wait for one long one.)
"""

from __future__ import annotations

from shared.errors import QueueFull
from workers.child.endings import failed
from workers.child.inbox import Inbox
from workers.child.lane import Lane, LaneLimits
from workers.child.preparer import Preparer, Request

STUCK_S = 300.0
"""Seconds after which a preparation counts as stuck. The slowest that was seen took 80: 1 MiB of
characters that a SentencePiece vocabulary lacks, in llama.cpp."""
LONG = LaneLimits(questions=32, stack_bytes=512 * 2**20, idle_s=1.0)
"""llama.cpp splits texts with std::regex for some vocabularies, which recurses for each character
of a word: 1 MiB of one letter takes 0.3 GiB of stack. What it touched is given back when the
thread ends."""
SHORT = LaneLimits(questions=1000, stack_bytes=32 * 2**20)
"""SHORT_CHARACTERS in one word take 7 MiB of stack."""


class PreparationStuck(Exception):
    """A request takes longer to prepare than any should: the engine is stuck."""


class Preparation:
    """The requests that the worker has received and the loop has not accepted yet.

    `submit` is called by one thread, `accept`, `cancel` and `check` by the loop.
    """

    def __init__(self, preparer: Preparer, inbox: Inbox) -> None:
        self._preparer = preparer
        self._inbox = inbox
        self._open: set[int] = set()
        """Ids of requests that were neither accepted nor cancelled."""
        self._unprepared: set[int] = set()
        """Ids of requests whose outcome is not in the inbox yet."""
        self._short = Lane("prepare-short", SHORT, self._prepare)
        self._long = Lane("prepare-long", LONG, self._prepare)

    def submit(self, request: Request) -> None:
        """Have the request prepared. Its outcome comes into the inbox. Raises MemoryError."""
        self._open.add(request.id)
        self._unprepared.add(request.id)
        lane = self._short if self._preparer.is_short(request) else self._long
        try:
            lane.put(request)
        except QueueFull as error:
            self._unprepared.discard(request.id)
            self._inbox.put(failed(request.id, error))

    def accept(self, request_id: int) -> bool:
        """Take over an outcome that came from the inbox. False: its request was cancelled."""
        return self._remove(request_id)

    def cancel(self, request_id: int) -> bool:
        """Forget a request. False: it is not here."""
        return self._remove(request_id)

    def is_preparing(self, request_id: int) -> bool:
        """Return whether the outcome is still to come into the inbox. From any thread."""
        return request_id in self._unprepared

    def check(self) -> None:
        """Raise PreparationStuck when a request has been prepared for more than STUCK_S seconds.

        The loop's heartbeats say nothing about the lanes, and native code cannot be interrupted.
        """
        busy_s = max(self._short.busy_s(), self._long.busy_s())
        if busy_s > STUCK_S:
            raise PreparationStuck(f"a request has been prepared for {busy_s:.0f} s")

    def close(self) -> None:
        """Drop the requests that wait. The outcome of one that is being prepared is not used."""
        self._short.close()
        self._long.close()

    def _remove(self, request_id: int) -> bool:
        is_open = request_id in self._open
        self._open.discard(request_id)
        return is_open

    def _prepare(self, request: Request) -> None:
        """Runs in a lane's thread. An error ends the loop, which needs the lane."""
        try:
            outcome = self._preparer.prepare(request) if request.id in self._open else None
            # Discarded first: while `is_preparing`, the outcome comes behind a Cancel that is in
            # the inbox.
            self._unprepared.discard(request.id)
            if outcome is not None:
                self._inbox.put(outcome)
        except Exception as error:
            self._inbox.fail(error)
