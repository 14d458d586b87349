"""Two network namespaces with a wire between them, whose client can vanish. Needs root.

A namespace is a thread's: sockets and processes that it makes there stay there.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

CLONE_NEWNET = 0x40000000  # linux/sched.h
SERVER, CLIENT = "192.0.2.1", "192.0.2.2"
"""Addresses that are for documentation, and nobody's."""
LIBC = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def current() -> int:
    """A descriptor of the thread's namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Within, this thread is there."""
    before = current()
    try:
        check(LIBC.setns(namespace, CLONE_NEWNET))
        yield
    finally:
        check(LIBC.setns(before, CLONE_NEWNET))
        os.close(before)


def new() -> int:
    """A descriptor of a new namespace. Raises OSError."""
    before = current()
    try:
        check(LIBC.unshare(CLONE_NEWNET))
        return current()
    finally:
        check(LIBC.setns(before, CLONE_NEWNET))
        os.close(before)


@dataclass(frozen=True, slots=True)
class Wire:
    """`server` has the address SERVER, `client` CLIENT."""

    server: int
    client: int

    def vanish(self) -> None:
        """Take the client's address away, as if its machine were gone: what is sent there is lost,
        and nobody is told."""
        with inside(self.client):
            command("ip address flush dev wire")


@contextmanager
def wire() -> Iterator[Wire]:
    with ExitStack() as stack:
        ends = []
        for _ in range(2):
            ends.append(new())
            stack.callback(os.close, ends[-1])
        server, client = ends
        with inside(server):
            peer = f"/proc/{os.getpid()}/fd/{client}"
            command(f"ip link add wire type veth peer name wire netns {peer}")
        for namespace, address in ((server, SERVER), (client, CLIENT)):
            with inside(namespace):
                command("ip link set lo up")
                command(f"ip address add {address}/24 dev wire")
                command("ip link set wire up")
        yield Wire(server, client)


def command(words: str) -> None:
    subprocess.run(words.split(), check=True, capture_output=True)


def why_not() -> str | None:
    """Why there can be no wire here; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with wire() as made:
            made.vanish()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces with a wire between them here: {error}"
    return None
