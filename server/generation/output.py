"""The bytes of one answer on their way to the client: sent as they come, or together at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod

from starlette.types import Message, Send

from server.generation.answer import Renderer
from shared.errors import ServingError


class Output(ABC):
    """Where the relay writes an answer. Exactly one call of `end` or `cut` comes last."""

    def __init__(self, renderer: Renderer, send: Send) -> None:
        self._renderer = renderer
        self._send = send
        self._has_begun = False

    @abstractmethod
    async def write(self, body: bytes) -> None:
        """Take more of the answer."""

    @abstractmethod
    async def end(self, body: bytes) -> None:
        """Take the last of the answer."""

    @abstractmethod
    async def cut(self, body: bytes, error: ServingError) -> None:
        """End an answer that failed after `body`. Raises the error while nothing has been sent."""

    def _with_beginning(self, body: bytes) -> bytes:
        """`body`, at the first call with the renderer's beginning before it."""
        if self._has_begun:
            return body
        self._has_begun = True
        return self._renderer.begin() + body

    async def _send_head(self, name: bytes, value: bytes) -> None:
        """Send status 200 and the headers, `name` among them."""
        headers = [
            (b"content-type", self._renderer.media_type.encode()),
            (b"cache-control", b"no-store"),
            (name, value),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})


class StreamOutput(Output):
    """Sends the bytes as they come. The status is sent with the first of them."""

    def __init__(self, renderer: Renderer, send: Send) -> None:
        super().__init__(renderer, send)
        self._is_started = False

    async def write(self, body: bytes) -> None:
        body = self._with_beginning(body)
        if body:
            await self._start()
            await self._send(_body(body, more=True))

    async def end(self, body: bytes) -> None:
        body = self._with_beginning(body) + self._renderer.end()
        await self._start()
        await self._send(_body(body, more=False))

    async def cut(self, body: bytes, error: ServingError) -> None:
        """A format that can express the error ends with it. Otherwise the answer stays incomplete:
        the server closes the connection without the closing chunk, which HTTP clients report.
        """
        if not self._is_started and not body:
            raise error
        await self._start()
        body = self._with_beginning(body)
        last_words = self._renderer.failed(error)
        if last_words is not None:
            await self._send(_body(body + last_words, more=False))
        elif body:
            await self._send(_body(body, more=True))

    async def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            await self._send_head(b"x-accel-buffering", b"no")  # nginx would collect the tokens


class WholeOutput(Output):
    """Holds the bytes and sends them together at the end, with their length."""

    def __init__(self, renderer: Renderer, send: Send) -> None:
        super().__init__(renderer, send)
        self._held = bytearray()

    async def write(self, body: bytes) -> None:
        self._held += self._with_beginning(body)

    async def end(self, body: bytes) -> None:
        self._held += self._with_beginning(body) + self._renderer.end()
        await self._send_head(b"content-length", str(len(self._held)).encode())
        await self._send(_body(bytes(self._held), more=False))

    async def cut(self, body: bytes, error: ServingError) -> None:
        raise error


def output_of(renderer: Renderer, send: Send) -> Output:
    """The output that the renderer's format needs."""
    return StreamOutput(renderer, send) if renderer.is_stream else WholeOutput(renderer, send)


def _body(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
