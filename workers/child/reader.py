"""Reads the request queue in a thread, so that a Cancel can interrupt a long step.

The loop takes messages between two steps. A step that carries only prompts may last seconds, and a
client may leave in the middle of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from shared.messages import Cancel, Embed, Generate, Tokenize
from shared.queues import RequestReceiver
from workers.child.inbox import Inbox
from workers.child.preparer import Request


class RequestReader:
    """Reads `receiver` to its end.

    Requests go to `submit`, all other messages into the inbox. `on_cancel` is called with the
    request's id when a Cancel is in the inbox. Both functions run in this thread.
    The inbox fails with EOFError when the front is gone, with FrameError when it sends bytes that
    are not a frame, and with any other error that ends the thread: the loop needs the thread.
    """

    def __init__(
        self,
        receiver: RequestReceiver,
        inbox: Inbox,
        submit: Callable[[Request], None],
        on_cancel: Callable[[int], None],
    ) -> None:
        self._receiver = receiver
        self._inbox = inbox
        self._submit = submit
        self._on_cancel = on_cancel
        threading.Thread(target=self._read, name="request-reader", daemon=True).start()

    def _read(self) -> None:
        try:
            while True:
                for message in self._receiver.receive(None):
                    if isinstance(message, Generate | Embed | Tokenize):
                        self._submit(message)
                        continue
                    self._inbox.put(message)
                    if isinstance(message, Cancel):
                        self._on_cancel(message.id)
        except Exception as error:
            self._inbox.fail(error)
