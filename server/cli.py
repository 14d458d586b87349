"""From the command line to a running server: options to Settings, then serve."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import socket
import sys
from pathlib import Path

from server.chat import chat_format
from server.chat.system_prompts import system_prompts
from server.config.options import build_parser, resolve_options
from server.config.output import print_config
from server.config.specs import FolderModels, folder_settings, given_files, make_specs
from server.front import Front
from server.http.keys import ApiKeys
from server.http.listener import listen, watch_clients
from server.terminal.screen import StartScreen, is_wanted
from server.version import VERSION
from shared.errors import ConfigurationError
from shared.logs import configure_logging
from shared.sampling import SamplingParams
from shared.settings import AccessSettings, ChatSettings, ModelSpec, Settings
from shared.values import ModelCard
from workers.entry import run_worker
from workers.machine.cores import read_machine
from workers.machine.cpu_features import cpu_features, cpu_model
from workers.machine.plan_text import explain
from workers.machine.topology import make_plan
from workers.pool.catalog import Catalog, LoadedModels
from workers.pool.child_process import Target
from workers.pool.on_demand import ModelsOnDemand
from workers.prompts.files import clean
from workers.prompts.restore import process_and_save

EXIT_OK = 0
EXIT_CONFIGURATION = 3
EXIT_CANNOT_LISTEN = 4

logger = logging.getLogger("tokenflume")


def run(arguments: list[str], target: Target = run_worker) -> int:
    """Do what the command line says; return the exit status (see options.EXIT_STATUS).

    `target`: what worker processes run.
    """
    if arguments[:1] == ["tune"]:
        from server.tune.command import tune

        return tune(arguments[1:])
    resolved = resolve_options(build_parser(), arguments, os.environ)
    options = resolved.values
    if options.version:
        print(f"tokenflume {VERSION}")
        return EXIT_OK
    if options.print_config:
        print(print_config(resolved))
        return EXIT_OK
    configure_logging(options.log_level, options.log_format)
    try:
        settings = build_settings(options)
        if options.plan:
            print(settings.plan)
            return EXIT_OK
        if options.cache_prompt or options.prompt_file:
            print(cache_prompt(settings, options.cache_prompt, options.prompt_file))
            return EXIT_OK
        for spec in settings.models:
            _prepare_folder(spec.pool.workers[0].cache.folder)
        system = system_prompts(settings.chat.prompts, settings.chat.system)
        if settings.chat.template is not None:
            chat_format(ModelCard(), settings.chat.template)  # a bad one is told before all else
        access = settings.access
        keys = None if access.key_file is None else ApiKeys(access.key_file)
        listener = listen(settings.host, settings.port)
        if keys is None and options.insecure == "off":
            _refuse_beyond_loopback(listener)
        watch_clients(listener, settings.send_timeout_s)
    except ConfigurationError as error:
        return _fail(EXIT_CONFIGURATION, str(error))
    except OSError as error:
        where = f"{options.host}:{options.port}"
        return _fail(EXIT_CANNOT_LISTEN, f"cannot listen on {where}: {error.strerror or error}")
    except KeyboardInterrupt:  # as a long download may be
        return EXIT_OK
    screen = StartScreen(settings) if is_wanted(options.log_level, options.log_format) else None
    if screen is None:
        describe(settings)
    else:
        screen.begin()
    front = Front(settings, catalog_of(settings, options, target), system, keys, screen)
    return _serve(front, listener)


def catalog_of(
    settings: Settings, options: argparse.Namespace, target: Target = run_worker
) -> Catalog:
    """The models that are to be served."""
    if settings.folder is None:
        return LoadedModels(settings.models, target)
    find_models = FolderModels(options, read_machine())
    folder = settings.folder
    return ModelsOnDemand(find_models, folder.memory_limit, folder.queue, target)


def build_settings(options: argparse.Namespace) -> Settings:
    """Check what the options mean together. Raises ConfigurationError."""
    machine, folder = read_machine(), folder_settings(options)
    specs: tuple[ModelSpec, ...] = ()
    if folder is None:
        specs, plan = make_specs(given_files(options), options, machine)
    else:
        threads, workers = options.num_threads, options.workers
        plan = make_plan(machine, batches=True, threads=threads, workers=workers)
    if options.restore_prompt and len(specs) > 1:
        raise ConfigurationError("--restore-prompt is one model's: give one -m")
    return Settings(
        host=options.host,
        port=options.port,
        models=specs,
        sampling=SamplingParams(
            temp=options.temp,
            top_k=options.top_k,
            top_p=options.top_p,
            repeat_penalty=options.repeat_penalty,
            repeat_last_n=options.repeat_last_n,
        ),
        drain_timeout_s=options.drain_timeout,
        send_timeout_s=options.send_timeout,
        plan=explain(machine, plan),
        log_level=options.log_level,
        folder=folder,
        chat=ChatSettings(options.chat_template, options.prompts, options.system),
        access=AccessSettings(
            options.api_key_file and options.api_key_file.absolute(),
            options.allowed_host,
            options.cors_origin,
        ),
        request_timeout_s=options.request_timeout,
        log_prompts=options.log_prompts == "on",
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
    if settings.models[0].pool.workers[0].cache.restore is not None:
        raise ConfigurationError(
            "--cache-prompt makes what --restore-prompt reads: give one of them"
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigurationError(
            f"{path} cannot be written: it is no file in a folder that is there"
        )
    tokens, seconds = process_and_save(settings.models[0].pool.workers[0], text, path)
    return f"{tokens} tokens processed in {seconds:.1f} s; their state is in {path}"


def _refuse_beyond_loopback(listener: socket.socket) -> None:
    """Raises ConfigurationError."""
    address = listener.getsockname()[0]
    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        listener.close()
        raise ConfigurationError(
            f"{address} can be reached by others: give --api-key-file, or --insecure if all of them"
            " may use this server"
        )


def describe(settings: Settings) -> None:
    """Say at launch what will be done, and on what."""
    sampling, folder = settings.sampling, settings.folder
    if folder is not None:
        logger.info(
            "models: those in %s, loaded on their first use, in at most %s MiB",
            folder.path, f"{folder.memory_limit / 2**20:,.0f}",
        )  # fmt: skip
    for spec in settings.models:
        workers = ", ".join(str(worker.index) for worker in spec.pool.workers)
        logger.info(
            "model %s: %s, engine %s, on worker %s",
            spec.name, spec.model.path or "none", spec.model.engine, workers,
        )  # fmt: skip
    logger.info("cpu: %s; %s", cpu_model(), " ".join(cpu_features()) or "no known features")
    logger.info(
        "sampling defaults: temp %g, top_k %d, top_p %g, repeat_penalty %g over %d tokens",
        sampling.temp, sampling.top_k, sampling.top_p,
        sampling.repeat_penalty, sampling.repeat_last_n,
    )  # fmt: skip
    for line in settings.plan.splitlines():
        logger.info("%s", line)


def _serve(front: Front, listener: socket.socket) -> int:
    # Imported here: a spawned worker imports this module's package, and needs no HTTP.
    from server.serving import serve_until_stopped

    try:
        serve_until_stopped(front, listener)
    except ConfigurationError as error:
        return _fail(EXIT_CONFIGURATION, str(error))
    return EXIT_OK


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
