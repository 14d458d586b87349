"""A client that takes nothing of its answer is let go.

    answer ─▶ the transport's buffer ─▶ the kernel's ─▶ a client that does not read

uvicorn stops the answer while the transport's buffer is over its high-water mark, and would wait
there for ever, with the answer's slot.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger("tokenflume.http")


class SendDeadline(HttpToolsProtocol):
    """`send_timeout_s`: seconds that the buffer may stay over its mark (64 KiB) before it has
    fallen under the low one (16 KiB). Then the connection is aborted, which is to the answer as
    if the client had left."""

    def __init__(self, *args: Any, send_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._send_timeout_s = send_timeout_s
        self._deadline: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._deadline = self.loop.call_later(self._send_timeout_s, self._give_up)

    def resume_writing(self) -> None:
        self._forget_deadline()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        logger.info("a client took too little for %g s: disconnected", self._send_timeout_s)
        self.transport.abort()
