"""What is read again on SIGHUP, without a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.errors import ConfigurationError

logger = logging.getLogger("tokenflume")


@dataclass(frozen=True, slots=True)
class Reload:
    """Something that can be read again."""

    name: str
    """In the plural, for the log, such as "API keys"."""
    read: Callable[[], None]
    """Takes the new in the place of the old, or raises ConfigurationError and changes nothing."""


def reload_all(on_reload: Sequence[Reload]) -> list[str]:
    """Read all again. Returns what went wrong, a sentence each; that stays as it was."""
    failures = []
    for reload in on_reload:
        try:
            reload.read()
        except ConfigurationError as error:
            failures.append(f"{reload.name}: {error}")
            logger.error("SIGHUP: %s: %s; they stay as they were", reload.name, error)
        else:
            logger.info("SIGHUP: read %s again", reload.name)
    if not on_reload:
        logger.info("SIGHUP: nothing of what is served can be read again")
    return failures
