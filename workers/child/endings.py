"""The last message of a request that failed, or that was cancelled before it ran."""

from __future__ import annotations

import logging

from shared.errors import ServingError
from shared.messages import Failed, Finished
from shared.values import Timings, Usage

UNEXPECTED = "an unexpected error occurred; the server's log has the details"

logger = logging.getLogger("tokenflume.worker")


def failed(request_id: int, error: Exception) -> Failed:
    """Return the message for an error that belongs to one request.

    The client sees the message of a ServingError. Any other error is a defect: it is logged with
    its traceback, and the client sees `internal_error`. A MemoryError is raised again: it is the
    whole worker that is out of memory, and only its end gives memory back.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, ServingError):
        return Failed(request_id, error.code, error.message)
    logger.error("request %d failed unexpectedly: %r", request_id, error, exc_info=error)
    return Failed(request_id, ServingError.code, UNEXPECTED)


def cancelled(request_id: int) -> Finished:
    """Return the message for a request that was cancelled before any of it was processed."""
    return Finished(request_id, "cancelled", Usage(0, 0, 0), Timings(0.0, 0.0))
