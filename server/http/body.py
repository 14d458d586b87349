"""Reads a request's body, up to a limit."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Receive

from server.http.errors import BodyTooLarge

MAX_BODY_BYTES = 1024 * 1024


class ClientLeft(Exception):
    """The client closed its connection, so nobody waits for the answer."""


async def read_body(headers: Headers, receive: Receive) -> bytes:
    """The complete body, of at most MAX_BODY_BYTES. Raises BodyTooLarge, ClientLeft."""
    announced = headers.get("content-length", "")
    if announced.isdigit() and len(announced) < 20 and int(announced) > MAX_BODY_BYTES:
        raise BodyTooLarge(f"the body has {announced} bytes; at most {MAX_BODY_BYTES} are accepted")
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"the body has more than {MAX_BODY_BYTES} bytes, which is the limit")
    return bytes(body)


async def discard_body(receive: Receive) -> None:
    """Read the rest of a body. Returns at its end, or when the client has left."""
    while (await receive()).get("more_body", False):
        pass
