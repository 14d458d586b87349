"""The worker's incoming messages, read by a thread so that a long step can be cut short.

The loop takes messages between two steps. A step that carries only prompts may last seconds,
and a client may leave in the middle of it: the thread sees the Cancel at once.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from shared.messages import Cancel, Message
from shared.queues import RequestReceiver


class Inbox:
    """Reads `receiver` to its end. Both functions run in the thread: `prepare` before a message
    is in, for what should not hold up the loop, `on_cancel` after a Cancel is."""

    def __init__(
        self,
        receiver: RequestReceiver,
        on_cancel: Callable[[int], None],
        prepare: Callable[[Message], None] | None = None,
    ) -> None:
        self._receiver = receiver
        self._on_cancel = on_cancel
        self._prepare = prepare
        self._messages: queue.SimpleQueue[Message | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def take(self, timeout_s: float) -> list[Message]:
        """What has arrived; waits up to `timeout_s` seconds when nothing has.

        Raises EOFError when the front is gone, FrameError when it sends rubbish, and whatever else
        ends the reading: once all that came before is taken, and from then on.
        """
        taken: list[Message] = []
        while not self._messages.empty() or (timeout_s > 0 and not taken):
            try:
                message = self._messages.get(timeout=timeout_s)
            except queue.Empty:
                break
            if isinstance(message, Exception):
                self._messages.put(message)  # always the last
                if taken:
                    break
                raise message
            taken.append(message)
        return taken

    def _read(self) -> None:
        try:
            while True:
                for message in self._receiver.receive(None):
                    if self._prepare is not None:
                        self._prepare(message)
                    self._messages.put(message)
                    if isinstance(message, Cancel):
                        self._on_cancel(message.id)
        except Exception as error:  # whatever it is, the loop must not live on without its ears
            self._messages.put(error)
