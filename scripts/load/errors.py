"""Errors of measurements, and the kinds of failures of a stream."""

from __future__ import annotations


class MeasurementError(Exception):
    """A stream was cut, a count is wrong, or a process failed: there is no result."""


class StreamFailure(MeasurementError):
    """A stream did not end as it should. `kind` is one of the constants below."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


CONNECTION = "no connection"
"""The connection could not be made, or was closed before the answer began."""
CUT = "cut"
"""The answer ended without its end mark."""
ERROR_EVENT = "error event"
"""The server reported an error after the answer had begun."""
TIMEOUT = "timeout"
"""Nothing was received for too long."""
WRONG = "wrong content"
"""The answer breaks its format, is out of order, or has another length than was asked for."""
OTHER_FORMAT = "other format"
"""The answer is not HTTP, or has another media type: the server speaks another protocol."""


def status_kind(status: int) -> str:
    """The kind of a request that the server refused with this HTTP status."""
    return f"HTTP {status}"
