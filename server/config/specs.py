"""From options to the models to serve: files, workers and their cores, memory."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from server.config.file import MODEL_NAME
from server.config.options import BUNDLED_MODEL, Options
from server.hub import resolve_model
from shared.errors import ConfigurationError
from shared.settings import (
    CacheSettings,
    EngineName,
    FolderSettings,
    ModelSettings,
    ModelSpec,
    PoolSettings,
    RestartPolicy,
    WorkerSettings,
)
from workers.engines.choice import INSTALL_LLAMA_CPP, choose_engine, has_llama_cpp
from workers.engines.memory_plan import plan_memory, weight_bytes
from workers.engines.table import ENGINES
from workers.machine.cores import Machine, node_of_cpus
from workers.machine.memory import available_memory
from workers.machine.topology import Plan, make_plan, share_machine
from workers.model_files.completeness import check_complete
from workers.model_files.folder import ModelFile as FoundModel
from workers.model_files.folder import list_model_files, model_name, unprintable_names

CACHE_LIMIT_BYTES = 2**30
"""Default of --cache-limit."""
KV_CACHE_SHARE = 0.5
"""Share of the memory left by the weights that the KV caches may take; the rest stays free."""
SAVED_SHARE = 0.25
"""Saved prompts may by default take this share of the KV caches' memory."""
NAMED_FILE = re.compile(rf"({MODEL_NAME.pattern})=(.+)", re.DOTALL)
"""NAME=FILE. A file with such a name is written with its folder: ./like=this."""

FOLDER_SLOTS = 4
"""Default slots of each worker of a model in --models-dir. Slots take memory, which the models
there share."""
FOLDER_MEMORY_SHARE = 0.9
"""Default of --memory-limit: this share of the memory that is free at start."""

logger = logging.getLogger("tokenflume")


@dataclass(frozen=True, slots=True)
class GivenModel:
    """A model to serve, before its workers are planned."""

    name: str
    path: Path | None
    """None: the echo engine without a file of options."""
    engine: EngineName

    @property
    def size_bytes(self) -> int:
        """Size of the weights; 0 if there are none."""
        return weight_bytes(self.engine, self.path)


