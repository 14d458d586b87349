"""The life of the server: workers start, HTTP is served, a signal ends it, streams drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import uvicorn

from server.app import create_app
from server.background import BackgroundTaskFailed, BackgroundTasks
from server.chat.isolated_templates import TemplateProcesses
from server.chat.system_prompts import system_prompts
from server.exit_status import ExitStatus
from server.generation.models import Models
from server.generation.record import Observer
from server.http.listener import url_of
from server.http.protocol import StrictProtocol
from server.observe.request_log import RequestLog
from server.observe.tracing import traced
from server.parts import ServerParts
from server.service.announce import Announcer, start_announcer
from server.service.notify import Notifier, take_notifier
from server.service.reload import Reload
from shared.errors import ConfigurationError
from shared.settings import Settings
from workers.pool.catalog import Catalog

SWITCH_INTERVAL_S = 0.0005
CLOSE_GRACE_S = 2
"""Seconds for connections to close after the last stream; then uvicorn closes the rest."""

logger = logging.getLogger("tokenflume")


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: ours drain the pools first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class CutStreamFilter(logging.Filter):
    """Drops uvicorn's error about a stream that was cut on purpose; the relay has logged why."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg != "ASGI callable returned without completing response."


def serve_until_stopped(parts: ServerParts) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Raises ConfigurationError if a model cannot be loaded at the start, BackgroundTaskFailed if a
    task fails without which the server cannot go on.
    """
    notifier = take_notifier(os.environ)
    config = _http_config(parts.settings)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(CutStreamFilter())
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(parts, config, notifier))


def _http_config(settings: Settings) -> uvicorn.Config:
    protocol = partial(
        StrictProtocol,
        request_s=settings.request_timeout_s,
        send_timeout_s=settings.send_timeout_s,
    )
    return uvicorn.Config(
        app="",
        loop="uvloop",
        http=cast("type[asyncio.Protocol]", protocol),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # uvicorn believes all of loopback; see server.http.forwarded
        timeout_graceful_shutdown=CLOSE_GRACE_S,
    )


async def _serve(parts: ServerParts, config: uvicorn.Config, notifier: Notifier) -> None:
    settings = parts.settings
    async with contextlib.AsyncExitStack() as stack:
        templates = stack.enter_context(TemplateProcesses())
        models = Models(
            parts.catalog,
            settings.sampling,
            parts.system,
            settings.chat.template,
            templates.compiled,
        )
        tracing = stack.enter_context(traced(os.environ))
        tasks = await stack.enter_async_context(BackgroundTasks())
        announcer = start_announcer(notifier, models.catalog, tasks)
        catalog = await stack.enter_async_context(models.catalog)
        observers: list[Observer] = [RequestLog(prompts=settings.log_prompts), *tracing]
        config.app = create_app(models, settings.access, parts.keys, observers)
        stopping = _stop_on_signals(catalog, announcer, _reloads(parts, models))
        start = parts.start_view.follow(models, url_of(parts.listener))
        showing = tasks.start("start messages", start)
        server = HttpServer(config)
        _shorten_pauses()
        serving = asyncio.create_task(server.serve(sockets=[parts.listener]))
        try:
            failure = await _until_end(serving, stopping, catalog, tasks)
            announcer.stop("" if failure is None else str(failure))
            is_load_failure = isinstance(failure, ConfigurationError)
            await catalog.drain(0 if is_load_failure else settings.drain_timeout_s)
        finally:
            showing.cancel()
            server.should_exit = True
            await serving
    if failure is not None:
        raise failure


def _shorten_pauses() -> None:
    """Keep the event loop's pauses short.

    The garbage collector does not look again at what exists now: a full collection took 30 ms. A
    thread that prepares a request gives the GIL up within SWITCH_INTERVAL_S, which the loop waits
    for at each callback.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL_S)


async def _until_end(
    serving: asyncio.Task[None],
    stopping: asyncio.Future[None],
    catalog: Catalog,
    tasks: BackgroundTasks,
) -> ConfigurationError | BackgroundTaskFailed | None:
    """Return the failure that ends the server; None if it is asked to stop."""
    load_failure = asyncio.create_task(catalog.load_failure())
    task_failure = asyncio.create_task(tasks.failure())
    try:
        ends = (serving, stopping, load_failure, task_failure)
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if load_failure.done():
            return load_failure.result()
        return task_failure.result() if task_failure.done() else None
    finally:
        load_failure.cancel()
        task_failure.cancel()


def _reloads(parts: ServerParts, models: Models) -> list[Reload]:
    """What SIGHUP reads again."""
    chat, keys = parts.settings.chat, parts.keys
    reloads = []
    if chat.prompts is not None:
        reloads.append(
            Reload(
                f"the system prompts of {chat.prompts}",
                lambda: models.prompt_with(system_prompts(chat.prompts, chat.system)),
            )
        )
    if keys is not None:
        reloads.append(Reload(f"the keys of {parts.settings.access.key_file}", keys.reload))
    return reloads


def _stop_on_signals(
    catalog: Catalog, announcer: Announcer, reloads: Sequence[Reload]
) -> asyncio.Future[None]:
    """Done at the first SIGTERM or SIGINT; a second one ends the process at once.

    SIGHUP reloads. If it comes because our terminal was closed, it acts like SIGTERM.
    """
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[None] = loop.create_future()
    had_terminal = sys.stderr.isatty()

    def on_stop(name: str) -> None:
        if stopping.done():
            catalog.kill_workers()
            os._exit(ExitStatus.FORCED)
        logger.info("%s: no new requests are accepted; running streams go on to their end", name)
        stopping.set_result(None)

    def on_hang_up() -> None:
        if had_terminal and not sys.stderr.isatty():
            if not stopping.done():  # SIGHUP may come twice: from the kernel and from the shell
                on_stop("SIGHUP")
        else:
            announcer.reload(reloads)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop, number.name)
    loop.add_signal_handler(signal.SIGHUP, on_hang_up)
    return stopping
