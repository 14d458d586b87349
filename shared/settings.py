"""The frozen configuration tree. Built once; each part goes only to its user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.logs import LogFormat
from shared.sampling import SamplingParams

EngineName = Literal["llama_cpp", "ctransformers", "echo"]
KvType = Literal["f16", "f32", "q8_0"]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What a worker loads, and how."""

    path: Path | None
    """None only for the echo engine, which needs no file."""
    engine: EngineName
    model_type: str | None
    """Architecture of a headerless GGML file, such as "gpt2"; None: the file says it."""
    context: int
    """Tokens per sequence, prompt and generation together."""
    batch: int | None
    """Prompt tokens fed at a time; None: the engine's own choice."""
    kv_type: KvType
    slots: int | None = None
    """Sequences at a time in each worker; None: as the engine and the memory allow."""
    kv_memory: int | None = None
    """Bytes that a worker should take for keys and values, half of what is left; None: any."""
    mlock: bool = False
    """Keep the weights in memory, never swapped out."""
    repack: bool = True
    """Rearrange the weights for this CPU where the engine can: faster, in memory of its own."""


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Where processed prompts are kept."""

    memory: int = 0
    """Bytes that each worker may take for saved prompts."""
    folder: Path | None = None
    """For prompts that clients name; None: they are in memory only."""
    disk: int = 0
    """Bytes that the folder's files may have together."""
    restore: Path | None = None
    """A saved prompt from which every request continues."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """All that one worker process is told."""

    index: int
    cpus: tuple[int, ...]
    """The CPUs that are this worker's own; one thread runs on each. Empty: not pinned."""
    model: ModelSettings
    log_level: str
    max_stall_s: float = 0.15
    """Longest step, in seconds, that may carry both a running stream and a prompt."""
    node: int | None = None
    """The NUMA node to take memory from; None: wherever the kernel does."""
    cache: CacheSettings = CacheSettings()
    log_format: LogFormat = "text"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How a worker's process is replaced when it has died. Times in seconds.

    Deaths in a row are counted: those of processes that neither completed a request nor served for
    `healthy_s`. The first replacement starts at once, the second after `first_wait_s`, each further
    one after twice the wait before it. After `max_deaths` in a row the worker is given up.
    """

    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    max_deaths: int = 5
    healthy_s: float = 600.0
    """A process that has served for this long was healthy, even if no request came."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The workers, and how they are kept."""

    workers: tuple[WorkerSettings, ...]
    queue: int
    """Requests that may wait for a slot."""
    queue_tokens: int
    """Tokens that the prompts of those may have together, unless it is a single one."""
    load_timeout_s: float
    """From a worker's start to its Ready."""
    progress_timeout_s: float
    """Without a sign of progress a worker counts as stuck, and is ended."""
    restart: RestartPolicy = RestartPolicy()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that requests may name, and the workers that run it."""

    name: str
    pool: PoolSettings
    memory: int = 0
    """Bytes that it takes when it is loaded, about."""

    @property
    def model(self) -> ModelSettings:
        """What each of its workers loads."""
        return self.pool.workers[0].model


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """A folder of models that are loaded on their first use."""

    path: Path
    memory_limit: int
    """Bytes that the loaded ones may take together."""
    queue: int
    """Requests that may wait for their model's turn on the cores."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How chats become prompts."""

    template: str | None = None
    """A built-in chat template's name, or a file's, for all models; None: each model's own."""
    prompts: Path | None = None
    """A file of named system prompts."""
    system: str | None = None
    """The system prompt where a chat has none, or its name."""


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who may ask."""

    key_file: Path | None = None
    """Names and keys; None: no key is needed."""
    hosts: tuple[str, ...] = ()
    """Names, besides localhost and addresses, that requests may be sent to; "*": all."""
    origins: tuple[str, ...] = ()
    """Origins whose pages may use the API; "*": all."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `tokenflume` was told, checked."""

    host: str
    port: int
    models: tuple[ModelSpec, ...]
    """Those that are loaded at start; the first is the default. Empty with a folder of models."""
    sampling: SamplingParams
    """What a request gets where it does not say."""
    drain_timeout_s: float
    """How long running streams may go on after SIGTERM."""
    send_timeout_s: float
    """How long a client may take nothing, or be out of reach."""
    plan: str
    """The plan of cores and workers in words, for the log."""
    log_level: str
    folder: FolderSettings | None = None
    chat: ChatSettings = ChatSettings()
    access: AccessSettings = AccessSettings()
    request_timeout_s: float = 30.0
    """In which a request must arrive whole."""
    log_prompts: bool = False
    """What clients ask is in the log."""
