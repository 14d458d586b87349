#!/usr/bin/env python3
"""Measure tokenflume on this machine: the front, the latency that it adds, the engine, the pool.

    pip install -e '.[bench]'
    python scripts/bench.py                         # everything, some minutes
    python scripts/bench.py front latency           # no model needed
    python scripts/bench.py pool -m model.gguf --json pool.json

front          tokens/s that one front process sends: the echo engine at full speed, 32 clients
               at once on loopback. From the first request to the last token, requests included.
latency        milliseconds from the moment a worker has a token to its arrival at the client:
               queue, front and HTTP together. At 1,000 tokens/s, less what a step takes beyond
               its sleep: of one stream, and of 10, whose tokens leave the worker ten at a time
               and wait for each other in the front.
ctransformers  tokens/s of decoding of one stream, over those of ctransformers' own loop without
               any server, on the same cores and threads, with the same prompt and sampling.
pool           tokens/s of two streams at once, two workers of one thread each over one worker
               of two threads.

Each figure has a warm-up that does not count, then --runs runs; two things that are compared
take turns. A figure is the median of the runs, in brackets the lowest and the highest. A ratio
is the median of the ratios within each pair of turns.

How `latency` is measured: with the server's own code and command line, except that the worker
notes the time, before it does anything else, whenever it is about to send a step's tokens; the
client notes when it has read each token. Both read the clock that all processes of a machine
share (CLOCK_MONOTONIC), and no two streams start at the same time, so each token's two times
are known exactly. Other ways are worse: with the unchanged server one can only compare arrivals
with where a steady pace would put them, and the pace itself drifts by more than what is sought.

The load generator of `front` lets bytes gather in its sockets for some milliseconds and does
not parse them, so that it takes little CPU time; what it takes is printed. Every stream is
checked: it must end properly, with exactly as many tokens as were asked for.

The models are made by make_model.py, with random weights, once; they stay in --models.
Exit status: 0 all ran (an aim that is missed is no error); 1 a stream was cut, a count was
wrong or a process failed; 2 bad options.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

# What is measured is this checkout, not what may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_client import BenchError, DirectLoop, Load, ServerProcess, read_stamps, run_streams
from shared.errors import ConfigurationError
from workers.cpu_features import cpu_features, cpu_model
from workers.machine import Machine, read_machine
from workers.topology import make_plan

T = TypeVar("T")

# All that the escapes and the text assembly have to deal with: a token is a byte of it.
ECHO = {"prompt": "The fox said: “Où vas-tu?”\nAnd he said \\o/ and ran, and ran, and was gone. "}
PROSE = {
    "prompt": "Once upon a time there was a fox who lived at the edge of a dark wood, and",
    "temp": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "repeat_penalty": 1.3,
    "repeat_last_n": 64,
}
GATHER_S = 0.01
"""How long the clients of `front` let bytes gather: under 1 % of a run."""
BUSY = 0.9
"""Share of a core's time from which on a process counts as the limit."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    runs: int
    front_streams: int
    front_tokens: int
    latency_streams: int
    latency_step_s: float
    latency_tokens: int
    decode_tokens: int
    context: int
    shape: str


FULL = Sizes(
    runs=5,
    front_streams=32,
    front_tokens=6000,
    latency_streams=10,
    latency_step_s=0.01,
    latency_tokens=300,
    decode_tokens=128,
    context=512,
    shape="tinyllama-1.1b",
)
QUICK = Sizes(
    runs=2,
    front_streams=32,
    front_tokens=100,
    latency_streams=5,
    latency_step_s=0.005,
    latency_tokens=40,
    decode_tokens=16,
    context=256,
    shape="tiny",
)


@dataclass(frozen=True)
class Job:
    """What the command line asks for."""

    sizes: Sizes
    machine: Machine
    threads: int | None
    """Of the engine in `ctransformers`; None: the server's own choice."""
    model: Callable[[], Path]
    """Makes the model file if it is not there yet."""
    scratch: Path