def given_files(options: Options) -> list[GivenModel]:
    """The models of -m, or the bundled one. Raises ConfigurationError."""
    texts: Sequence[str] = options.model
    if not texts:
        is_echo = options.engine == "echo"
        return [GivenModel("echo", None, "echo") if is_echo else _file("", BUNDLED_MODEL, options)]
    files = [_given_file(text, options) for text in texts]
    names = [file.name for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(
            f"two models have the name {twice[0]}: give each its own with -m NAME=FILE"
        )
    return files


def make_specs(
    files: Sequence[GivenModel], options: Options, machine: Machine
) -> tuple[tuple[ModelSpec, ...], Plan]:
    """The models, each on its share of the cores, and the plan. Raises ConfigurationError."""
    parts = share_machine(machine, len(files), options.num_threads)
    plans = [
        make_plan(part, batches=ENGINES[file.engine].batches, threads=n, workers=options.workers)
        for file, (part, n) in zip(files, parts, strict=True)
    ]
    whole = Plan(tuple(cpus for plan in plans for cpus in plan.workers))
    workers = len(whole.workers)
    kv_bytes = _kv_bytes(sum(file.size_bytes for file in files), workers)
    maker = SpecMaker(
        options, machine, workers, kv_bytes, slots=options.slots, shares_folder=len(files) > 1
    )
    indices = itertools.count()
    return tuple(map(maker.spec, files, plans, itertools.repeat(indices))), whole


class SpecMaker:
    """Makes the settings of models from the options.

    `workers`: number of workers of all models that are loaded at a time. `kv_bytes`: memory for
    the KV cache of each worker; None: no limit. `slots`: slots of each worker; None: as many as
    that memory allows. `shares_folder`: each model has its own folder in --cache-dir.
    """

    def __init__(
        self,
        options: Options,
        machine: Machine,
        workers: int,
        kv_bytes: int | None,
        *,
        shares_folder: bool,
        slots: int | None,
    ) -> None:
        self._options = options
        self._machine = machine
        self._workers = workers
        self._kv_bytes = kv_bytes
        self._shares_folder = shares_folder
        self._slots = slots

    def spec(self, file: GivenModel, plan: Plan, indices: Iterator[int]) -> ModelSpec:
        """The model's workers, as planned, numbered by `indices`."""
        model, cache = self._model(file, len(plan.workers)), self._cache(file)
        workers = tuple(
            WorkerSettings(
                index=next(indices),
                cpus=cpus,
                model=model,
                log_level=self._options.log_level,
                log_format=self._options.log_format,
                max_stall_s=self._options.max_stall / 1000,
                node=node_of_cpus(self._machine, cpus),
                cache=cache,
            )
            for cpus in plan.workers
        )
        pool = PoolSettings(
            workers=workers,
            queue=self._options.queue,
            queue_tokens=self._options.queue_tokens,
            load_timeout_s=self._options.load_timeout,
            progress_timeout_s=self._options.progress_timeout,
            restart=RestartPolicy(
                longest_wait_s=self._options.restart_wait, max_deaths=self._options.max_deaths
            ),
        )
        return ModelSpec(file.name, pool)

    def _model(self, file: GivenModel, workers: int) -> ModelSettings:
        options = self._options
        return ModelSettings(
            path=file.path,
            engine=file.engine,
            model_type=options.model_type,
            context=options.num_ctx_tokens,
            batch=options.batch_size,
            kv_type=options.kv_type,
            slots=self._slots,
            kv_memory=None if file.engine == "echo" else self._kv_bytes,
            mlock=options.mlock == "on",
            repack=workers == 1 if options.repack == "auto" else options.repack == "on",
        )

    def _cache(self, file: GivenModel) -> CacheSettings:
        """Where saved prompts are kept. All workers share the memory."""
        options = self._options
        memory = disk = options.cache_limit
        if memory is None or disk is None:
            memory = disk = CACHE_LIMIT_BYTES
            if self._kv_bytes is not None and file.engine != "echo":
                memory = min(memory, int(self._kv_bytes * self._workers * SAVED_SHARE))
        folder = options.cache_dir and options.cache_dir.absolute()
        if folder is not None and self._shares_folder:
            folder /= file.name
        return CacheSettings(
            memory=memory // self._workers,
            folder=folder,
            disk=disk,
            restore=options.restore_prompt and options.restore_prompt.absolute(),
        )


class FolderModels:
    """Lists the models of --models-dir, which it reads again at each call."""

    def __init__(self, folder: Path, options: Options, machine: Machine) -> None:
        self._folder = folder
        self._options = options
        self._machine = machine
        self._specs: dict[FoundModel, ModelSpec | None] = {}
        self._unnamed: tuple[Path, ...] = ()

    def __call__(self) -> list[ModelSpec]:
        """A model for each file that an engine can load, ordered by name."""
        found = list_model_files(self._folder)
        self._report_unnamed()
        self._specs = {file: self._known_or_made(file) for file in found}
        return [spec for spec in self._specs.values() if spec is not None]

    def _report_unnamed(self) -> None:
        """Log the files whose names cannot be shown, once each."""
        before, self._unnamed = self._unnamed, unprintable_names(self._folder)
        for path in self._unnamed:
            if path not in before:
                shown = ascii(os.fsencode(path).decode(errors="backslashreplace"))
                logger.warning(
                    "the model %s is not served: its name has control characters or is not UTF-8",
                    shown,
                )

    def _known_or_made(self, file: FoundModel) -> ModelSpec | None:
        return self._specs[file] if file in self._specs else self._make(file)

    def _make(self, file: FoundModel) -> ModelSpec | None:
        options = self._options
        try:
            model = _file(file.name, file.path, options)
            if model.engine != "echo":
                check_complete(file.paths)
            batches = ENGINES[model.engine].batches
            plan = make_plan(
                self._machine,
                batches=batches,
                threads=options.num_threads,
                workers=options.workers,
            )
            workers = len(plan.workers)
            slots = options.slots or (FOLDER_SLOTS if batches else 1)
            maker = SpecMaker(
                options, self._machine, workers, None, slots=slots, shares_folder=True
            )
            spec = maker.spec(model, plan, itertools.count())
            return replace(spec, memory=plan_memory(spec.model, workers).total_bytes)
        except ConfigurationError as error:
            logger.warning("the model %s is not served: %s", file.name, error)
            return None
        except OSError as error:
            logger.warning("the model %s is not served: %s", file.name, error.strerror)
            return None


def folder_settings(options: Options) -> FolderSettings | None:
    """The folder of --models-dir; None without it. Raises ConfigurationError."""
    if options.models_dir is None:
        if options.memory_limit is not None:
            raise ConfigurationError("--memory-limit needs --models-dir")
        return None
    excluded = {
        "--model": options.model,
        "--restore-prompt": options.restore_prompt,
        "--cache-prompt": options.cache_prompt,
    }
    for flag, value in excluded.items():
        if value:
            raise ConfigurationError(f"--models-dir and {flag} exclude each other")
    limit = options.memory_limit
    if limit is None:
        available = available_memory()
        limit = 2**63 if available is None else int(available * FOLDER_MEMORY_SHARE)
    return FolderSettings(options.models_dir.absolute(), limit, options.queue)


def _given_file(text: str, options: Options) -> GivenModel:
    named = NAMED_FILE.fullmatch(text)
    name, file = named.groups() if named else ("", text)
    path = Path(file) if options.engine == "echo" else resolve_model(file)
    return _file(name, path.absolute(), options)


def _file(name: str, path: Path, options: Options) -> GivenModel:
    """The model of a file, with the engine for its content. Raises ConfigurationError.

    The echo engine needs no model: it takes a JSON file of its options, and ignores other files.
    """
    if options.engine == "echo":
        is_options = path.suffix == ".json"
        return GivenModel(
            name or (path.stem if is_options else "echo"), path if is_options else None, "echo"
        )
    if options.engine == "llama_cpp" and not has_llama_cpp():
        raise ConfigurationError(f"llama.cpp is not installed: {INSTALL_LLAMA_CPP} installs it")
    check_utf8(path)
    chosen = choose_engine(path, options.model_type)
    engine: EngineName = chosen if options.engine == "auto" else options.engine
    return GivenModel(name or model_name(path), path, engine)


def check_utf8(path: Path) -> None:
    """Raise ConfigurationError for a path that is not UTF-8: it could not be shown in a list."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise ConfigurationError(f"the path {shown} is not UTF-8: rename the file") from None


def _kv_bytes(weights_bytes: int, workers: int) -> int | None:
    """Memory for the KV cache of each worker; None: the free memory is not known."""
    available = available_memory()
    if available is None:
        return None
    return int(max(0, available - weights_bytes) * KV_CACHE_SHARE) // workers
