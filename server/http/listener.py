"""The listening socket, and what the kernel does about clients that are gone or do not read."""

from __future__ import annotations

import socket

BACKLOG = 2048
MOST_UNSENT = 128 * 1024
"""Bytes that the kernel keeps of an answer before they are sent; else it would be megabytes."""
KEEPALIVE_IDLE_S = 10
KEEPALIVE_INTERVAL_S = 2


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:  # a name that cannot be one, such as ".."
        raise OSError(f"{host!r:.80} is no host name") from error
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def watch_clients(listener: socket.socket, timeout_s: float) -> None:
    """Let the kernel end connections whose other side does not answer, and keep little for one that
    does not read.

    A client whose machine or network is gone closes nothing. Accepted sockets inherit what is set
    here: probes where there is nothing to send, and a limit for what is sent and for probes. It
    is so much longer than `timeout_s` that a client that could read is SendDeadline's first.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MOST_UNSENT)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    unanswered_ms = round((timeout_s + KEEPALIVE_INTERVAL_S) * 1000)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unanswered_ms)
