"""Standard input, output and error: open from the beginning, and written when the program ends.

This module is imported before all others of ours and imports none of the front.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from server.exit_status import ExitStatus, fail


def open_standard_streams() -> None:
    """Open closed ones of the descriptors 0 to 2 on /dev/null, and make Python's streams of them.

    Otherwise the next file or socket that is opened gets such a number, and what is printed for
    people goes there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(number, True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or _writer(1)
    sys.stderr = sys.stderr or _writer(2)


def _writer(number: int) -> TextIO:
    return open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def restart_in_utf8() -> None:
    """Start the program again in Python's UTF-8 mode, unless names and streams are UTF-8 already.

    Under a C locale, or with PYTHONUTF8=0, a name beyond ASCII could not be told from bytes. Worker
    processes inherit the mode.
    """
    encodings = {sys.getfilesystemencoding(), sys.stdout.encoding, sys.stderr.encoding}
    environment = {**os.environ, "PYTHONUTF8": "1"}
    environment.pop("PYTHONIOENCODING", None)
    if {name.lower() for name in encodings} != {"utf-8"} and environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606


def written(status: int) -> int:
    """Write what is still buffered for standard output. Returns the status to end with.

    If that fails although the program has succeeded, one sentence says why; nothing is said if the
    reader has left, as `head` does, because it has all that it wanted.
    """
    error = output_error()
    if error is None:
        return status
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # Python writes the buffer once more when it ends
    os.close(null)
    return status if status != ExitStatus.OK else output_failed(error)


def output_failed(error: OSError) -> ExitStatus:
    """Say why standard output cannot be written, unless its reader has left. Returns the status."""
    if isinstance(error, BrokenPipeError):
        return ExitStatus.OK
    sentence = f"standard output cannot be written: {error.strerror}"
    return fail(ExitStatus.FAILED, RuntimeError(sentence))


def output_error() -> OSError | None:
    """Why standard output cannot be written; None if it can."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None
