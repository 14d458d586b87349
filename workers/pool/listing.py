"""The models of a folder, as the last scan found them. Scans run in a thread, one at a time."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence

from shared.errors import ConfigurationError
from shared.settings import ModelSpec
from workers.pool.change import Change

MAX_AGE_S = 2.0
"""A listing this old is good enough, unless a request names a model that is not in it."""
SCAN_TIMEOUT_S = 5.0
"""Longest wait for a scan, in seconds: a disk or a network file system may hang."""

logger = logging.getLogger("tokenflume.pool")


class ModelListing:
    """`find_models` scans the folder. `change` is notified when it found others than before."""

    def __init__(self, find_models: Callable[[], Sequence[ModelSpec]], change: Change) -> None:
        self._find_models = find_models
        self._change = change
        self._specs: dict[str, ModelSpec] = {}
        self._scan: asyncio.Task[None] | None = None
        self._scanned_at = -math.inf
        """When the last scan began, in seconds of time.monotonic. The loop's time is too coarse."""
        self._failure = ""

    @property
    def specs(self) -> Mapping[str, ModelSpec]:
        """The models that are known, by name."""
        return self._specs

    @property
    def is_readable(self) -> bool:
        """The last scan succeeded. Otherwise `specs` are from the last one that did."""
        return not self._failure

    async def load(self) -> None:
        """The first scan. Raises ConfigurationError."""
        self._scanned_at = time.monotonic()
        self._take(await asyncio.to_thread(self._find_models))

    async def refresh(self, max_age_s: float = MAX_AGE_S) -> None:
        """Scan, unless the last scan began less than `max_age_s` seconds ago.

        Raises nothing: if the folder cannot be read, or in time, the listing stays as it is.
        """
        now = time.monotonic()
        while self._scanned_at < now - max_age_s:
            if self._scan is None:
                self._scan = asyncio.create_task(self._rescan(), name="scan of the models' folder")
            left_s = max(0.0, now + SCAN_TIMEOUT_S - time.monotonic())
            _, unfinished = await asyncio.wait([self._scan], timeout=left_s)
            if unfinished:
                self._fail(f"reading it takes longer than {SCAN_TIMEOUT_S:g} s")
                return

    async def _rescan(self) -> None:
        began_at = time.monotonic()
        try:
            specs = await asyncio.to_thread(self._find_models)
        except (ConfigurationError, OSError) as error:
            self._fail(str(error))
        except Exception as error:
            self._fail(repr(error), error)
        else:
            if self._failure:
                logger.info("the models' folder can be read again")
            self._failure = ""
            self._take(specs)
        finally:
            self._scanned_at = began_at
            self._scan = None

    def _take(self, specs: Sequence[ModelSpec]) -> None:
        before, self._specs = self._specs, {spec.name: spec for spec in specs}
        if self._specs != before:
            self._change.notify_all()

    def _fail(self, why: str, error: Exception | None = None) -> None:
        """Keep the listing. The same failure is logged once, until a scan succeeds."""
        if why != self._failure:
            logger.error(
                "the models' folder cannot be read, and the models known before stay listed: %s",
                why,
                exc_info=error,
            )
        self._failure = why
