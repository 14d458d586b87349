"""The server's life: the pool around the HTTP server, signals, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import uvicorn

from server.app import create_app
from server.models import Models
from server.send_deadline import SendDeadline
from server.system_prompts import SystemPrompts
from shared.errors import ConfigurationError
from shared.settings import Settings
from workers.catalog import Catalog

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


def serve_until_stopped(
    settings: Settings, catalog: Catalog, system: SystemPrompts, listener: socket.socket
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises ConfigurationError when no model loads."""
    protocol = partial(SendDeadline, send_timeout_s=settings.send_timeout_s)
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
        models = Models(catalog, settings.sampling, system, settings.chat.template)
        runner.run(_serve(settings, models, config, listener))


async def _serve(
    settings: Settings, models: Models, config: uvicorn.Config, listener: socket.socket
) -> None:
    async with models.catalog as catalog:
        config.app = create_app(models, settings.cors_origins)
        server = HttpServer(config)
        stopping = _stop_on_signals(catalog)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        introducing = asyncio.create_task(models.introduce())
        load_failure = asyncio.create_task(catalog.load_failure())
        address, port = listener.getsockname()[:2]
        logger.info(
            "listening on http://%s:%d", f"[{address}]" if ":" in address else address, port
        )
        try:
            ends: list[asyncio.Future[Any]] = [serving, load_failure, stopping]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            await catalog.drain(0 if load_failure.done() else settings.drain_timeout_s)
        finally:
            introducing.cancel()
            server.should_exit = True
            await serving
            failure = _result_or_cancel(load_failure)
    if failure is not None:
        raise failure


def _stop_on_signals(catalog: Catalog) -> asyncio.Future[None]:
    """Done at the first SIGTERM or SIGINT; a second one ends everything at once."""
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[None] = loop.create_future()

    def on_signal(name: str) -> None:
        if stopping.done():
            catalog.kill_workers()
            os._exit(EXIT_FORCED)
        logger.info("%s: no new requests; running streams go on to their end", name)
        stopping.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    return stopping


def _result_or_cancel(task: asyncio.Task[ConfigurationError]) -> ConfigurationError | None:
    if task.done():
        return task.result()
    task.cancel()
    return None
