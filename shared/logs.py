"""Logging of the front and the workers: to standard error, as text or as JSON.

If standard error is the journal, lines have no time, which the journal adds, and begin with their
priority, as sd-daemon(3) describes. As JSON an event is one object on one line.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from shared.json_text import on_one_line

LogFormat = Literal["text", "json"]
FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
JOURNAL_FORMAT = "%(name)s: %(message)s"
PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}
"""Syslog's numbers; lower levels are 7, for debugging."""


class JournalFormatter(logging.Formatter):
    """Writes the priority before each line of an event, also before those of a traceback."""

    def __init__(self) -> None:
        super().__init__(JOURNAL_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{priority(record.levelno)}>"
        return "\n".join(prefix + line for line in super().format(record).split("\n"))


class JsonFormatter(logging.Formatter):
    """Writes each event as one JSON object. A record may have `fields`, a mapping that is added."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return on_one_line(json.dumps(fields, ensure_ascii=False, default=str))


class JournalJsonFormatter(JsonFormatter):
    """Writes the event's priority before the object."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{priority(record.levelno)}>{super().format(record)}"


def priority(level: int) -> int:
    """The syslog priority of a level of the logging module."""
    return next((number for least, number in PRIORITIES.items() if level >= least), 7)


def configure_logging(level: str, log_format: LogFormat = "text") -> None:
    """Set up the root logger. `level` is a name of the logging module, such as "info"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(log_format, is_journal=stderr_is_journal(os.environ)))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # The libraries' logs of downloads contain URLs whose signatures are as good as a password.
    for name in ("asyncio", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _formatter(log_format: LogFormat, *, is_journal: bool) -> logging.Formatter:
    if log_format == "json":
        return JournalJsonFormatter() if is_journal else JsonFormatter()
    return JournalFormatter() if is_journal else logging.Formatter(FORMAT)


def stderr_is_journal(environment: Mapping[str, str]) -> bool:
    """Whether standard error is the stream that systemd names in JOURNAL_STREAM.

    The device and inode are compared, because processes whose standard error goes elsewhere inherit
    the variable too.
    """
    try:
        status = os.fstat(2)
    except OSError:  # it is closed
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
