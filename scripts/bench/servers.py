"""The servers that are measured: tokenflume from this checkout, and llama.cpp's llama-server."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.load.server import HOST, ServerProcess


def tokenflume(*options: str, stamps: Path | None = None) -> ServerProcess:
    """`python -m server` with these options.

    With `stamps`, its workers record when they had each token; that file exists after the
    context.
    """
    program = ["-m", "server"] if stamps is None else ["-m", "scripts.bench.stamps", str(stamps)]
    command = [sys.executable, *program, *options, "--host", HOST, "-P", "0"]
    return ServerProcess(command, "/ready")


@contextlib.contextmanager
def llama_server(
    program: Path,
    model: Path,
    *,
    cpus: Sequence[int],
    slots: int,
    context: int,
    saves_prompts: bool = False,
) -> Iterator[ServerProcess]:
    """llama-server with one thread for each of these CPUs, and `context` tokens for each slot.

    `saves_prompts`: keep its in-memory cache of prompts, which it has by default.
    """
    threads = str(len(cpus))
    mask = f"{sum(1 << cpu for cpu in cpus):x}"
    command: list[str | Path] = [
        program.absolute(),
        *("--model", model.absolute()),
        *("--host", HOST, "--port", "0", "--no-webui"),
        *("--threads", threads, "--threads-batch", threads, "--cpu-mask", mask),
        # -c is the size of the whole KV cache; a unified one would give all of it to any slot.
        *("--parallel", str(slots), "--ctx-size", str(slots * context), "--no-kv-unified"),
    ]
    if not saves_prompts:  # no two prompts are alike: the cache would only copy keys and values
        command += ["--cache-ram", "0"]
    with ServerProcess(command, "/health") as server:
        # It computes in its main thread and in a pool. The mask is for the pool: a single compute
        # thread has none. Its HTTP threads may run on any CPU, as tokenflume's front may.
        server.pin_main_thread(cpus)
        yield server
