"""The figures `ctransformers` and `pool`: decoding with ctransformers, through the server."""

from __future__ import annotations

from pathlib import Path

from scripts.bench.direct import DirectLoop
from scripts.bench.figures import Aim, Figure, Series
from scripts.bench.job import Job, Sizes, Skipped, ratios, take_turns
from scripts.bench.loads import Load, run_streams
from scripts.bench.servers import tokenflume
from scripts.bench.targets import SAMPLING, our_target
from scripts.load.request import Request
from scripts.load.server import ServerProcess
from scripts.report.text import count
from shared.errors import ConfigurationError
from workers.machine.topology import make_plan

PROSE = "Once upon a time there was a fox who lived at the edge of a dark wood, and"


def measure_ctransformers(job: Job) -> Figure:
    """Decoding through the server, over the library's own loop."""
    sizes, model = job.sizes, job.model(job.sizes.shape, job.sizes.kind)
    (cpus,) = make_plan(job.machine, batches=False, threads=job.threads, workers=1).workers
    fields = {**SAMPLING, "prompt": PROSE}
    with (
        DirectLoop(model, cpus, sizes.context) as direct,
        _serve(job, model, threads=len(cpus), workers=1) as server,
    ):
        own, served = take_turns(
            sizes.runs,
            lambda: direct.decode_rate(fields, sizes.decode_tokens),
            lambda: _run(server, sizes, streams=1).decode_rate,
        )
    return Figure(
        title=f"ctransformers: one stream of {model.name}, {count(len(cpus), 'thread')}",
        series=[
            Series("A, the library's own loop", "tokens/s", own, 2),
            Series("B, through the server", "tokens/s", served, 2),
            Series("B/A", "", ratios(served, own), 3, Aim("at least", 0.97)),
        ],
        tokens=2 * sizes.runs * sizes.decode_tokens,
    )


def measure_pool(job: Job) -> Figure:
    """Two workers of one thread each, over one worker of two threads."""
    try:
        make_plan(job.machine, batches=False, threads=2)
    except ConfigurationError as error:
        raise Skipped(f"needs two CPUs: {error}") from None
    sizes, model = job.sizes, job.model(job.sizes.shape, job.sizes.kind)
    with (
        _serve(job, model, threads=2, workers=1) as single,
        _serve(job, model, threads=2, workers=2) as pool,
    ):
        alone, pooled = take_turns(
            sizes.runs,
            lambda: _run(single, sizes, streams=2).rate,
            lambda: _run(pool, sizes, streams=2).rate,
        )
    return Figure(
        title=f"pool: two concurrent streams of {model.name}, two threads in total",
        series=[
            Series("A, one worker of two threads", "tokens/s", alone, 2),
            Series("B, two workers of one thread", "tokens/s", pooled, 2),
            Series("B/A", "", ratios(pooled, alone), 3, Aim("more than", 1.0)),
        ],
        tokens=2 * 2 * sizes.runs * sizes.decode_tokens,
    )


def _serve(job: Job, model: Path, *, threads: int, workers: int) -> ServerProcess:
    """A server of the model with ctransformers."""
    sizes = {"-t": threads, "--workers": workers, "-n": job.sizes.context}
    options = [str(part) for option in sizes.items() for part in option]
    return tokenflume("--engine", "ctransformers", "-m", str(model), *options)


def _run(server: ServerProcess, sizes: Sizes, *, streams: int) -> Load:
    requests = [Request(PROSE, sizes.decode_tokens, seed) for seed in range(streams)]
    return run_streams(our_target(server.url), requests)
