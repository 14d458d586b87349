"""The figure `front`: tokens per second that one front process sends to many clients."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.bench.echo import ECHO_PROMPT, serve_echo
from scripts.bench.figures import Aim, Figure, Series
from scripts.bench.job import Job, Sizes, repeat
from scripts.bench.loads import Load, run_streams
from scripts.load.dialects import STREAMING
from scripts.load.request import Request
from scripts.load.server import ServerProcess
from scripts.load.target import Target
from workers.machine.topology import make_plan

GATHER_S = 0.01
"""Time for which the clients let bytes gather in their sockets: under 1 % of a run."""
BUSY = 0.9
"""Share of one core from which on a process is regarded as the bottleneck."""
GENERATOR = "load generator"


def measure_front(job: Job) -> Figure:
    """Tokens per second that one front process sends to many clients."""
    sizes = job.sizes
    with serve_echo(sizes.front_tokens, "--queue", str(sizes.front_streams)) as server:
        runs = repeat(sizes.runs, lambda: _run(server, sizes))
    shares = {
        name: Series(f"CPU share, {name}", "% of a core", [run[1][name] * 100 for run in runs])
        for name in runs[0][1]
    }
    chunks = [load.tokens / load.chunks for load, _ in runs]
    rates = [load.rate for load, _ in runs]
    limit = describe_limit(
        {name: series.median / 100 for name, series in shares.items()},
        make_plan(job.machine, batches=True).threads,
    )
    return Figure(
        title=f"front: {sizes.front_streams} concurrent streams, echo engine, one front process",
        series=[
            *shares.values(),
            Series("sent together", "tokens a chunk", chunks, 1),
            Series("received by all clients", "tokens/s", rates, aim=Aim("at least", 40_000)),
        ],
        tokens=sum(load.tokens for load, _ in runs),
        notes=[limit],
    )


def _run(server: ServerProcess, sizes: Sizes) -> tuple[Load, dict[str, float]]:
    """One run, and the CPU time that each side took in it, as shares of one core."""
    target = Target(server.url, STREAMING["stream-plain"])
    request = Request(ECHO_PROMPT, sizes.front_tokens, seed=0)
    front_before, workers_before = server.cpu_seconds()
    load = run_streams(target, [request] * sizes.front_streams, gather_s=GATHER_S)
    front_after, workers_after = server.cpu_seconds()
    spent = {
        "front": front_after - front_before,
        "workers": workers_after - workers_before,
        GENERATOR: load.cpu_s,
    }
    return load, {name: seconds / load.seconds for name, seconds in spent.items()}


def describe_limit(shares: Mapping[str, float], cores: int) -> str:
    """What limited the rate, by the share of one core that each side took."""
    generator = "was" if shares[GENERATOR] >= BUSY else "was not"
    busy = [name for name, share in shares.items() if share >= BUSY]
    if busy:
        limit = " and ".join(busy)
    elif sum(shares.values()) >= BUSY * cores:
        limit = f"the {cores} cores, all busy"
    else:
        limit = "none of the three: other programs, or waiting"
    return f"the load generator {generator} the bottleneck; what limited the rate: {limit}"
