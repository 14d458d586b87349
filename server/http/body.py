"""A request's body, up to a limit."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Receive

from server.http.errors import BodyTooLarge

MAX_BODY = 1024 * 1024
"""Bytes of a request's body."""


class ClientLeft(Exception):
    """The client closed its connection: nobody waits for an answer."""


async def read_body(headers: Headers, receive: Receive) -> bytes:
    """The request's whole body, of at most MAX_BODY bytes. Raises BodyTooLarge, ClientLeft."""
    announced = headers.get("content-length", "")
    if announced.isdigit() and len(announced) < 20 and int(announced) > MAX_BODY:
        raise BodyTooLarge(f"the body has {announced} bytes; at most {MAX_BODY} are accepted")
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            raise BodyTooLarge(f"the body has over {MAX_BODY} bytes, the most that are accepted")
    return bytes(body)


async def discard_body(receive: Receive) -> None:
    """Take what is left of a body. Returns when nothing is, or the client has left."""
    while (await receive()).get("more_body", False):
        pass
