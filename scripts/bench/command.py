"""Measure tokenflume on this machine: its front, its engines, and against llama-server.

    pip install -e '.[bench]'
    python -m scripts.bench                         # everything, some minutes
    python -m scripts.bench front latency           # no model needed
    python -m scripts.bench pool -m model.gguf --json pool.json
    python -m scripts.bench llama llama-deep llama-small stall leave step \\
        --llama-server "$(python -m scripts.bench.build_llama_server)"

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
step           milliseconds that our Python adds to a decode step of 16 streams, beside what
               llama.cpp's functions take: scheduling, batch, text, frame. 24 million weights.
engine         milliseconds of llama.cpp alone, for steps of one and of many sequences and for a
               chunk of a prompt, at two depths: as we run it, with flash attention, and with one
               KV cache for all sequences.

And five against llama-server of the same llama.cpp, with the same model, threads, slots, context,
prompts and sampling (they need --llama-server):

llama          tokens/s of 1, 8 and 16 streams at once, of a model of 1.1 billion weights on two
               threads. From the first request to the last token, requests included.
llama-deep     the same of 8 streams with prompts of 300 words: tokens look back at many others.
llama-small    the same of 16 streams of a model of 24 million weights on one thread.
stall          three streams decode when a prompt of 900 words arrives: the longest time between
               two tokens of any of the three until the prompt's first token, and how long the
               prompt takes until then.
leave          a client leaves half a second after it sent a prompt of 900 words to a server of
               one slot: how soon the slot is free. Measured by the first token of a tiny request
               that is sent at that moment, less what such a request takes otherwise.

And three about prompts that have been processed before:

again          a prompt of 900 words is sent again, and, after a restart of the server, once more
               with the `cache` id that it had: its first token, over that of the first time.
chats          8 chats at once, of 10 turns each, that share a system prompt of 500 words: the
               prompt tokens that were processed, over those that were new. A turn's prompt is the
               chat so far. Against llama-server with its cache of prompts.
new            requests in one slot that share nothing: what saving the last one's state costs.

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
checked: it must end properly, with exactly as many tokens as were asked for. Only the streams
that `stall` and `leave` leave have no end.

Prompts against llama-server are random words, a token each for the made models, so that no cache
of prompts can help. Its computing threads are pinned to the CPUs of tokenflume's worker; both are
up while either is measured, and an idle one takes no CPU time. Its cache of prompts in memory is
off; all else, like the sizes of batches, is what each does by itself.

The models are made by make_model.py, with random weights, once; they stay in --models.
Exit status: 0 all ran (an aim that is missed is no error); 1 a stream was cut, a count was
wrong or a process failed; 2 bad options.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.cache import measure_again, measure_chats, measure_new
from scripts.bench.comparison import (
    measure_leave,
    measure_llama,
    measure_llama_deep,
    measure_llama_small,
    measure_stall,
)
from scripts.bench.direct import DirectLoop
from scripts.bench.engine import measure_engine
from scripts.bench.figures import (
    Aim,
    Figure,
    Series,
    count,
    describe_machine,
    figure_json,
    figure_table,
    machine_table,
)
from scripts.bench.job import FULL, QUICK, Job, Sizes, ratios, repeat, take_turns
from scripts.bench.loads import Load, run_streams
from scripts.bench.models import MODELS
from scripts.bench.stamps import read_stamps
from scripts.bench.step import measure_step
from scripts.bench.targets import SAMPLING
from scripts.load.errors import BenchError, Skipped
from scripts.load.server import ServerProcess, tokenflume
from scripts.report.stats import percentile
from shared.errors import ConfigurationError
from workers.machine.cores import Machine, read_machine
from workers.machine.topology import make_plan

# All that the escapes and the text assembly have to deal with: a token is a byte of it.
ECHO = {"prompt": "The fox said: “Où vas-tu?”\nAnd he said \\o/ and ran, and ran, and was gone. "}
PROSE = {
    **SAMPLING,
    "prompt": "Once upon a time there was a fox who lived at the edge of a dark wood, and",
}
GATHER_S = 0.01
"""How long the clients of `front` let bytes gather: under 1 % of a run."""
BUSY = 0.9
"""Share of a core's time from which on a process counts as the limit."""


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
            Series(
                "received by all clients",
                "tokens/s",
                [load.rate for load, _ in runs],
                aim=Aim("at least", 40_000),
            ),
        ],
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
            *_latency_series(f"{many} streams", several, Aim("at most", 0.3)),
        ],
        tokens=sum(len(run.added_ms) for run in (*single, *several)),
    )


@dataclass(frozen=True)
class Latencies:
    """One run's."""

    pace: float
    """Tokens per second that the worker made."""
    added_ms: list[float]
    """Of each token."""


def _latency_series(name: str, runs: list[Latencies], aim: Aim | None = None) -> list[Series]:
    added = [run.added_ms for run in runs]
    return [
        Series(f"{name}: pace", "tokens/s", [run.pace for run in runs]),
        Series(f"{name}: 99th percentile", "ms", [percentile(run, 99) for run in added], 3),
        Series(f"{name}: median", "ms", [percentile(run, 50) for run in added], 3, aim),
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


# ---------------------------------------------------------------- ctransformers


def measure_ctransformers(job: Job) -> Figure:
    """Decoding through the server, over the library's own loop."""
    sizes, model = job.sizes, job.model(job.sizes.shape, job.sizes.kind)
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
            Series("B/A", "", ratios(served, own), 3, Aim("at least", 0.97)),
        ],
        tokens=2 * sizes.runs * sizes.decode_tokens,
    )


