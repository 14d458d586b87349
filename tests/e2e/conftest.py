"""A browser for the tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.browser import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Not for the whole session: while it runs, no other event loop can."""
    with chromium() as browser:
        yield browser
