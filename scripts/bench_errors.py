"""Why there is no figure."""

from __future__ import annotations


class BenchError(Exception):
    """A stream was cut, a count is wrong, or a process failed: there is no figure."""


class Skipped(Exception):
    """This measurement cannot be done here; the message says what it needs."""
