"""From options to models: which files, which workers on which cores, how much memory."""

from __future__ import annotations

import argparse
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from server.config.file import MODEL_NAME
from server.config.options import BUNDLED_MODEL
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
from workers.model_files.folder import ModelFile as FoundModel
from workers.model_files.folder import list_model_files, model_name

CACHE_LIMIT = 2**30
"""Bytes of saved prompts, where nobody says."""
NAME = re.compile(rf"({MODEL_NAME.pattern})=(.+)", re.DOTALL)
"""Of a model, before its file; a file's name with "=" in it is written ./like=this."""

FOLDER_SLOTS = 4
"""Of each worker of a model in --models-dir that is not told how many: they cost memory, which
the models there share."""
USUAL_SHARE = 0.9
"""Of the memory that is left at start, for the models of --models-dir."""

logger = logging.getLogger("tokenflume")


@dataclass(frozen=True, slots=True)
class GivenModel:
    """A model to serve, before anything is planned."""

    name: str
    path: Path | None
    """None: the echo engine without options."""
    engine: EngineName

    @property
    def size(self) -> int:
        """Bytes of its weights; 0 where there are none."""
        return weight_bytes(self.engine, self.path)


def given_files(options: argparse.Namespace) -> list[GivenModel]:
    """The files that -m names, the bundled one if none. Raises ConfigurationError."""
    texts: Sequence[str] = options.model
    if not texts:
        is_echo = options.engine == "echo"
        return [GivenModel("echo", None, "echo") if is_echo else _file("", BUNDLED_MODEL, options)]
    files = [_given_file(text, options) for text in texts]
    names = [file.name for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(
            f"two models are named {twice[0]}: name them apart with -m NAME=FILE"
        )
    return files


def make_specs(
    files: Sequence[GivenModel], options: argparse.Namespace, machine: Machine
) -> tuple[tuple[ModelSpec, ...], Plan]:
    """The models side by side, each on its share of the cores. Raises ConfigurationError."""
    parts = share_machine(machine, len(files), options.num_threads)
    plans = [
        make_plan(part, batches=ENGINES[file.engine].batches, threads=n, workers=options.workers)
        for file, (part, n) in zip(files, parts, strict=True)
    ]
    whole = Plan(tuple(cpus for plan in plans for cpus in plan.workers))
    workers = len(whole.workers)
    kv_memory = _kv_memory(sum(file.size for file in files), workers)
    maker = SpecMaker(
        options, machine, workers, kv_memory, slots=options.slots, shares_folder=len(files) > 1
    )
    indices = itertools.count()
    return tuple(map(maker.spec, files, plans, itertools.repeat(indices))), whole


class SpecMaker:
    """Makes models' settings from the options.

    `workers`: of all models that are loaded at a time. `kv_memory`: bytes that each of them should
    take for keys and values; None: any. `slots`: of each; None: as that memory allows.
    `shares_folder`: models have folders in --cache-dir.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        machine: Machine,
        workers: int,
        kv_memory: int | None,
        *,
        shares_folder: bool,
        slots: int | None,
    ) -> None:
        self._options = options
        self._machine = machine
        self._workers = workers
        self._kv_memory = kv_memory
        self._shares_folder = shares_folder
        self._slots = slots

    def spec(self, file: GivenModel, plan: Plan, indices: Iterator[int]) -> ModelSpec:
        """The file's workers, as planned, numbered by `indices`."""
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
            kv_memory=None if file.engine == "echo" else self._kv_memory,
            mlock=options.mlock == "on",
            repack=workers == 1 if options.repack == "auto" else options.repack == "on",
        )

    def _cache(self, file: GivenModel) -> CacheSettings:
        """Where saved prompts go: all workers share the memory."""
        options = self._options
        memory = disk = options.cache_limit
        if memory is None:
            memory = disk = CACHE_LIMIT
            if self._kv_memory is not None and file.engine != "echo":
                memory = min(memory, self._kv_memory * self._workers // 4)
        folder: Path | None = options.cache_dir and options.cache_dir.absolute()
        if folder is not None and self._shares_folder:
            folder /= file.name
        return CacheSettings(
            memory=memory // self._workers,
            folder=folder,
            disk=disk,
            restore=options.restore_prompt and options.restore_prompt.absolute(),
        )


class FolderModels:
    """Looks for the models of --models-dir whenever it is called."""

    def __init__(self, options: argparse.Namespace, machine: Machine) -> None:
        self._options = options
        self._machine = machine
        self._specs: dict[FoundModel, ModelSpec | None] = {}

    def __call__(self) -> list[ModelSpec]:
        """One for each file that an engine can load, by name."""
        found = list_model_files(self._options.models_dir)
        self._specs = {file: self._known_or_made(file) for file in found}
        return [spec for spec in self._specs.values() if spec is not None]

    def _known_or_made(self, file: FoundModel) -> ModelSpec | None:
        return self._specs[file] if file in self._specs else self._make(file)

    def _make(self, file: FoundModel) -> ModelSpec | None:
        options = self._options
        try:
            model = _file(file.name, file.path, options)
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
            logger.warning("%s is left out: %s", file.name, error)
            return None


def folder_settings(options: argparse.Namespace) -> FolderSettings | None:
    """What --models-dir asks for; None without it. Raises ConfigurationError."""
    if options.models_dir is None:
        if options.memory_limit is not None:
            raise ConfigurationError("--memory-limit is for the models of --models-dir")
        return None
    for name in ("model", "restore_prompt", "cache_prompt"):
        if getattr(options, name):
            flag = name.replace("_", "-")
            raise ConfigurationError(f"--models-dir and --{flag} exclude each other")
    limit: int | None = options.memory_limit
    if limit is None:
        available = available_memory()
        limit = 2**63 if available is None else int(available * USUAL_SHARE)
    return FolderSettings(options.models_dir.absolute(), limit, options.queue)


def _given_file(text: str, options: argparse.Namespace) -> GivenModel:
    named = NAME.fullmatch(text)
    name, place = named.groups() if named else ("", text)
    path = Path(place) if options.engine == "echo" else resolve_model(place)
    return _file(name, path.absolute(), options)


def _file(name: str, path: Path, options: argparse.Namespace) -> GivenModel:
    """Its engine by its content; only the echo engine's options need not be a model."""
    if options.engine == "echo":
        is_options = path.suffix == ".json"
        return GivenModel(
            name or (path.stem if is_options else "echo"), path if is_options else None, "echo"
        )
    if options.engine == "llama_cpp" and not has_llama_cpp():
        raise ConfigurationError(f"llama.cpp is not installed: {INSTALL_LLAMA_CPP} installs it")
    chosen = choose_engine(path, options.model_type)
    engine: EngineName = chosen if options.engine == "auto" else options.engine
    return GivenModel(name or model_name(path), path, engine)


def _kv_memory(weights: int, workers: int) -> int | None:
    """A worker's for keys and values: half of what the weights leave, the rest stays free."""
    available = available_memory()
    return None if available is None else max(0, available - weights) // 2 // workers
