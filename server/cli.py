"""From the command line to a running server: options to Settings, then serve."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from pathlib import Path

from server.hub import resolve_model
from server.options import read_options
from server.version import VERSION
from shared.errors import ConfigurationError
from shared.logs import configure_logging
from shared.sampling import SamplingParams
from shared.settings import (
    CacheSettings,
    EngineName,
    ModelSettings,
    PoolSettings,
    Settings,
    WorkerSettings,
)
from workers.cpu_features import cpu_features, cpu_model
from workers.engine import ENGINES, INSTALL_LLAMA_CPP, choose_engine, has_llama_cpp
from workers.machine import node_of_cpus, read_machine
from workers.memory import available_memory
from workers.plan_text import explain
from workers.prompt_files import clean
from workers.save_prompt import process_and_save
from workers.topology import make_plan

EXIT_OK = 0
EXIT_CONFIGURATION = 3
EXIT_CANNOT_LISTEN = 4
BACKLOG = 2048
CACHE_LIMIT = 2**30
"""Bytes of saved prompts, where nobody says."""

logger = logging.getLogger("tokenflume")


def run(arguments: list[str]) -> int:
    """Do what the command line says; return the exit status (see options.EXIT_STATUS)."""
    options = read_options(arguments, os.environ)
    if options.version:
        print(f"tokenflume {VERSION}")
        return EXIT_OK
    configure_logging(options.log_level)
    try:
        settings = build_settings(options)
        if options.plan:
            print(settings.plan)
            return EXIT_OK
        if options.cache_prompt or options.prompt_file:
            print(cache_prompt(settings, options.cache_prompt, options.prompt_file))
            return EXIT_OK
        _prepare_folder(settings.pool.workers[0].cache.folder)
        listener = listen(settings.host, settings.port)
    except ConfigurationError as error:
        return _fail(EXIT_CONFIGURATION, str(error))
    except OSError as error:
        where = f"{options.host}:{options.port}"
        return _fail(EXIT_CANNOT_LISTEN, f"cannot listen on {where}: {error.strerror or error}")
    except KeyboardInterrupt:  # as a long download may be
        return EXIT_OK
    describe(settings)
    return _serve(settings, listener)


def build_settings(options: argparse.Namespace) -> Settings:
    """Check what the options mean together. Raises ConfigurationError."""
    engine, path = _engine_and_path(options)
    machine = read_machine()
    plan = make_plan(
        machine,
        batches=ENGINES[engine].batches,
        threads=options.num_threads,
        workers=options.workers,
    )
    workers = len(plan.workers)
    model = ModelSettings(
        path=path,
        engine=engine,
        model_type=options.model_type,
        context=options.num_ctx_tokens,
        batch=options.batch_size,
        kv_type=options.kv_type,
        slots=options.slots,
        kv_memory=None if engine == "echo" else _kv_memory(path, workers),
        mlock=options.mlock == "on",
        repack=workers == 1 if options.repack == "auto" else options.repack == "on",
    )
    cache = _cache_settings(options, model, workers)
    return Settings(
        host=options.host,
        port=options.port,
        pool=PoolSettings(
            workers=tuple(
                WorkerSettings(
                    index=index,
                    cpus=cpus,
                    model=model,
                    log_level=options.log_level,
                    max_stall_s=options.max_stall / 1000,
                    node=node_of_cpus(machine, cpus),
                    cache=cache,
                )
                for index, cpus in enumerate(plan.workers)
            ),
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


def cache_prompt(settings: Settings, path: Path | None, text_file: Path | None) -> str:
    """Process a text, write its state; return what was done, in words. ConfigurationError."""
    if path is None or text_file is None:
        raise ConfigurationError("--cache-prompt and --prompt-file go together")
    try:
        text = text_file.read_bytes().decode()
    except OSError as error:
        raise ConfigurationError(f"{text_file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{text_file} is no text in UTF-8") from None
    if "\0" in text:
        raise ConfigurationError(f"{text_file} has a NUL, which no prompt may")
    if settings.pool.workers[0].cache.restore is not None:
        raise ConfigurationError(
            "--cache-prompt makes what --restore-prompt reads: give one of them"
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigurationError(
            f"{path} cannot be written: it is no file in a folder that is there"
        )
    tokens, seconds = process_and_save(settings.pool.workers[0], text, path)
    return f"{tokens} tokens processed in {seconds:.1f} s; their state is in {path}"


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
    if options.engine == "echo":
        return "echo", options.model.absolute() if options.model.suffix == ".json" else None
    if options.engine == "llama_cpp" and not has_llama_cpp():
        raise ConfigurationError(f"llama.cpp is not installed: {INSTALL_LLAMA_CPP} installs it")
    path = resolve_model(str(options.model)).absolute()
    chosen = choose_engine(path, options.model_type)
    return chosen if options.engine == "auto" else options.engine, path


def _kv_memory(path: Path | None, workers: int) -> int | None:
    """A worker's share for keys and values: half of what the weights leave, the rest stays free."""
    available = available_memory()
    if path is None or available is None:
        return None
    return max(0, available - path.stat().st_size) // 2 // workers


def _cache_settings(
    options: argparse.Namespace, model: ModelSettings, workers: int
) -> CacheSettings:
    """Where saved prompts go; the workers share the memory."""
    memory = disk = options.cache_limit
    if memory is None:
        memory = disk = CACHE_LIMIT
        if model.kv_memory is not None:
            memory = min(memory, model.kv_memory * workers // 4)
    folder, restore = options.cache_dir, options.restore_prompt
    return CacheSettings(
        memory=memory // workers,
        folder=folder and folder.absolute(),
        disk=disk,
        restore=restore and restore.absolute(),
    )


def _prepare_folder(folder: Path | None) -> None:
    """Make the folder of saved prompts. Raises ConfigurationError."""
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        clean(folder)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be used: {error.strerror}") from None


def _fail(status: int, sentence: str) -> int:
    print(f"tokenflume: {sentence}", file=sys.stderr)
    return status