# ---------------------------------------------------------------- pool


def measure_pool(job: Job) -> Figure:
    """Two workers of a thread each, over one worker of two threads."""
    try:
        make_plan(job.machine, batches=False, threads=2)
    except ConfigurationError as error:
        raise Skipped(f"needs two CPUs: {error}") from None
    sizes, model = job.sizes, job.model(job.sizes.shape, job.sizes.kind)
    with (
        serve_model(job, model, threads=2, workers=1) as single,
        serve_model(job, model, threads=2, workers=2) as pool,
    ):
        alone, pooled = take_turns(
            sizes.runs,
            lambda: load_model(single, sizes, streams=2).rate,
            lambda: load_model(pool, sizes, streams=2).rate,
        )
    return Figure(
        title=f"pool: two streams of {model.name} at once, two threads in all",
        series=[
            Series("A, one worker of two threads", "tokens/s", alone, 2),
            Series("B, two workers of one thread", "tokens/s", pooled, 2),
            Series("B/A", "", ratios(pooled, alone), 3, Aim("more than", 1.0)),
        ],
        tokens=2 * 2 * sizes.runs * sizes.decode_tokens,
    )


MEASUREMENTS: dict[str, Callable[[Job], Figure]] = {
    "front": measure_front,
    "latency": measure_latency,
    "ctransformers": measure_ctransformers,
    "pool": measure_pool,
    "llama": measure_llama,
    "llama-deep": measure_llama_deep,
    "llama-small": measure_llama_small,
    "stall": measure_stall,
    "leave": measure_leave,
    "step": measure_step,
    "engine": measure_engine,
    "again": measure_again,
    "chats": measure_chats,
    "new": measure_new,
}


# ---------------------------------------------------------------- what they share


def serve_echo(tokens: int, *options: str, stamps: Path | None = None) -> ServerProcess:
    """A server of the echo engine whose context has room for so many tokens."""
    context = len(ECHO["prompt"].encode()) + tokens
    return tokenflume("--engine", "echo", "-n", str(context), *options, stamps=stamps)


def serve_model(job: Job, model: Path, *, threads: int, workers: int) -> ServerProcess:
    """A server of the model on ctransformers."""
    sizes = {"-t": threads, "--workers": workers, "-n": job.sizes.context}
    options = [str(part) for option in sizes.items() for part in option]
    return tokenflume("--engine", "ctransformers", "-m", str(model), *options)


def load_model(server: ServerProcess, sizes: Sizes, *, streams: int) -> Load:
    return run_streams(server.port, PROSE, streams=streams, tokens=sizes.decode_tokens)


def tokens_a_chunk(load: Load) -> float:
    """How many tokens of a stream the server sent at once: more than one when it is behind."""
    return load.tokens / load.chunks


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


def say(line: str) -> None:
    """Progress, which is no part of the report."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def make_job(options: argparse.Namespace, machine: Machine, scratch: Path) -> Job:
    sizes = QUICK if options.quick else FULL
    both = given(shape=options.shape, kind=options.type)
    llama = given(tokens=options.tokens, requests=options.requests)
    others = given(runs=options.runs, decode_tokens=options.tokens)
    return Job(
        sizes=dataclasses.replace(
            sizes, **both, **others, llama=dataclasses.replace(sizes.llama, **both, **llama)
        ),
        machine=machine,
        threads=options.threads,
        given_model=options.model,
        models=options.models,
        llama_server=options.llama_server,
        scratch=scratch,
    )


def given(**options: Any) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value is not None}


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
    add = parser.add_argument_group("all but front and latency").add_argument
    add(
        "-m",
        "--model",
        type=Path,
        metavar="FILE",
        help="a GGUF model to take; llama-small has its own",
    )
    add("--shape", help=f"else make_model.py's shape to take (default: {FULL.shape})")
    add(
        "--type",
        help=f"and the type of its matrices (default: {FULL.kind}; against llama-server"
        f" {FULL.llama.kind})",
    )
    add(
        "--models",
        type=Path,
        metavar="DIR",
        default=MODELS,
        help="where the made models are (default: %(default)s)",
    )
    add(
        "--tokens",
        type=at_least_two,
        metavar="N",
        help=f"tokens of an answer (default: {FULL.decode_tokens}; against llama-server"
        f" {FULL.llama.tokens})",
    )
    add(
        "-t",
        "--threads",
        type=positive,
        metavar="N",
        help="threads (default: the physical cores that may be used; against llama-server"
        f" {FULL.llama.threads})",
    )
    add = parser.add_argument_group("against llama-server").add_argument
    add(
        "--llama-server",
        type=Path,
        metavar="PATH",
        help="the binary, which build_llama_server.py makes; without it they are skipped",
    )
    add(
        "--requests",
        type=positive,
        metavar="N",
        help=f"requests of each stream, in a row (default: {FULL.llama.requests})",
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
