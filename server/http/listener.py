"""The listening socket: who can reach it, and which clients the kernel gives up."""

from __future__ import annotations

import ipaddress
import socket

from shared.errors import ConfigurationError

BACKLOG = 2048
"""Connections that the kernel accepts before the server does."""
MAX_UNSENT_BYTES = 128 * 1024
"""Unsent bytes of an answer that the kernel buffers; its own limit would be megabytes."""
KEEPALIVE_IDLE_S = 10
"""Idle time after which the kernel probes a connection."""
KEEPALIVE_INTERVAL_S = 2
"""Time between two probes."""


class CannotListen(Exception):
    """The address cannot be listened on; the message says which and why."""


def open_listener(host: str, port: int, *, needs_loopback: bool, timeout_s: float) -> socket.socket:
    """A listening socket that watches its clients. `timeout_s`: see `watch_clients`.

    Raises CannotListen. With `needs_loopback` it raises ConfigurationError for an address that
    other machines can reach.
    """
    listener = listen(host, port)
    try:
        if needs_loopback:
            refuse_beyond_loopback(listener)
        watch_clients(listener, timeout_s)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    except ConfigurationError:
        listener.close()
        raise
    return listener


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotListen."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return _listening(family, address)
    except UnicodeError as error:  # getaddrinfo raises it for a name such as ".."
        raise _cannot_listen(host, port, OSError(f"{host!r:.80} is not a host name")) from error
    except OSError as error:
        raise _cannot_listen(host, port, error) from error


def refuse_beyond_loopback(listener: socket.socket) -> None:
    """Raises ConfigurationError if other machines can reach the address."""
    address = listener.getsockname()[0]
    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise ConfigurationError(
            f"other machines can reach {address}: give --api-key-file, or --insecure if everybody"
            " may use this server"
        )


def watch_clients(listener: socket.socket, timeout_s: float) -> None:
    """Let the kernel close connections to clients that are gone, and buffer little for slow ones.

    A client whose machine or network is gone does not close its connection. Accepted sockets
    inherit these options: probes while nothing is sent, and a timeout for probes and unsent data.
    The timeout is longer than `timeout_s`, so that SendDeadline closes the connection first if the
    client is still there.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    unanswered_ms = round((timeout_s + KEEPALIVE_INTERVAL_S) * 1000)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unanswered_ms)


def url_of(listener: socket.socket) -> str:
    """The URL of the server, such as "http://127.0.0.1:8080"."""
    address, port = listener.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


def _listening(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> CannotListen:
    return CannotListen(f"cannot listen on {host}:{port}: {error.strerror or error}")
