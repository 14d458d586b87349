"""The exit statuses of the program, what each means, and the sentence that comes with a failure."""

from __future__ import annotations

import contextlib
import os
import sys
from enum import IntEnum


class ExitStatus(IntEnum):
    """A status, with its explanation for `--help`."""

    meaning: str

    OK = 0, "stopped as asked"
    FAILED = 1, "the server failed; the log says why"
    USAGE = 2, "a flag, environment variable or line of the file is invalid"
    CONFIGURATION = 3, "the configuration cannot work, or the model cannot be loaded"
    CANNOT_LISTEN = 4, "cannot listen on the address"
    FORCED = 5, "a second signal stopped it at once"
    INTERRUPTED = 130, "interrupted"

    def __new__(cls, value: int, meaning: str) -> ExitStatus:
        status = int.__new__(cls, value)
        status._value_ = value
        status.meaning = meaning
        return status


def fail(status: ExitStatus, error: Exception) -> ExitStatus:
    """Print the error as one sentence to standard error. Returns the status."""
    sentence = sentence_of(error) if isinstance(error, OSError) else str(error)
    with contextlib.suppress(OSError):  # nowhere is left to say it; the status tells
        sys.stderr.write(f"tokenflume: {sentence}\n")
    return status


def sentence_of(error: OSError) -> str:
    """What could not be read or made, and why."""
    reason = error.strerror or str(error)
    if error.filename is None:
        return f"the program cannot start: {reason}"
    return f"{os.fsdecode(error.filename)} cannot be used: {reason}"
