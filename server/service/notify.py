"""What a service manager is told: sd_notify's protocol, a datagram of NAME=VALUE lines.

The names, and what they mean, are those of sd_notify(3) and sd_watchdog_enabled(3).
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
    """`address`: of the manager's socket; a first "@" is an abstract one's; empty: there is none.

    `watchdog_s`: the manager ends the service when it was not fed for so many seconds; None: it
    does not watch.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @property
    def is_heard(self) -> bool:
        """There is a manager that wants to be told."""
        return bool(self._address)

    def send(self, **fields: str | int) -> bool:
        """Tell the manager. Whether it took it: it may be busy, and nothing here waits for it."""
        if not self._address or not fields:
            return True
        lines = "\n".join(f"{name}={_one_line(value)}" for name, value in fields.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(lines.encode(), self._address)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    logger.warning("the service manager cannot be told: %s", error.strerror)
                return False
        return True


def notifier_of(environment: Mapping[str, str]) -> Notifier:
    """The manager that the environment names, if it does."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address and (address[0] not in "/@" or len(address) < 2):
        logger.warning("NOTIFY_SOCKET is no address of a local socket: %.100r", address)
        address = ""
    return Notifier(address, _watchdog_s(environment))


def take_notifier(environment: MutableMapping[str, str]) -> Notifier:
    """As notifier_of; then the names are removed: no child is to speak for this process."""
    notifier = notifier_of(environment)
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        environment.pop(name, None)
    return notifier


def monotonic_us() -> int:
    """The clock that RELOADING=1 is to be stamped with, in microseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """None too if another process is meant."""
    given = environment.get("WATCHDOG_USEC", "")
    if not given or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not (given.isascii() and given.isdecimal() and 0 < int(given) < 2**63):
        logger.warning("WATCHDOG_USEC is no number of microseconds: %.100r", given)
        return None
    return int(given) / 1e6


def _one_line(value: str | int) -> str:
    return " ".join(str(value).split())
