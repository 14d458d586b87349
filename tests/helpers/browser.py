"""The page in a real browser. As a program: print the browser that the tests use.

Whatever a page complains of is a failure: errors in its console, exceptions, violations of its
content security policy.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_MS = 15_000
"""Long enough for anything here on a slow machine; a test that needs it has failed."""
REFUSED = "Failed to load resource: the server responded with a status of"
"""The browser's own note of an HTTP error; tests of errors ask for these."""
AWAY = "Failed to load resource: net::ERR_"
WATCH_POLICY = """
    addEventListener("securitypolicyviolation", (event) =>
        console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
"""


def find_chromium() -> str | None:
    """The path of a Chromium: $CHROMIUM, or one that is installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A running headless browser."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT_MS)
    path = find_chromium()
    assert path, "no Chromium: scripts/test installs it, or set CHROMIUM to the path of one"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, url: str, **context: Any) -> Iterator[Any]:
    """A page of a new profile. Fails in the end if the page complained of anything."""
    complaints: list[str] = []

    def on_console(message: Any) -> None:
        is_expected = message.text.startswith((REFUSED, AWAY))
        if message.type in ("error", "warning") and not is_expected:
            complaints.append(message.text)

    def on_response(response: Any) -> None:
        if "/ui/" in response.url and not response.ok and response.status != 304:
            complaints.append(f"{response.status} {response.url}")

    profile = browser.new_context(base_url=url, **context)
    profile.set_default_timeout(WAIT_MS)
    page = profile.new_page()
    page.on("console", on_console)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("response", on_response)
    page.add_init_script(WATCH_POLICY)
    yield page
    profile.close()
    assert not complaints, complaints


def offer_models(page: Any, **models: bool) -> None:
    """Let GET /v1/models list these models; true: with a chat template."""
    data = [
        {"id": name, "object": "model", "created": 0, "owned_by": "tokenflume", "chat": chat}
        for name, chat in models.items()
    ]
    answer = json.dumps({"object": "list", "data": data})
    page.route("**/v1/models", lambda route: route.fulfill(json=json.loads(answer)))


if __name__ == "__main__":
    found = find_chromium()
    if not found:
        sys.exit(1)
    sys.stdout.write(f"{found}\n")
