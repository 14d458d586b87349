"""A service manager's end of the notify protocol, for tests."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WITHIN_S = 30.0

Fields = dict[str, str]


class NotifySocket:
    """Receives what a service tells. `address` is what NOTIFY_SOCKET says."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[Fields] = []
        """All messages that were received."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    def close(self) -> None:
        self._socket.close()

    def receive(self, within_s: float = WITHIN_S) -> Fields | None:
        """The next message; None when there is none in time."""
        self._socket.settimeout(within_s)
        try:
            datagram = self._socket.recv(65_536).decode()
        except TimeoutError:
            return None
        message = dict(line.split("=", 1) for line in datagram.split("\n"))
        self.heard.append(message)
        return message

    def until(self, condition: Callable[[Fields], bool], within_s: float = WITHIN_S) -> Fields:
        """The next message that meets the condition; fails without one."""
        message = self.find(condition, within_s)
        assert message is not None, f"it was never told; it was: {self.heard[-20:]}"
        return message

    def find(self, condition: Callable[[Fields], bool], within_s: float) -> Fields | None:
        """As `until`; None without one."""
        deadline = time.monotonic() + within_s
        while (left := deadline - time.monotonic()) > 0:
            message = self.receive(left)
            if message is not None and condition(message):
                return message
        return None

    def until_status(self, text: str) -> Fields:
        return self.until(lambda message: text in message.get("STATUS", ""))

    def until_ready(self) -> Fields:
        return self.until(lambda message: "READY" in message)

    def is_fed_within(self, seconds: float) -> bool:
        return self.find(lambda message: "WATCHDOG" in message, seconds) is not None

    def until_not_fed(self, for_s: float) -> None:
        """Returns when WATCHDOG=1 has not come for so long."""
        deadline = time.monotonic() + WITHIN_S
        while self.is_fed_within(for_s):
            assert time.monotonic() < deadline, "it is fed for ever"


@contextmanager
def notify_socket(address: str) -> Iterator[NotifySocket]:
    made = NotifySocket(address)
    try:
        yield made
    finally:
        made.close()
