"""Files that SIGHUP reads again, without a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.errors import ConfigurationError

logger = logging.getLogger("tokenflume")


@dataclass(frozen=True, slots=True)
class Reload:
    """A file that can be read again."""

    name: str
    """The content for the log, in the plural, such as "API keys"."""
    read: Callable[[], None]
    """Replaces the old content; or raises ConfigurationError and changes nothing."""


def reload_all(on_reload: Sequence[Reload]) -> list[str]:
    """Read all again. Returns a sentence for each failure, which leaves the old content."""
    failures = []
    for reload in on_reload:
        try:
            reload.read()
        except ConfigurationError as error:
            failures.append(f"{reload.name}: {error}")
            logger.error("SIGHUP: %s: %s; the old ones stay in use", reload.name, error)
        else:
            logger.info("SIGHUP: reloaded %s", reload.name)
    if not on_reload:
        logger.info("SIGHUP: there is nothing to reload")
    return failures
