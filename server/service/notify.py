"""The protocol of sd_notify: a datagram of NAME=VALUE lines to the service manager.

sd_notify(3) and sd_watchdog_enabled(3) define the names.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

logger = logging.getLogger("tokenflume")


class Notifier:
    """Sends to the service manager.

    `address`: the manager's socket, an abstract one if it begins with "@"; empty: no manager.
    `watchdog_s`: the manager kills the service if its watchdog was not fed for this time, in
    seconds; None: there is no watchdog.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @property
    def is_heard(self) -> bool:
        """Whether there is a manager."""
        return bool(self._address)

    def send(self, **fields: str | int) -> bool:
        """Send the fields without waiting. Returns whether they were sent: a busy manager's socket
        may be full."""
        if not self._address or not fields:
            return True
        lines = "\n".join(f"{name}={_one_line(value)}" for name, value in fields.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(lines.encode(), self._address)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    logger.warning("cannot notify the service manager: %s", error.strerror)
                return False
        return True


def notifier_of(environment: Mapping[str, str]) -> Notifier:
    """The notifier for the manager that the environment names."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address and (address[0] not in "/@" or len(address) < 2):
        logger.warning("NOTIFY_SOCKET is not the address of a local socket: %.100r", address)
        address = ""
    return Notifier(address, _watchdog_s(environment))


def take_notifier(environment: MutableMapping[str, str]) -> Notifier:
    """`notifier_of`, which also removes the variables, so that no child process notifies."""
    notifier = notifier_of(environment)
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        environment.pop(name, None)
    return notifier


def monotonic_us() -> int:
    """The clock for the time of RELOADING=1, in microseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """The interval in seconds; None without a watchdog, or with one for another process."""
    given = environment.get("WATCHDOG_USEC", "")
    if not given or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not (given.isascii() and given.isdecimal() and 0 < int(given) < 2**63):
        logger.warning("WATCHDOG_USEC is not a number of microseconds: %.100r", given)
        return None
    return int(given) / 1e6


def _one_line(value: str | int) -> str:
    return " ".join(str(value).split())
