"""A file that keeps the digest of a large model, so that only its first worker reads all of it.

The file holds one line: a name of the model's files and of their states, and the digest. If a file
of the model was edited or replaced, the name differs and the digest is computed again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from workers.model_files.content_digest import FileState, content_digest, file_states

FILE_NAME = "model.digest"
LEAST_BYTES = 256 * 2**20
"""The digest of smaller models is computed in less than a second, and is not kept."""
SETTLED_NS = 2 * 10**9
"""A file that changed less than this before may change again without another time of change."""
_LINE = re.compile(r"([0-9a-f]{64}) ([0-9a-f]{64})\n")

logger = logging.getLogger("tokenflume.worker")


def known_digest(paths: Sequence[Path], folder: Path | None, least_bytes: int = LEAST_BYTES) -> str:
    """The digest of the files' content: as the folder keeps it, or computed, and then kept.

    `folder`: None keeps nothing. A digest that cannot be kept is logged. Raises OSError.
    """
    states = file_states(paths)
    if folder is None or sum(state.size for state in states) < least_bytes:
        return content_digest(paths)
    name = hashlib.sha256(repr(states).encode()).hexdigest()
    kept = folder / FILE_NAME
    found = _read(kept, name)
    if found is not None:
        return found
    digest = content_digest(paths)
    if _are_settled(states) and file_states(paths) == states:
        _keep(kept, f"{name} {digest}\n")
    return digest


def _are_settled(states: Sequence[FileState]) -> bool:
    return max(state.changed_ns for state in states) < time.time_ns() - SETTLED_NS


def _read(kept: Path, name: str) -> str | None:
    """The digest that is kept under the name; None if there is none."""
    try:
        line = _LINE.fullmatch(kept.read_text("ascii", errors="replace"))
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            logger.warning("%s cannot be read: %s", kept, error.strerror)
        return None
    return line[2] if line is not None and line[1] == name else None


def _keep(kept: Path, line: str) -> None:
    """Write the file, completely or not at all: several workers may do so."""
    temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        temporary.write_text(line, "ascii")
        temporary.replace(kept)
    except OSError as error:
        logger.warning("%s cannot be written: %s", kept, error.strerror)
    finally:
        temporary.unlink(missing_ok=True)