@dataclass(frozen=True)
class Series:
    """One quantity, a value a run."""

    name: str
    unit: str
    values: Sequence[float]
    digits: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Aim:
    """What a series' median should be."""

    relation: str
    limit: float

    def is_reached_by(self, value: float) -> bool:
        match self.relation:
            case "at least":
                return value >= self.limit
            case "at most":
                return value <= self.limit
            case _:
                return value > self.limit


@dataclass(frozen=True)
class Figure:
    """A measurement's result. The aim is that of the last series."""

    title: str
    series: Sequence[Series]
    aim: Aim
    tokens: int
    """Tokens that came in the runs that count, each of them asked for; without the warm-up."""
    notes: Sequence[str] = ()

    @property
    def is_reached(self) -> bool:
        return self.aim.is_reached_by(self.series[-1].median)


class Skipped(Exception):
    """The machine cannot do this measurement."""


# ---------------------------------------------------------------- front


def measure_front(job: Job) -> Figure:
    """Tokens per second that one front process sends to many clients."""
    sizes = job.sizes
    with serve_echo(sizes.front_tokens, "--queue", str(sizes.front_streams)) as server:
        runs = repeat(sizes.runs, lambda: _load_front(server, sizes))
    shares = {
        name: Series(f"CPU share, {name}", "% of a core", [run[1][name] * 100 for run in runs])
        for name in runs[0][1]
    }
    return Figure(
        title=f"front: {sizes.front_streams} streams at once, echo engine, one front process",
        series=[
            *shares.values(),
            Series(
                "left together", "tokens a chunk", [tokens_a_chunk(load) for load, _ in runs], 1
            ),
            Series("received by all clients", "tokens/s", [rate(load) for load, _ in runs]),
        ],
        aim=Aim("at least", 40_000),
        tokens=sum(load.tokens for load, _ in runs),
        notes=[
            describe_limit(
                {name: series.median / 100 for name, series in shares.items()},
                make_plan(job.machine, batches=True).threads,
            )
        ],
    )


def _load_front(server: ServerProcess, sizes: Sizes) -> tuple[Load, dict[str, float]]:
    """One run, and the shares of a core that each side took in it."""
    front_before, worker_before = server.cpu_seconds()
    load = run_streams(
        server.port,
        ECHO,
        streams=sizes.front_streams,
        tokens=sizes.front_tokens,
        gather_s=GATHER_S,
    )
    front_after, worker_after = server.cpu_seconds()
    spent = {
        "front": front_after - front_before,
        "workers": worker_after - worker_before,
        "load generator": load.cpu_s,
    }
    return load, {name: seconds / load.seconds for name, seconds in spent.items()}


def describe_limit(shares: dict[str, float], cores: int) -> str:
    """What kept the rate from being higher, by the shares of a core that each side took."""
    generator = "was" if shares["load generator"] >= BUSY else "was not"
    busy = [name for name, share in shares.items() if share >= BUSY]
    if busy:
        limit = " and ".join(busy)
    elif sum(shares.values()) >= BUSY * cores:
        limit = f"the {cores} cores, all busy"
    else:
        limit = "none of the three: other programs, or waiting"
    return f"the load generator {generator} the bottleneck; what limited the rate: {limit}"


# ---------------------------------------------------------------- latency


def measure_latency(job: Job) -> Figure:
    """Milliseconds from a worker's having a token to its arrival at the client."""
    sizes = job.sizes
    many = sizes.latency_streams
    single = _run_latency(job, 1, sizes.latency_step_s / many, sizes.latency_tokens * many)
    several = _run_latency(job, many, sizes.latency_step_s, sizes.latency_tokens)
    return Figure(
        title="latency: from worker to client, echo engine",
        series=[
            *_latency_series("one stream", single),
            *_latency_series(f"{many} streams", several),
        ],
        aim=Aim("at most", 0.3),
        tokens=sum(len(run.added_ms) for run in (*single, *several)),
    )


@dataclass(frozen=True)
class Latencies:
    """One run's."""

    pace: float
    """Tokens per second that the worker made."""
    added_ms: list[float]
    """Of each token."""


