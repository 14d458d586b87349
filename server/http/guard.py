"""The outermost check of every request: its host, its origin and its API key.

    Host ─▶ Origin ─▶ key ─▶ the application

Every response gets the headers SECURITY.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.errors import ForeignHost, ForeignOrigin, Unauthorized
from server.http.keys import ApiKeys
from shared.errors import ServingError

OPEN_PATHS = ("/", "/health")
"""Paths that need no key: load balancers check the health, and the page must load before it can
ask for the key. The page contains only what the sources contain."""
OPEN_PREFIX = "/ui/"
SECURITY = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Guard:
    """ASGI middleware that refuses requests.

    `hosts`: accepted host names, besides localhost and IP addresses; "*": all. `origins`: origins
    whose pages may send requests; "*": all. `keys`: None: no key is needed. `refuse` makes the
    response to a refused request.

    A foreign page can make a browser send requests to a server in the browser's network: under a
    name that resolves to the server's address (DNS rebinding), which the Host header shows, or
    from another origin, which the Origin header shows.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str],
        origins: Collection[str],
        keys: ApiKeys | None,
        refuse: Callable[[Scope, ServingError], Response],
    ) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._origins = origins
        self._keys = keys
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
        except ServingError as error:
            response = self._refuse(scope, error)
            await response(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host_name(host)):
            raise ForeignHost(f"this server is not {host!r:.100}; --allowed-host adds names")
        origin = headers.get("origin")
        if origin is not None and not self._may_ask(origin, host):
            raise ForeignOrigin(
                f"pages of {origin!r:.100} are not allowed; --cors-origin allows an origin"
            )
        path, is_preflight = scope["path"], scope["method"] == "OPTIONS" and origin is not None
        if self._keys and not is_preflight and not is_open(path):
            owner = self._keys.owner(key_in(headers))
            if owner is None:
                raise Unauthorized("a valid API key is missing: send Authorization: Bearer KEY")
            scope["api_key_owner"] = owner

    def _is_ours(self, name: str) -> bool:
        return "*" in self._hosts or name in self._hosts or name == "localhost" or is_address(name)

    def _may_ask(self, origin: str, host: str) -> bool:
        is_own = origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())
        return is_own or "*" in self._origins or origin in self._origins


def is_open(path: str) -> bool:
    """Whether the path needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIX)


def key_in(headers: Headers) -> str:
    """The API key of a request; empty: it has none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def host_name(host: str) -> str:
    """The name in a Host header, without the port, in lower case."""
    if host.startswith("["):
        name, is_closed, _ = host[1:].partition("]")
        return name.lower() if is_closed else ""
    return host.partition(":")[0].lower().rstrip(".")


def is_address(name: str) -> bool:
    """Whether the name is an IP address, which needs no DNS."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
