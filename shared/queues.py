"""The two private queues of a worker, over one-way multiprocessing pipes.

    front: RequestSender ──▶ request queue ──▶ RequestReceiver :worker
    front: TokenReceiver ◀── token queue   ◀── TokenSender     :worker

The worker's ends block; the front's ends are asyncio transports and never block. No queue is shared
by two workers: a worker that is killed while it holds a shared queue's lock would stop the others.
Each side closes the ends that it does not use, so the death of one is an EOF for the other.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from shared.errors import FrameError
from shared.messages import Message
from shared.wire import FrameParser, encode_frame

READ_SIZE = 64 * 1024
"""Bytes that are read at a time."""


class RequestReceiver:
    """The worker's end of its request queue."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection  # owns the descriptor
        self._fd = connection.fileno()
        self._parser = FrameParser()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        os.set_blocking(self._fd, False)

    def receive(self, timeout_s: float | None) -> list[Message]:
        """The messages that have arrived. If there are none, wait up to `timeout_s` seconds.

        `timeout_s`: None to wait without a limit. Raises EOFError if the front is gone, and
        FrameError if it sends something else than messages.
        """
        if timeout_s is None or timeout_s > 0:
            self._poll.poll(None if timeout_s is None else timeout_s * 1000)
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError("the front has closed the request queue")
        return self._parser.feed(data)


class TokenSender:
    """The worker's end of its token queue."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._fd = connection.fileno()

    def send(self, batch: Sequence[Message]) -> None:
        """Write one frame; block while the pipe is full, so nothing is lost and nothing piles up.

        Raises BrokenPipeError if the front is gone.
        """
        rest = memoryview(encode_frame(batch))
        while rest:
            rest = rest[os.write(self._fd, rest) :]


class RequestSender:
    """The front's end of a worker's request queue."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport

    @classmethod
    async def open(cls, connection: Connection) -> RequestSender:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, connection)
        return cls(transport)

    def send(self, message: Message) -> None:
        """Write a message without blocking. A message for a dead worker is dropped."""
        if not self._transport.is_closing():
            self._transport.write(encode_frame([message]))

    def close(self) -> None:
        if not self._transport.is_closing():
            self._transport.abort()


class TokenReceiver(asyncio.Protocol):
    """The front's end of a worker's token queue.

    `on_messages` is called with each batch, in order. `on_end` is called once, when nothing more
    will come: with the FrameError that broke the queue, or with None at its EOF.
    """

    def __init__(
        self,
        on_messages: Callable[[list[Message]], None],
        on_end: Callable[[FrameError | None], None],
    ) -> None:
        self._on_messages = on_messages
        self._on_end = on_end
        self._parser = FrameParser()
        self._transport: asyncio.BaseTransport | None = None
        self._error: FrameError | None = None
        self.is_at_end = False

    async def open(self, connection: Connection) -> None:
        await asyncio.get_running_loop().connect_read_pipe(lambda: self, connection)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            batch = self._parser.feed(data)
        except FrameError as error:
            self._error = error
            self.close()
        else:
            if batch:
                self._on_messages(batch)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_at_end = True
        self._on_end(self._error)
