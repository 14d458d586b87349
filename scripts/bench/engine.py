"""The figure `engine`: llama.cpp alone, with three settings, to justify those of tokenflume."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scripts.bench.figures import Figure, Series
from scripts.bench.job import Job, LlamaSizes, Skipped
from scripts.load.errors import MeasurementError
from scripts.report.text import count
from shared.errors import ConfigurationError
from shared.settings import ModelSettings
from workers.engines.base import Feed
from workers.machine.topology import make_plan

KINDS: dict[str, dict[str, Any]] = {
    "our settings": {},
    "flash attention": {"flash_attn_type": 1},  # LLAMA_FLASH_ATTN_TYPE_ENABLED
    "one cache for all": {"flash_attn_type": 1, "kv_unified": True},
}
"""Fields of llama_context_params that differ from our settings. Without flash attention, one cache
for all sequences would need attention scores for all cells."""


def measure_engine(job: Job) -> Figure:
    """Milliseconds of steps with the three settings."""
    sizes = job.sizes.llama
    model = job.model(sizes.shape, sizes.kind)
    try:
        threads = job.threads or sizes.threads
        (cpus,) = make_plan(job.machine, batches=True, threads=threads, workers=1).workers
    except ConfigurationError as error:
        raise Skipped(str(error)) from None
    series = []
    for kind, changes in KINDS.items():
        for step, seconds in _in_a_process(model, cpus, sizes, job.sizes.runs, changes).items():
            name = f"{step}: {kind}"
            series.append(Series(name, "ms", [value * 1000 for value in seconds], 1))
    return Figure(
        title=f"engine: {model.name}, {count(len(cpus), 'thread')}",
        series=sorted(series, key=lambda series: series.name.split(":")[0]),
        tokens=0,
    )


def _in_a_process(
    model: Path, cpus: Sequence[int], sizes: LlamaSizes, runs: int, changes: dict[str, Any]
) -> dict[str, list[float]]:
    """Seconds of each step, by the name of the step.

    Measured in a process of its own, because the engine pins its threads for good.
    Raises MeasurementError.
    """
    spawn = multiprocessing.get_context("spawn")
    result, remote = spawn.Pipe(duplex=False)
    child = spawn.Process(
        target=_measure, args=(remote, model, tuple(cpus), sizes, runs, changes), daemon=True
    )
    child.start()
    remote.close()
    try:
        steps: dict[str, list[float]] = result.recv()
    except EOFError:
        raise MeasurementError("the process of the engine has ended") from None
    finally:
        child.kill()
        child.join()
    return steps


def _measure(
    result: Connection,
    model: Path,
    cpus: tuple[int, ...],
    sizes: LlamaSizes,
    runs: int,
    changes: dict[str, Any],
) -> None:
    os.dup2(2, 1)  # native code may print
    os.sched_setaffinity(0, cpus)
    os.environ["GOMP_CPU_AFFINITY"] = " ".join(map(str, cpus))
    # Imported after that, because it loads the OpenMP library.
    import llama_cpp

    from workers.engines.llama_cpp import loading
    from workers.engines.llama_cpp.batch import BATCH
    from workers.engines.llama_cpp.engine import LlamaCppEngine

    slots = max(sizes.streams)
    settings = ModelSettings(model, "llama_cpp", None, sizes.long_context, None, "f16", slots)
    log = loading.NativeLog()
    llama_cpp.llama_backend_init()
    loaded = loading.load_model(settings, log)
    params = loading.context_params(loaded, settings, slots, len(cpus))
    for name, value in changes.items():
        setattr(params, name, value)
    context = loading.make_context(loaded, params, log)
    engine = LlamaCppEngine(loaded, context, settings, slots, log)
    text = engine.tokenize("a")

    def fill(slot: int, depth: int) -> None:
        for start in range(0, depth, BATCH):
            size = min(BATCH, depth - start)
            engine.decode([Feed(slot, text[-1:] * size, start, wants_logits=False)])

    def timed(feeds: list[Feed]) -> Callable[[], float]:
        def step() -> float:
            started = time.perf_counter()
            engine.decode(feeds)
            seconds = time.perf_counter() - started
            for feed in feeds:
                engine.truncate(feed.slot, feed.position)
            return seconds

        return step

    steps: dict[str, list[float]] = {}
    for depth in sizes.depths:
        # Deep sequences take long to fill, and one is enough.
        numbers = sizes.streams if depth == sizes.depths[0] else (1,)
        for slot in range(max(numbers)):
            engine.truncate(slot, 0)
            fill(slot, depth)
        for streams in numbers:
            feeds = [Feed(slot, text[-1:], depth, wants_logits=True) for slot in range(streams)]
            run = timed(feeds)
            steps[f"{depth} deep, {count(streams, 'sequence')}"] = [run() for _ in range(runs + 1)][
                1:
            ]
        chunk = timed([Feed(0, text[-1:] * sizes.chunk, depth, wants_logits=False)])
        steps[f"{depth} deep, a chunk of {sizes.chunk}"] = [chunk() for _ in range(runs + 1)][1:]
    result.send(steps)
