"""Tells the service manager the state of the server: loading, ready, reloading, stopping.

    Catalog ─▶ status_of ─▶ Announcer ─▶ Notifier ─▶ the manager's socket

The manager's watchdog is fed only while the event loop of the front runs and the workers make
progress, so the manager restarts a server that is stuck.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence

from server.background import BackgroundTasks
from server.service.notify import Notifier, monotonic_us
from server.service.reload import Reload, reload_all
from workers.machine.cores import counted
from workers.pool.catalog import Catalog
from workers.pool.status import PoolStatus

MIN_INTERVAL_S = 0.5
"""Shortest time between two messages about changes: a busy server changes all the time."""
REPEAT_S = 1.0
"""Time between two requests for more time, and between two tries if the manager is busy."""
EXTENSION_US = 30_000_000
"""Time that the manager is asked to wait, from each message on, while models load or streams
drain."""


class Announcer:
    """Tells the manager about a catalog, whose context need not be entered yet."""

    def __init__(self, notifier: Notifier, catalog: Catalog) -> None:
        self._notifier = notifier
        self._catalog = catalog
        self._was_ready = False
        self._owes_ready = True
        """READY=1 has to be sent: at the start, and after a reload."""
        self._is_stopping = False
        self._why_stopping = ""
        self._reload_failures: list[str] = []
        self._last_status = ""

    def stop(self, why: str = "") -> None:
        """The server stops: after its streams, or at once for the reason `why`."""
        self._is_stopping = True
        self._why_stopping = why
        self._send(STOPPING=1, EXTEND_TIMEOUT_USEC=EXTENSION_US)

    def reload(self, on_reload: Sequence[Reload]) -> None:
        """Reload, and tell the manager when it is done."""
        if self._was_ready and not self._is_stopping:  # otherwise READY=1 would be false
            self._owes_ready = True
            self._notifier.send(RELOADING=1, MONOTONIC_USEC=monotonic_us())
        self._reload_failures = reload_all(on_reload)
        self._tell()

    async def watch(self) -> None:
        """Tell each change, until cancelled."""
        while True:
            told_at = time.monotonic()
            is_settled = self._tell()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if is_settled else REPEAT_S):
                    await self._catalog.until_change()
            await asyncio.sleep(told_at + MIN_INTERVAL_S - time.monotonic())

    async def feed(self, interval_s: float) -> None:
        """Feed the watchdog twice per interval, while the workers make progress."""
        while True:
            if self._makes_progress(interval_s):
                self._notifier.send(WATCHDOG=1)
            await asyncio.sleep(interval_s / 2)

    def _tell(self) -> bool:
        """Send what is new. Returns whether there is nothing more to send until the next change."""
        if self._is_stopping:
            self._send(EXTEND_TIMEOUT_USEC=EXTENSION_US)
            return False
        if self._was_ready or self._catalog.why_not_ready() is None:
            self._was_ready = True
            return self._tell_ready()
        if self._makes_progress(math.inf):
            self._send(EXTEND_TIMEOUT_USEC=EXTENSION_US)
        else:
            self._send()
        return False

    def _tell_ready(self) -> bool:
        if not self._owes_ready:
            return self._send()
        self._owes_ready = not self._send(READY=1)
        return not self._owes_ready

    def _pools(self) -> dict[str, PoolStatus]:
        return {spec.name: pool.status() for spec, pool in self._catalog.loaded()}

    def _makes_progress(self, silence_s: float) -> bool:
        return all(pool.makes_progress(silence_s) for pool in self._pools().values())

    def _send(self, **fields: str | int) -> bool:
        """Send the fields, and the status if it has changed. Returns whether they were sent."""
        status = self._status()
        if status != self._last_status:
            fields["STATUS"] = status
        is_sent = self._notifier.send(**fields)
        if is_sent:
            self._last_status = status
        return is_sent

    def _status(self) -> str:
        pools = self._pools()
        if self._is_stopping:
            return self._why_stopping or f"draining: {load_of(pools.values())}"
        failures = (f"reloading failed: {failure}" for failure in self._reload_failures)
        return "; ".join([status_of(pools), *failures])


def start_announcer(notifier: Notifier, catalog: Catalog, tasks: BackgroundTasks) -> Announcer:
    """Tell the manager about the catalog and feed its watchdog, as long as `tasks` run.

    Both tasks are essential. Without them the watchdog would kill a server that works, and cut its
    streams; so the server drains, ends as failed, and the manager starts it again.
    """
    announcer = Announcer(notifier, catalog)
    if notifier.is_heard:
        tasks.start("announcer", announcer.watch(), is_essential=True)
    if notifier.is_heard and notifier.watchdog_s is not None:
        tasks.start("watchdog feed", announcer.feed(notifier.watchdog_s), is_essential=True)
    return announcer


def status_of(pools: Mapping[str, PoolStatus]) -> str:
    """One line: the load, the models that are loading, the troubles of workers."""
    ready = sum(pool.ready_workers for pool in pools.values())
    total = sum(len(pool.workers) for pool in pools.values())
    parts = []
    if ready or not pools:
        workers = counted(ready, "worker") if ready == total else f"{ready} of {total} workers"
        parts.append(f"{load_of(pools.values())}, {workers}")
    for name, pool in pools.items():
        if not pool.ready_workers and not pool.is_lost:
            what = f"loading {name}" if len(pools) > 1 else "loading"
            parts.append(f"{what} {100 * pool.loaded:.0f} %")
        parts += pool.troubles
    return "; ".join(parts)


def load_of(pools: Iterable[PoolStatus]) -> str:
    """The numbers of running streams and waiting requests."""
    active = waiting = 0
    for pool in pools:
        active, waiting = active + pool.active, waiting + pool.waiting
    return f"{counted(active, 'stream')}, {waiting} waiting"
