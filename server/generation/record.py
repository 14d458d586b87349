"""What is known about one request, from its arrival to its last byte, for metrics, logs and traces.

The relay fills the record; observers read it when the request has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

from server.generation.submission import Submission
from server.generation.task import Task
from shared.errors import NotReady, ServingError
from shared.histogram import Histogram
from shared.messages import Finished
from shared.values import Usage
from workers.pool.stream import RequestStream

Outcome = Literal["finished", "cancelled", "refused", "failed"]
"""Answered completely; the client left; not accepted; an error on the server's side."""
CLIENT_LEFT = "client_left"


class TraceHeaders(NamedTuple):
    """W3C Trace Context that the client sent; empty strings: none."""

    parent: str
    state: str


class RequestRecord:
    """All times are in seconds of time.monotonic."""

    def __init__(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        address: Sequence[str] = scope.get("client") or ("",)
        self.arrived = time.monotonic()
        self.id: str = scope.get("request_id", "")
        self.path: str = scope["path"]
        self.address = address[0]
        self.owner: str | None = scope.get("api_key_owner")
        """Name of the API key; None: no key was needed."""
        self.trace = TraceHeaders(headers.get("traceparent", ""), headers.get("tracestate", ""))
        self.model = ""
        """Name of the model; empty: the body was not valid or named an unknown model."""
        self.error: ServingError | None = None
        self.has_left = False
        """The client closed its connection before the end."""
        self.read: float | None = None
        """When the body had been read and parsed."""
        self.first_token: float | None = None
        self.ended: float | None = None
        self._submission: Submission | None = None
        self._submitted = 0.0
        self._sent = 0
        self._gaps: Histogram | None = None
        self._last: dict[int, float] = {}  # task index to the time of its last tokens

    @property
    def client(self) -> str:
        """Who makes the request; the pool serves the requests of different clients in turn."""
        return self.owner or self.address

    def submits(self, submission: Submission, gaps: Histogram) -> None:
        """The submission is about to begin. `gaps` receives its inter-token latencies (seconds)."""
        self._submitted = time.monotonic()
        self._submission, self._gaps = submission, gaps

    @property
    def tasks(self) -> Sequence[Task]:
        """The request's tasks; empty before they are known."""
        return () if self._submission is None else self._submission.tasks

    def tokens(self, index: int, count: int) -> None:
        """Record `count` tokens of a task that are sent together: each has an equal share of the
        time since the ones before. Called for every chunk of every answer.
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
        elif count > 1:  # the first tokens came together, with no time between them
            self._gaps.observe(0.0, count - 1)

    def end(self) -> None:
        """The request has ended."""
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
        """The reason of the outcome: "stop", "length", "client_left", or an error's code."""
        if self.has_left:
            return CLIENT_LEFT
        if self.error is not None:
            return self.error.code
        return "length" if any(end.reason == "length" for end in self.ends) else "stop"

    @property
    def ends(self) -> list[Finished]:
        """The last events of the tasks that were completed."""
        return [stream.finished for stream in self._streams if stream.finished is not None]

    @property
    def usage(self) -> Usage:
        """Token counts of all tasks together. A task that was not completed counts with the tokens
        that were sent, without those of its prompt, which are not known.
        """
        usages = [end.usage for end in self.ends]
        return Usage(
            sum(usage.prompt_tokens for usage in usages),
            sum(usage.cached_tokens for usage in usages),
            max(self._sent, sum(usage.completion_tokens for usage in usages)),
        )

    @property
    def workers(self) -> list[int]:
        """Indices of the workers that ran its tasks, in ascending order."""
        return sorted({stream.worker for stream in self._streams if stream.worker is not None})

    @property
    def slot(self) -> float | None:
        """When the first of its tasks got a slot."""
        waits = [stream.queued_s for stream in self._streams if stream.worker is not None]
        return self._submitted + min(waits) if waits else None

    @property
    def queued_s(self) -> float | None:
        """Seconds from when it was read to its first slot: its model's loading, the rendering of
        its chat template and the wait in the queue. None: it got no slot.
        """
        slot = self.slot
        return None if slot is None or self.read is None else slot - self.read

    @property
    def first_token_s(self) -> float | None:
        """Seconds from its arrival to its first token (TTFT)."""
        return None if self.first_token is None else self.first_token - self.arrived

    @property
    def total_s(self) -> float:
        """Seconds from its arrival to its end, or until now if it has not ended."""
        return (time.monotonic() if self.ended is None else self.ended) - self.arrived

    @property
    def tokens_per_s(self) -> float | None:
        """Throughput of all tasks together from the first token to the end. None: fewer than two
        tokens were sent."""
        if self.first_token is None or self.ended is None or self._sent < 2:
            return None
        # The workers' own times where they are known: tokens may have been sent together.
        decoding = max((end.timings.decode_s for end in self.ends), default=0.0)
        seconds = decoding or self.ended - self.first_token
        return (self._sent - 1) / seconds if seconds > 0 else None

    @property
    def _streams(self) -> Sequence[RequestStream]:
        return () if self._submission is None else self._submission.streams


Observer = Callable[[RequestRecord], None]
"""Called with the record of every request that has ended."""
