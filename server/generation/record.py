"""What is known of one request, from its arrival to its last byte: for metrics, logs and traces.

The relay fills it; whoever observes requests reads it when they are over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

from server.dialects.base import Task
from server.generation.tasks import Work
from shared.errors import NotReady, ServingError
from shared.histogram import Histogram
from shared.messages import Finished
from shared.values import Usage

Outcome = Literal["finished", "cancelled", "refused", "failed"]
"""Answered to its end; its client left; turned away; it went wrong on our side."""
CLIENT_LEFT = "client_left"


class TraceHeaders(NamedTuple):
    """W3C Trace Context: what the client's own trace says of this request; empty: nothing."""

    parent: str
    state: str


class RequestRecord:
    """Times are in seconds, by time.monotonic."""

    def __init__(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        address: Sequence[str] = scope.get("client") or ("",)
        self.arrived = time.monotonic()
        self.id: str = scope.get("request_id", "")
        self.path: str = scope["path"]
        self.address = address[0]
        self.owner: str | None = scope.get("api_key_owner")
        """Of the key; None: none was needed."""
        self.trace = TraceHeaders(headers.get("traceparent", ""), headers.get("tracestate", ""))
        self.model = ""
        """Its name; empty: the request was not even understood, or named one that is not there."""
        self.error: ServingError | None = None
        self.has_left = False
        """The client closed its connection before the end."""
        self.read: float | None = None
        """When its body was there, and was understood."""
        self.first_token: float | None = None
        self.ended: float | None = None
        self._work: Work | None = None
        self._submitted = 0.0
        self._sent = 0
        self._gaps: Histogram | None = None
        self._last: dict[int, float] = {}  # a task's place to its last tokens' time

    @property
    def client(self) -> str:
        """Who asks: requests of one are served in turn with those of others."""
        return self.owner or self.address

    def submits(self, work: Work, gaps: Histogram) -> None:
        """The work is about to be given to the model's workers. `gaps` gets the seconds between two
        tokens.
        """
        self._submitted = time.monotonic()
        self._work, self._gaps = work, gaps

    @property
    def tasks(self) -> Sequence[Task]:
        """Empty before it is known what its model is to do."""
        return () if self._work is None else self._work.tasks

    def tokens(self, index: int, count: int) -> None:
        """So many tokens of a task leave together: each has its share of the time since the last
        ones. Called for every chunk of every answer.
        """
        now = time.monotonic()
        self._sent += count
        last = self._last.get(index)
        self._last[index] = now
        if self.first_token is None:
            self.first_token = now
        if self._gaps is None:
            return
        if last is not None:
            self._gaps.observe((now - last) / count, count)
        elif count > 1:  # between the first tokens, which come together, there is no time
            self._gaps.observe(0.0, count - 1)

    def end(self) -> None:
        """Nothing more will come."""
        self.ended = time.monotonic()

    @property
    def outcome(self) -> Outcome:
        if self.has_left:
            return "cancelled"
        if self.error is None:
            return "finished"
        is_early = isinstance(self.error, NotReady) and not self.workers
        return "refused" if self.error.status < 500 or is_early else "failed"

    @property
    def reason(self) -> str:
        """Of the outcome, in a word: stop, length, client_left, or an error's code."""
        if self.has_left:
            return CLIENT_LEFT
        if self.error is not None:
            return self.error.code
        return "length" if any(end.reason == "length" for end in self.ends) else "stop"

    @property
    def ends(self) -> list[Finished]:
        """Of the tasks that have come to their end."""
        if self._work is None:
            return []
        return [stream.finished for stream in self._work.streams if stream.finished is not None]

    @property
    def usage(self) -> Usage:
        """Of all tasks. A task that did not come to its end counts with the tokens that were sent
        of it, but not with its prompt's: nobody knows them.
        """
        usages = [end.usage for end in self.ends]
        return Usage(
            sum(usage.prompt_tokens for usage in usages),
            sum(usage.cached_tokens for usage in usages),
            max(self._sent, sum(usage.completion_tokens for usage in usages)),
        )

    @property
    def workers(self) -> list[int]:
        """The indices of those that had a part of it."""
        streams = self._work.streams if self._work is not None else []
        return sorted({stream.worker for stream in streams if stream.worker is not None})

    @property
    def slot(self) -> float | None:
        """When the first of its tasks got one."""
        streams = self._work.streams if self._work is not None else []
        waits = [stream.queued_s for stream in streams if stream.worker is not None]
        return self._submitted + min(waits) if waits else None

    @property
    def queued_s(self) -> float | None:
        """From the time it was read to its first slot: for its model, and in the queue. None: it
        never had one.
        """
        slot = self.slot
        return None if slot is None or self.read is None else slot - self.read

    @property
    def first_token_s(self) -> float | None:
        """From its arrival (TTFT)."""
        return None if self.first_token is None else self.first_token - self.arrived

    @property
    def total_s(self) -> float:
        """From its arrival to its end; until now, if it has none yet."""
        return (time.monotonic() if self.ended is None else self.ended) - self.arrived

    @property
    def tokens_per_s(self) -> float | None:
        """Of all tasks together, from the first token to the end. None: too few for a rate."""
        if self.first_token is None or self.ended is None or self._sent < 2:
            return None
        # The workers' own times where they are known: tokens may have left together.
        decoding = max((end.timings.decode_s for end in self.ends), default=0.0)
        seconds = decoding or self.ended - self.first_token
        return (self._sent - 1) / seconds if seconds > 0 else None


Observer = Callable[[RequestRecord], None]
"""Is told of every request that is over."""
