"""What the server needs before it serves: made once, and checked, from its settings."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from server.chat import chat_format
from server.chat.system_prompts import SystemPrompts, system_prompts
from server.config.options import Options
from server.config.specs import FolderModels
from server.http.keys import ApiKeys
from server.http.listener import open_listener
from server.observe.start_log import StartLog
from server.terminal.screen import StartScreen, is_wanted
from shared.errors import ConfigurationError
from shared.settings import Settings
from shared.values import ModelCard
from workers.machine.cores import read_machine
from workers.pool.catalog import Catalog, LoadedModels
from workers.pool.child_process import Target
from workers.pool.on_demand import ModelsOnDemand
from workers.prompts.files import clean


@dataclass(frozen=True, slots=True)
class ServerParts:
    """The parts that `server.serving` runs."""

    settings: Settings
    catalog: Catalog
    system: SystemPrompts
    keys: ApiKeys | None
    """None: requests need no key."""
    listener: socket.socket
    start_view: StartScreen | StartLog
    """Shows how the server starts."""


def make_parts(settings: Settings, options: Options, target: Target) -> ServerParts:
    """`target`: the function that worker processes run.

    Raises ConfigurationError and CannotListen; OSError if something cannot be read or made.
    """
    for spec in settings.models:
        _prepare_folder(spec.pool.workers[0].cache.folder)
    if settings.chat.template is not None:
        chat_format(ModelCard(), settings.chat.template)  # an invalid template is reported here
    access = settings.access
    keys = None if access.key_file is None else ApiKeys(access.key_file)
    return ServerParts(
        settings=settings,
        catalog=_catalog_of(settings, options, target),
        system=system_prompts(settings.chat.prompts, settings.chat.system),
        keys=keys,
        listener=open_listener(
            settings.host,
            settings.port,
            needs_loopback=keys is None and options.insecure == "off",
            timeout_s=settings.send_timeout_s,
        ),
        start_view=_start_view(settings, options),
    )


def _catalog_of(settings: Settings, options: Options, target: Target) -> Catalog:
    folder = settings.folder
    if folder is None:
        return LoadedModels(settings.models, target)
    find_models = FolderModels(folder.path, options, read_machine())
    return ModelsOnDemand(find_models, folder.memory_limit, folder.queue, target)


def _start_view(settings: Settings, options: Options) -> StartScreen | StartLog:
    is_on_screen = is_wanted(options.log_level, options.log_format)
    return StartScreen(settings) if is_on_screen else StartLog(settings)


def _prepare_folder(folder: Path | None) -> None:
    """Make the folder of saved prompts. Raises ConfigurationError."""
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        clean(folder)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be used: {error.strerror}") from None
