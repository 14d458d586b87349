"""What one request did."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import StrEnum

from scripts.load.bodies.body import Usage
from scripts.load.errors import StreamFailure


class State(StrEnum):
    """How a request ended."""

    OPEN = "open"
    """It was still running when the measurement ended."""
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    """The client closed the connection, as planned."""
    FAILED = "failed"


@dataclass(slots=True)
class Record:
    """One request. Times are readings of time.monotonic, in seconds."""

    stream: int
    """Index of the client that sent the request."""
    asked: int
    """Length of the answer that was asked for, in tokens."""
    begun: float
    """When the request was due: the time until it is connected and sent counts."""
    counts: bool
    """False: it is part of the warm-up."""
    arrivals: array[float] = field(default_factory=lambda: array("d"))
    """When each token was read."""
    chunks: int = 0
    """HTTP chunks of the answer, including the empty last one."""
    state: State = State.OPEN
    ended: float = 0.0
    failure: StreamFailure | None = None
    usage: Usage | None = None
    text: str = ""
    """The answer, if the request asks to keep it."""
    has_retry_after: bool = False
    """The answer has a Retry-After header."""
