"""A server for all tests that change nothing in it, and a browser for the tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.browser import chromium
from tests.helpers.running import RunningServer


@pytest.fixture(scope="session")
def echo_server() -> Iterator[RunningServer]:
    """One plain echo server for the session; every prompt and answer has room in its context."""
    with RunningServer("--engine", "echo", "-n", "300000") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Not for the whole session: while it runs, no other event loop can."""
    with chromium() as browser:
        yield browser
