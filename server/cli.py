"""From the command line to a running server: options to Settings, then serve."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from pathlib import Path

from server.options import read_options
from server.version import VERSION
from shared.errors import ConfigurationError
from shared.logs import configure_logging
from shared.sampling import SamplingParams
from shared.settings import EngineName, ModelSettings, PoolSettings, Settings, WorkerSettings
from workers.cpu_features import cpu_features, cpu_model
from workers.engine import ENGINES, choose_engine
from workers.machine import read_machine
from workers.plan_text import explain
from workers.topology import Plan, make_plan

EXIT_OK = 0
EXIT_CONFIGURATION = 3
EXIT_CANNOT_LISTEN = 4
BACKLOG = 2048

logger = logging.getLogger("tokenflume")


def run(arguments: list[str]) -> int:
    """Do what the command line says; return the exit status (see options.EXIT_STATUS)."""
    options = read_options(arguments, os.environ)
    if options.version:
        print(f"tokenflume {VERSION}")
        return EXIT_OK
    try:
        settings = build_settings(options)
        if options.plan:
            print(settings.plan)
            return EXIT_OK
        configure_logging(settings.log_level)
        listener = listen(settings.host, settings.port)
    except ConfigurationError as error:
        return _fail(EXIT_CONFIGURATION, str(error))
    except OSError as error:
        where = f"{options.host}:{options.port}"
        return _fail(EXIT_CANNOT_LISTEN, f"cannot listen on {where}: {error.strerror or error}")
    describe(settings)
    return _serve(settings, listener)


def build_settings(options: argparse.Namespace) -> Settings:
    """Check what the options mean together. Raises ConfigurationError."""
    engine, path = _engine_and_path(options)
    model = ModelSettings(
        path=path,
        engine=engine,
        model_type=options.model_type,
        context=options.num_ctx_tokens,
        batch=options.batch_size,
        kv_type=options.kv_type,
    )
    machine = read_machine()
    plan = make_plan(
        machine,
        batches=ENGINES[engine].batches,
        threads=options.num_threads,
        workers=options.workers,
    )
    return Settings(
        host=options.host,
        port=options.port,
        pool=PoolSettings(
            workers=_workers(plan, model, options.log_level),
            queue=options.queue,
            load_timeout_s=options.load_timeout,
            progress_timeout_s=options.progress_timeout,
        ),
        sampling=SamplingParams(
            temp=options.temp,
            top_k=options.top_k,
            top_p=options.top_p,
            repeat_penalty=options.repeat_penalty,
            repeat_last_n=options.repeat_last_n,
        ),
        drain_timeout_s=options.drain_timeout,
        plan=explain(machine, plan),
        log_level=options.log_level,
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:  # a name that cannot be one, such as ".."
        raise OSError(f"{host!r:.80} is no host name") from error
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def describe(settings: Settings) -> None:
    """Say at launch what will be done, and on what."""
    model = settings.pool.workers[0].model
    sampling = settings.sampling
    logger.info("model: %s, engine %s", model.path or "none", model.engine)
    logger.info("cpu: %s; %s", cpu_model(), " ".join(cpu_features()) or "no known features")
    logger.info(
        "sampling defaults: temp %g, top_k %d, top_p %g, repeat_penalty %g over %d tokens",
        sampling.temp, sampling.top_k, sampling.top_p,
        sampling.repeat_penalty, sampling.repeat_last_n,
    )  # fmt: skip
    for line in settings.plan.splitlines():
        logger.info("%s", line)


def _serve(settings: Settings, listener: socket.socket) -> int:
    # Imported here: a spawned worker imports this module's package, and needs no HTTP.
    from server.serving import serve_until_stopped

    try:
        serve_until_stopped(settings, listener)
    except ConfigurationError as error:
        return _fail(EXIT_CONFIGURATION, str(error))
    return EXIT_OK


def _engine_and_path(options: argparse.Namespace) -> tuple[EngineName, Path | None]:
    """The echo engine has no model unless one is named; all others get theirs checked."""
    path: Path = options.model.absolute()
    if options.engine == "echo":
        return "echo", path if path.suffix == ".json" else None
    chosen = choose_engine(path, options.model_type)
    return chosen if options.engine == "auto" else options.engine, path


def _workers(plan: Plan, model: ModelSettings, log_level: str) -> tuple[WorkerSettings, ...]:
    return tuple(
        WorkerSettings(index, cpus, model, log_level) for index, cpus in enumerate(plan.workers)
    )


def _fail(status: int, sentence: str) -> int:
    print(f"tokenflume: {sentence}", file=sys.stderr)
    return status
