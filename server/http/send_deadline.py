"""Disconnects clients that do not read their answers.

    answer ─▶ send buffer of the transport ─▶ send buffer of the kernel ─▶ client

uvicorn pauses the answer while the transport's buffer is above its high-water mark. Without a limit
it would wait for ever, and the request would keep its slot.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger("tokenflume.http")


class SendDeadline(HttpToolsProtocol):
    """`send_timeout_s`: seconds in which a send buffer that has exceeded the high-water mark (64
    KiB) must fall below the low-water mark (16 KiB). Otherwise the connection is aborted and the
    request is cancelled."""

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
        logger.info("disconnected a client that read too little for %g s", self._send_timeout_s)
        self.transport.abort()
