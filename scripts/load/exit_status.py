"""Exit statuses of the load test and the soak test."""

from __future__ import annotations

FAILED = 1
"""A request failed, or the result is bad."""
BAD_FILE = 2
"""A file cannot be read or written. Bad options have the same status."""
NO_SERVER = 3
"""No server answers, or it speaks another protocol."""


def of_signal(number: int) -> int:
    """The status of a command that a signal ended."""
    return 128 + number
