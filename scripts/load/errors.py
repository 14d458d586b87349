"""Why there is no figure."""

from __future__ import annotations


class BenchError(Exception):
    """A stream was cut, a count is wrong, or a process failed: there is no figure."""


class Skipped(Exception):
    """This measurement cannot be done here; the message says what it needs."""


class StreamFailure(BenchError):
    """A stream that did not end as it should, and the kind of it: see below."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


CONNECTION = "no connection"
"""It could not be made, or was closed before an answer."""
CUT = "cut"
"""The answer ended without its end mark."""
ERROR_EVENT = "error event"
"""The server said that it failed, after it had begun to answer."""
TIMEOUT = "timeout"
"""Nothing came for too long."""
WRONG = "wrong content"
"""What came is not what the format says, or not in order, or not as much as was asked for."""
OTHER_FORMAT = "other format"
"""The answer is not HTTP, or of another type: this server speaks something else."""


def status_kind(status: int) -> str:
    """The server refused the request."""
    return f"HTTP {status}"
