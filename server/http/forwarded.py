"""Who a request is from, behind a reverse proxy: ASGI middleware before everything that asks.

X-Forwarded-For and X-Forwarded-Proto are text that anybody can send. They are read only if the
connection comes from a proxy that --trusted-proxy names. Each proxy appends the address that it
saw, so the list is read from its end: the client is the last address that is no trusted proxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.settings import Network

MAX_HOPS = 32
"""Addresses of X-Forwarded-For that are read, from its end."""
MAX_ADDRESS = 64
"""Characters of one of them, with a port."""
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Forwarded:
    """Sets `client` and `scheme` of the scope as the trusted proxies say."""

    def __init__(self, app: ASGIApp, trusted: Sequence[Network]) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._trusted and scope.get("client"):
            self._follow(scope)
        await self._app(scope, receive, send)

    def _follow(self, scope: Scope) -> None:
        peer = address_of(scope["client"][0])
        if peer is None or not self._is_trusted(peer):
            return
        headers = Headers(scope=scope)
        client = self._client(peer, ",".join(headers.getlist("x-forwarded-for")))
        if client != peer:
            scope["client"] = (str(client), 0)
        scheme = headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower()
        if scheme in ("http", "https"):
            scope["scheme"] = scheme

    def _client(self, peer: Address, hops: str) -> Address:
        """The last address that is no trusted proxy; the farthest proxy if there is none."""
        client = peer
        for hop in reversed(hops.rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            found = address_of(hop)
            if found is None:
                return client
            client = found
            if not self._is_trusted(client):
                return client
        return client

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def address_of(text: str) -> Address | None:
    """The address in 192.0.2.1, 192.0.2.1:80, 2001:db8::1 or [2001:db8::1]:80; None: none.

    An IPv4 address within IPv6 (::ffff:192.0.2.1) is the IPv4 address.
    """
    text = text.strip(' \t"')
    if len(text) > MAX_ADDRESS:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
