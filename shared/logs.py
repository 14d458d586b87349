"""Logging for both sides: to standard error, a line an event."""

from __future__ import annotations

import logging
import sys

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def configure_logging(level: str) -> None:
    """Set up the root logger. `level` is a name of the logging module, such as "info"."""
    logging.basicConfig(level=level.upper(), format=FORMAT, stream=sys.stderr, force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
