"""The figure `latency`: the time from a worker's having a token to its arrival at the client."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.bench.echo import ECHO_PROMPT, serve_echo
from scripts.bench.figures import Aim, Figure, Series
from scripts.bench.job import Job
from scripts.bench.loads import Load, run_streams
from scripts.bench.stamps import read_stamps
from scripts.load.dialects import STREAMING
from scripts.load.errors import MeasurementError
from scripts.load.request import Request
from scripts.load.target import Target
from scripts.report.stats import percentile


def measure_latency(job: Job) -> Figure:
    """Milliseconds from a worker's having a token to its arrival at the client."""
    sizes = job.sizes
    many = sizes.latency_streams
    single = _run(job, 1, sizes.latency_step_s / many, sizes.latency_tokens * many)
    several = _run(job, many, sizes.latency_step_s, sizes.latency_tokens)
    return Figure(
        title="latency: from worker to client, echo engine",
        series=[
            *_series("one stream", single),
            *_series(f"{many} streams", several, Aim("at most", 0.3)),
        ],
        tokens=sum(len(run.added_ms) for run in (*single, *several)),
    )


@dataclass(frozen=True)
class Latencies:
    """The latencies of one run."""

    pace: float
    """Tokens per second that the worker made."""
    added_ms: list[float]
    """Latency of each token, in milliseconds."""


def _series(name: str, runs: Sequence[Latencies], aim: Aim | None = None) -> list[Series]:
    added = [run.added_ms for run in runs]
    return [
        Series(f"{name}: pace", "tokens/s", [run.pace for run in runs]),
        Series(f"{name}: 99th percentile", "ms", [percentile(run, 99) for run in added], 3),
        Series(f"{name}: median", "ms", [percentile(run, 50) for run in added], 3, aim),
    ]


def _run(job: Job, streams: int, step_s: float, tokens: int) -> list[Latencies]:
    """The runs of `streams` concurrent streams. Each step makes a token of each of them."""
    options, stamps = job.scratch / "echo.json", job.scratch / f"{streams}.json"
    options.write_text(json.dumps({"slots": streams, "step_s": step_s}))
    requests = [Request(ECHO_PROMPT, tokens, seed=0)] * streams
    with serve_echo(tokens, "-m", str(options), "--workers", "1", stamps=stamps) as server:
        target = Target(server.url, STREAMING["stream-plain"])
        loads = [run_streams(target, requests, in_turn=True) for _ in range(1 + job.sizes.runs)]
    stamped = iter(read_stamps(stamps))
    return [_latencies(load, list(itertools.islice(stamped, streams))) for load in loads][1:]


def _latencies(load: Load, stamped: list[list[float]]) -> Latencies:
    """The latencies of a load whose tokens the worker had at the times in `stamped`."""
    read, had = ([len(times) for times in side] for side in (load.arrivals, stamped))
    if read != had:
        raise MeasurementError(f"the clients received {read} tokens, the worker had {had}")
    return Latencies(
        pace=sum((len(times) - 1) / (times[-1] - times[0]) for times in stamped),
        added_ms=[
            (arrival - moment) * 1000
            for arrivals, moments in zip(load.arrivals, stamped, strict=True)
            for arrival, moment in zip(arrivals, moments, strict=True)
        ],
    )