def _latency_series(name: str, runs: list[Latencies]) -> list[Series]:
    added = [run.added_ms for run in runs]
    return [
        Series(f"{name}: pace", "tokens/s", [run.pace for run in runs]),
        Series(f"{name}: 99th percentile", "ms", [percentile(run, 99) for run in added], 3),
        Series(f"{name}: median", "ms", [percentile(run, 50) for run in added], 3),
    ]


def _run_latency(job: Job, streams: int, step_s: float, tokens: int) -> list[Latencies]:
    """Runs of so many streams at once, each with a token in every step."""
    options, stamps = job.scratch / "echo.json", job.scratch / f"{streams}.json"
    options.write_text(json.dumps({"slots": streams, "step_s": step_s}))
    with serve_echo(tokens, "-m", str(options), "--workers", "1", stamps=stamps) as server:
        loads = [
            run_streams(server.port, ECHO, streams=streams, tokens=tokens, in_turn=True)
            for _ in range(1 + job.sizes.runs)
        ]
    stamped = iter(read_stamps(stamps))
    return [_latencies(load, list(itertools.islice(stamped, streams))) for load in loads][1:]


def _latencies(load: Load, stamped: list[list[float]]) -> Latencies:
    """What became of a load whose tokens the worker had at the times in `stamped`."""
    read, had = ([len(times) for times in side] for side in (load.arrivals, stamped))
    if read != had:
        raise BenchError(f"the clients had {read} tokens, the worker {had}")
    return Latencies(
        pace=sum((len(times) - 1) / (times[-1] - times[0]) for times in stamped),
        added_ms=[
            (arrival - moment) * 1000
            for arrivals, moments in zip(load.arrivals, stamped, strict=True)
            for arrival, moment in zip(arrivals, moments, strict=True)
        ],
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many per cent of the values do not exceed."""
    return sorted(values)[(len(values) - 1) * percent // 100]


# ---------------------------------------------------------------- ctransformers


def measure_ctransformers(job: Job) -> Figure:
    """Decoding through the server, over the library's own loop."""
    sizes, model = job.sizes, job.model()
    (cpus,) = make_plan(job.machine, batches=False, threads=job.threads, workers=1).workers
    with (
        DirectLoop(model, cpus, sizes.context) as direct,
        serve_model(job, model, threads=len(cpus), workers=1) as server,
    ):
        own, served = take_turns(
            sizes.runs,
            lambda: direct.decode_rate(PROSE, sizes.decode_tokens),
            lambda: load_model(server, sizes, streams=1).decode_rate,
        )
    return Figure(
        title=f"ctransformers: one stream of {model.name}, {count(len(cpus), 'thread')}",
        series=[
            Series("A, the library's own loop", "tokens/s", own, 2),
            Series("B, through the server", "tokens/s", served, 2),
            Series("B/A", "", ratios(served, own), 3),
        ],
        aim=Aim("at least", 0.97),
        tokens=2 * sizes.runs * sizes.decode_tokens,
    )


# ---------------------------------------------------------------- pool


def measure_pool(job: Job) -> Figure:
    """Two workers of a thread each, over one worker of two threads."""
    try:
        make_plan(job.machine, batches=False, threads=2)
    except ConfigurationError as error:
        raise Skipped(f"needs two CPUs: {error}") from None
    sizes, model = job.sizes, job.model()
    with (
        serve_model(job, model, threads=2, workers=1) as single,
        serve_model(job, model, threads=2, workers=2) as pool,
    ):
        alone, pooled = take_turns(
            sizes.runs,
            lambda: rate(load_model(single, sizes, streams=2)),
            lambda: rate(load_model(pool, sizes, streams=2)),
        )
    return Figure(
        title=f"pool: two streams of {model.name} at once, two threads in all",
        series=[
            Series("A, one worker of two threads", "tokens/s", alone, 2),
            Series("B, two workers of one thread", "tokens/s", pooled, 2),
            Series("B/A", "", ratios(pooled, alone), 3),
        ],
        aim=Aim("more than", 1.0),
        tokens=2 * 2 * sizes.runs * sizes.decode_tokens,
    )


MEASUREMENTS: dict[str, Callable[[Job], Figure]] = {
    "front": measure_front,
    "latency": measure_latency,
    "ctransformers": measure_ctransformers,
    "pool": measure_pool,
}


# ---------------------------------------------------------------- what they share


def serve_echo(tokens: int, *options: str, stamps: Path | None = None) -> ServerProcess:
    """A server of the echo engine whose context has room for so many tokens."""
    context = len(ECHO["prompt"].encode()) + tokens
    return ServerProcess("--engine", "echo", "-n", str(context), *options, stamps=stamps)


def serve_model(job: Job, model: Path, *, threads: int, workers: int) -> ServerProcess:
    """A server of the model on ctransformers."""
    sizes = {"-t": threads, "--workers": workers, "-n": job.sizes.context}
    options = [str(part) for option in sizes.items() for part in option]
    return ServerProcess("--engine", "ctransformers", "-m", str(model), *options)


def load_model(server: ServerProcess, sizes: Sizes, *, streams: int) -> Load:
    return run_streams(server.port, PROSE, streams=streams, tokens=sizes.decode_tokens)


def rate(load: Load) -> float:
    """Tokens per second of all streams, from the first request to the last token."""
    return load.tokens / load.seconds


def tokens_a_chunk(load: Load) -> float:
    """How many tokens of a stream the server sent at once: more than one when it is behind."""
    return load.tokens / load.chunks


def repeat(runs: int, run: Callable[[], T]) -> list[T]:
    """The results of `runs` runs, after a warm-up."""
    return [run() for _ in range(1 + runs)][1:]


def take_turns(
    runs: int, first: Callable[[], float], second: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """The results of two things that take turns, so that both meet the same disturbances."""
    pairs = repeat(runs, lambda: (first(), second()))
    return [a for a, _ in pairs], [b for _, b in pairs]


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def make_model(folder: Path, shape: str, kind: str) -> Path:
    """The model of that shape and type in `folder`; made when it is not there. BenchError."""
    path = folder / f"{shape}-{kind}.gguf"
    if not path.exists():
        say(f"making {path}")
        folder.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).with_name("make_model.py")
        options = ["--shape", shape, "--type", kind, "-o", path]
        command = [sys.executable, str(script), *map(str, options)]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
            raise BenchError("make_model.py failed")
    return path


# ---------------------------------------------------------------- the report


def describe_machine(machine: Machine) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": cpu_model(),
        "usable_cores": len(machine.cores),
        "usable_cpus": machine.allowed,
        "quota": machine.quota,
        "features": list(cpu_features()),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def machine_table(facts: dict[str, Any]) -> str:
    """The facts of `describe_machine`, to read."""
    quota = "" if facts["quota"] is None else f", quota {facts['quota']:g} CPUs"
    cores = f"{count(facts['usable_cores'], 'core')}, {count(facts['usable_cpus'], 'CPU')}{quota}"
    rows = {
        "CPU": facts["cpu"],
        "usable": cores,
        "features": " ".join(facts["features"]) or "none known",
        "Python": facts["python"],
        "load": f"{facts['load_average']:.2f} on average in the minute before the start",
    }
    return "\n".join(f"  {name:<10}{value}" for name, value in rows.items())


def figure_table(figure: Figure) -> str:
    """A figure to read: a line for each series, and what became of the aim."""
    lines = [figure.title, *map(series_row, figure.series)]
    last = figure.series[-1]
    aim = f"{figure.aim.relation} {figure.aim.limit:,g} {last.unit}".rstrip()
    lines += [f"  {note}" for note in figure.notes]
    return "\n".join(
        [*lines, f"  aim for {last.name}: {aim}: {'reached' if figure.is_reached else 'missed'}"]
    )


def series_row(series: Series) -> str:
    """Name, median (lowest … highest) and unit in columns."""
    median, low, high = (
        f"{value:,.{series.digits}f}"
        for value in (series.median, min(series.values), max(series.values))
    )
    return f"  {series.name:<30}{median:>10}  {f'({low} … {high})':<24}{series.unit}".rstrip()


def figure_json(figure: Figure) -> dict[str, Any]:
    """All that is known of a figure."""
    return {
        "title": figure.title,
        "series": [{**dataclasses.asdict(s), "median": s.median} for s in figure.series],
        "aim": {**dataclasses.asdict(figure.aim), "reached": figure.is_reached},
        "tokens": figure.tokens,
        "notes": list(figure.notes),
    }


def say(line: str) -> None:
    """Progress, which is no part of the report."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parse_arguments(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        # As an exception: the servers are ended on the way out.
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    machine = read_machine()
    facts = describe_machine(machine)
    print(machine_table(facts), flush=True)
    with tempfile.TemporaryDirectory(prefix="tokenflume-bench-") as scratch:
        job = make_job(options, machine, Path(scratch))
        figures, failed = measure(options.figures, job)
    if options.json is not None:
        report = {"machine": facts, "sizes": dataclasses.asdict(job.sizes), "figures": figures}
        options.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return 1 if failed else 0


def measure(names: Sequence[str], job: Job) -> tuple[dict[str, Any], bool]:
    """Measure and print each; return the figures as JSON values, and whether one failed."""
    figures: dict[str, Any] = {}
    failed = False
    for name in names:
        say(f"measuring {name}")
        try:
            figure = MEASUREMENTS[name](job)
        except Skipped as reason:
            print(f"\n{name}: skipped: {reason}", flush=True)
        except (BenchError, ConfigurationError) as error:
            failed = True
            print(f"\n{name}: failed: {error}", flush=True)
        else:
            figures[name] = figure_json(figure)
            print(f"\n{figure_table(figure)}", flush=True)
    return figures, failed


def make_job(options: argparse.Namespace, machine: Machine, scratch: Path) -> Job:
    sizes = QUICK if options.quick else FULL
    changes = {"runs": options.runs, "shape": options.shape, "decode_tokens": options.tokens}
    given = {name: value for name, value in changes.items() if value is not None}
    sizes = dataclasses.replace(sizes, **given)
    return Job(
        sizes=sizes,
        machine=machine,
        threads=options.threads,
        model=lambda: options.model or make_model(options.models, sizes.shape, options.type),
        scratch=scratch,
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "figures",
        nargs="*",
        metavar="FIGURE",
        help=f"{', '.join(MEASUREMENTS)} or all (default: all)",
    )
    add("--runs", type=positive, metavar="N", help="runs that count (default: 5)")
    add("--quick", action="store_true", help="everything small: to see that it works")
    add("--json", type=Path, metavar="FILE", help="write everything there too")
    models = parser.add_argument_group("ctransformers and pool")
    add = models.add_argument
    add("-m", "--model", type=Path, metavar="FILE", help="a GGUF model to take")
    add("--shape", help=f"else make_model.py's shape to take (default: {FULL.shape})")
    add("--type", default="Q4_0", help="and the type of its matrices (default: %(default)s)")
    add(
        "--models",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()) / f"tokenflume-models-{os.getuid()}",
        help="where the made models are (default: %(default)s)",
    )
    add("--tokens", type=at_least_two, metavar="N", help="tokens of a stream (default: 128)")
    add(
        "-t",
        "--threads",
        type=positive,
        metavar="N",
        help="threads in ctransformers (default: the physical cores that may be used)",
    )
    options = parser.parse_args(arguments)
    unknown = set(options.figures) - {*MEASUREMENTS, "all"}
    if unknown:
        parser.error(f"there is no figure {', '.join(sorted(unknown))}; see --help")
    if not options.figures or "all" in options.figures:
        options.figures = list(MEASUREMENTS)
    return options


def positive(text: str) -> int:
    return _integer(text, 1)


def at_least_two(text: str) -> int:
    """Decoding is timed from the first token to the last."""
    return _integer(text, 2)


def _integer(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be an integer of {least} or more, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
