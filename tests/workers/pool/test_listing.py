"""The listing of a folder of models: it survives what happens to the folder, and blocks nobody."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from shared.errors import ConfigurationError
from shared.settings import ModelSpec
from tests.helpers.support import pool_settings, run
from workers.pool import listing as listing_module
from workers.pool.change import Change
from workers.pool.listing import ModelListing


class Folder:
    """Finds the models `names`, or raises `error`. A scan waits for `may_end`."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.error: Exception | None = None
        self.scans = 0
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self) -> list[ModelSpec]:
        self.scans += 1
        self.may_end.wait()
        if self.error is not None:
            raise self.error
        return [ModelSpec(name, pool_settings()) for name in self.names]


def with_listing(folder: Folder, story: Callable[[ModelListing], Awaitable[None]]) -> None:
    async def go() -> None:
        listing = ModelListing(folder, Change())
        await listing.load()
        await story(listing)

    run(go())


@pytest.mark.parametrize("error", [ConfigurationError("gone"), OSError("gone"), ValueError("gone")])
def test_a_folder_that_becomes_unreadable_keeps_its_listing_and_is_logged_once(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """It used to be a 500 of /ready and of every list. A bug (ValueError) has its traceback."""
    folder = Folder("a", "b")

    async def story(listing: ModelListing) -> None:
        folder.error = error
        for _ in range(3):
            await listing.refresh(0)
        assert list(listing.specs) == ["a", "b"]
        assert not listing.is_readable
        assert caplog.text.count("the models' folder cannot be read") == 1
        assert ("Traceback" in caplog.text) == isinstance(error, ValueError)
        folder.error, folder.names = None, ["c"]
        await listing.refresh(0)
        assert list(listing.specs) == ["c"]
        assert listing.is_readable

    with caplog.at_level("INFO"):
        with_listing(folder, story)
    assert "the models' folder can be read again" in caplog.text


def test_a_folder_that_is_unreadable_at_start_is_an_error() -> None:
    folder = Folder()
    folder.error = ConfigurationError("no such folder")
    with pytest.raises(ConfigurationError, match="no such folder"):
        run(ModelListing(folder, Change()).load())


def test_a_young_listing_is_not_made_again_unless_it_must_be_newer() -> None:
    folder = Folder("a")

    async def story(listing: ModelListing) -> None:
        await listing.refresh()
        assert folder.scans == 1
        await listing.refresh(0)
        assert folder.scans == 2

    with_listing(folder, story)


def test_those_who_ask_during_a_scan_share_the_next_one() -> None:
    """The running scan may have passed the file that they look for."""
    folder = Folder("a")

    async def story(listing: ModelListing) -> None:
        folder.may_end.clear()
        first = asyncio.create_task(listing.refresh(0))
        while folder.scans < 2:
            await asyncio.sleep(0.001)
        later = [asyncio.create_task(listing.refresh(0)) for _ in range(5)]
        await asyncio.sleep(0.01)
        folder.names.append("b")
        folder.may_end.set()
        await asyncio.gather(first, *later)
        assert folder.scans == 3
        assert list(listing.specs) == ["a", "b"]

    with_listing(folder, story)


def test_a_slow_scan_does_not_hold_up_the_loop_and_is_not_waited_for_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """/ready and /metrics used to scan on the front's event loop."""
    monkeypatch.setattr(listing_module, "SCAN_TIMEOUT_S", 0.2)
    folder = Folder("a")

    async def story(listing: ModelListing) -> None:
        folder.may_end.clear()
        started = time.monotonic()
        refreshing = asyncio.create_task(listing.refresh(0))
        turns = 0
        while not refreshing.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 5
        assert time.monotonic() - started < 5
        assert list(listing.specs) == ["a"]
        assert not listing.is_readable
        folder.may_end.set()
        await listing.refresh(0)
        assert listing.is_readable

    with_listing(folder, story)
    assert "reading it takes longer than 0.2 s" in caplog.text


def test_only_a_listing_that_differs_is_a_change() -> None:
    async def go() -> None:
        folder, change = Folder("a"), Change()
        listing = ModelListing(folder, change)
        await listing.load()
        waiting = asyncio.create_task(change.wait())
        await asyncio.sleep(0)
        await listing.refresh(0)
        assert not waiting.done()
        folder.names.append("b")
        await listing.refresh(0)
        await waiting

    run(go())
