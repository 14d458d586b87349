"""The settings: a frozen tree that is built once. Each part goes only to the code that uses it."""

from __future__ import annotations

import ipaddress
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
    """The model's file; None only for the echo engine, which needs none."""
    engine: EngineName
    model_type: str | None
    """Architecture of a GGML file, which does not say it, such as "gpt2"; None: GGUF says it."""
    context: int
    """Longest sequence, in tokens: prompt and answer together."""
    batch: int | None
    """Prompt tokens processed at a time; None: the engine's choice."""
    kv_type: KvType
    slots: int | None = None
    """Sequences that each worker runs at the same time; None: as engine and memory allow."""
    kv_memory: int | None = None
    """Bytes that a worker's KV cache should not exceed; None: no limit."""
    mlock: bool = False
    """Lock the weights in memory, so that they are never swapped out."""
    repack: bool = True
    """Rearrange the weights for this CPU, if the engine can: faster, but not shared memory."""


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Where the states of processed prompts are saved."""

    memory: int = 0
    """Most bytes of saved prompts in the memory of each worker."""
    folder: Path | None = None
    """Folder for prompts that clients give an id; None: they are saved in memory only."""
    disk: int = 0
    """Most bytes of the folder's files together."""
    restore: Path | None = None
    """File of a saved prompt that every request continues (--restore-prompt)."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Everything that one worker process needs to know."""

    index: int
    cpus: tuple[int, ...]
    """CPUs of this worker alone; one thread runs on each. Empty: it is not pinned."""
    model: ModelSettings
    log_level: str
    max_stall_s: float = 0.15
    """Longest time between two tokens of a stream while prompts are processed, in seconds."""
    node: int | None = None
    """NUMA node to allocate memory on; None: the kernel chooses."""
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
    """The workers of one model, the queue before them, and their timeouts."""

    workers: tuple[WorkerSettings, ...]
    queue: int
    """Most requests that wait for a slot."""
    queue_tokens: int
    """Most tokens of the waiting prompts together; a single prompt may have more."""
    load_timeout_s: float
    """Seconds from a process's start until it must be ready. Otherwise it is killed."""
    progress_timeout_s: float
    """A worker that is silent for this many seconds is stuck, and is killed."""
    restart: RestartPolicy = RestartPolicy()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that requests can name, and the settings of its workers."""

    name: str
    pool: PoolSettings
    memory: int = 0
    """Expected bytes in memory when it is loaded; 0: unknown."""

    @property
    def model(self) -> ModelSettings:
        """The settings of the model that each of its workers loads."""
        return self.pool.workers[0].model


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """A folder of models that are loaded on their first use."""

    path: Path
    memory_limit: int
    """Most bytes that the loaded models may take together."""
    queue: int
    """Most requests that wait until their model may use the cores."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How chats become prompts."""

    template: str | None = None
    """Name of a built-in chat template, or a file, for all models; None: each model's own."""
    prompts: Path | None = None
    """A file of named system prompts."""
    system: str | None = None
    """System prompt of chats that have none, or its name in `prompts`; None: none."""


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who may use the API."""

    key_file: Path | None = None
    """File of names and keys; None: no key is needed."""
    hosts: tuple[str, ...] = ()
    """Host names that requests may be sent to, besides localhost and IP addresses; "*": all."""
    origins: tuple[str, ...] = ()
    """Origins whose web pages may use the API (CORS); "*": all."""
    proxies: tuple[Network, ...] = ()
    """Reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked configuration of the server."""

    host: str
    port: int
    models: tuple[ModelSpec, ...]
    """Models loaded at start; the first is the default. Empty if there is a folder of models."""
    sampling: SamplingParams
    """Defaults of requests."""
    drain_timeout_s: float
    """Seconds that running streams may take to end after SIGTERM."""
    send_timeout_s: float
    """Seconds that a client may read nothing, or be unreachable, before it is disconnected."""
    plan: str
    """The plan of cores and workers, in words, for the log."""
    log_level: str
    folder: FolderSettings | None = None
    chat: ChatSettings = ChatSettings()
    access: AccessSettings = AccessSettings()
    request_timeout_s: float = 30.0
    """Seconds in which a whole request must arrive."""
    log_prompts: bool = False
    """Whether prompts are logged."""
