"""The parts of the front that are made before it serves."""

from __future__ import annotations

from dataclasses import dataclass

from server.chat.system_prompts import SystemPrompts
from server.http.keys import ApiKeys
from server.terminal.screen import StartScreen
from shared.settings import Settings
from workers.pool.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Front:
    """What `server.serving` runs."""

    settings: Settings
    catalog: Catalog
    system: SystemPrompts
    keys: ApiKeys | None
    """None: no key is needed."""
    screen: StartScreen | None = None
    """What shows how the server starts; None: the log says it."""
