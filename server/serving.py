"""The server's life: the pool around the HTTP server, signals, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import uvicorn

from server.app import create_app
from server.chat.system_prompts import system_prompts
from server.front import Front
from server.generation.models import Models
from server.generation.record import Observer
from server.http.protocol import StrictProtocol
from server.observe.request_log import RequestLog
from server.observe.tracing import traced
from server.service.announce import Announcer, announced
from server.service.notify import Notifier, take_notifier
from server.service.reload import Reload
from shared.errors import ConfigurationError
from workers.pool.catalog import Catalog

EXIT_FORCED = 5
CLOSE_GRACE_S = 2
"""Seconds for connections to end once no stream is left; idle and half-sent ones are closed."""

logger = logging.getLogger("tokenflume")


class HttpServer(uvicorn.Server):
    """uvicorn, without its signal handlers: ours drain the pool first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class CutStreamFilter(logging.Filter):
    """Drops uvicorn's complaint about a stream that is cut on purpose; the relay has logged why."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg != "ASGI callable returned without completing response."


def serve_until_stopped(front: Front, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises ConfigurationError when no model loads."""
    notifier, settings = take_notifier(os.environ), front.settings
    protocol = partial(
        StrictProtocol,
        request_s=settings.request_timeout_s,
        send_timeout_s=settings.send_timeout_s,
    )
    config = uvicorn.Config(
        app="",
        loop="uvloop",
        http=cast("type[asyncio.Protocol]", protocol),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_GRACE_S,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(CutStreamFilter())
    loop_factory = config.get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve(front, config, listener, notifier))


async def _serve(
    front: Front, config: uvicorn.Config, listener: socket.socket, notifier: Notifier
) -> None:
    settings = front.settings
    models = Models(front.catalog, settings.sampling, front.system, settings.chat.template)
    async with contextlib.AsyncExitStack() as stack:
        tracing = stack.enter_context(traced(os.environ))
        announcer = await stack.enter_async_context(announced(notifier, models.catalog))
        catalog = await stack.enter_async_context(models.catalog)
        observers: list[Observer] = [RequestLog(prompts=settings.log_prompts), *tracing]
        config.app = create_app(models, settings.access, front.keys, observers)
        server = HttpServer(config)
        stopping = _stop_on_signals(catalog, announcer, _reloads(front, models))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        introducing = asyncio.create_task(_introduce(front, models, url_of(listener)))
        load_failure = asyncio.create_task(catalog.load_failure())
        try:
            ends: list[asyncio.Future[Any]] = [serving, load_failure, stopping]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            announcer.stop(str(load_failure.result()) if load_failure.done() else "")
            await catalog.drain(0 if load_failure.done() else settings.drain_timeout_s)
        finally:
            introducing.cancel()
            server.should_exit = True
            await serving
            failure = _result_or_cancel(load_failure)
    if failure is not None:
        raise failure


async def _introduce(front: Front, models: Models, url: str) -> None:
    """Say where the server is, and what it has loaded as soon as it has."""
    if front.screen is not None:
        await front.screen.follow(models, url)
        return
    logger.info("listening on %s", url)
    await models.introduce()


def url_of(listener: socket.socket) -> str:
    """Where its clients find it."""
    address, port = listener.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


def _reloads(front: Front, models: Models) -> list[Reload]:
    """What SIGHUP reads again."""
    chat, keys = front.settings.chat, front.keys
    reloads = []
    if chat.prompts is not None:
        reloads.append(
            Reload(
                f"the system prompts of {chat.prompts}",
                lambda: models.prompt_with(system_prompts(chat.prompts, chat.system)),
            )
        )
    if keys is not None:
        reloads.append(Reload(f"the keys of {front.settings.access.key_file}", keys.reload))
    return reloads


def _stop_on_signals(
    catalog: Catalog, announcer: Announcer, on_reload: Sequence[Reload]
) -> asyncio.Future[None]:
    """Done at the first SIGTERM or SIGINT; a second one ends everything at once.

    SIGHUP reads again what can be. When it says that our terminal was closed it is as SIGTERM.
    """
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[None] = loop.create_future()
    had_terminal = sys.stderr.isatty()

    def on_signal(name: str) -> None:
        if stopping.done():
            catalog.kill_workers()
            os._exit(EXIT_FORCED)
        logger.info("%s: no new requests; running streams go on to their end", name)
        stopping.set_result(None)

    def on_hang_up() -> None:
        if had_terminal and not sys.stderr.isatty():
            if not stopping.done():  # the kernel says it, and the shell again
                on_signal("SIGHUP")
        else:
            announcer.reload(on_reload)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    loop.add_signal_handler(signal.SIGHUP, on_hang_up)
    return stopping


def _result_or_cancel(task: asyncio.Task[ConfigurationError]) -> ConfigurationError | None:
    if task.done():
        return task.result()
    task.cancel()
    return None
