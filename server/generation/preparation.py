"""Threads for what may take long with a request before it reaches the pool.

That is to parse a body of up to 1 MiB and to render a chat template. Threads suffice for our own
code: it gives the GIL up every few milliseconds, so the event loop goes on. A stranger's template
may hold the GIL for ever, so a thread has it rendered by server.chat.isolated_templates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

THREADS = 4
"""Requests that are prepared at the same time; others wait their turn, first come first served."""
SMALL_BODY = 8 * 1024
"""Bytes of a body that is parsed at once: it takes at most some milliseconds."""

P = ParamSpec("P")
T = TypeVar("T")


class Preparation:
    """The threads. A caller that is cancelled does not wait; what it had begun ends by itself."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="prepare")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns or raises, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def parsed(self, parse: Callable[[bytes], T], body: bytes) -> T:
        """`parse(body)`, in a thread if the body is large."""
        return parse(body) if len(body) <= SMALL_BODY else await self.run(parse, body)
