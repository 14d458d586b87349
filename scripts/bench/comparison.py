"""tokenflume against llama-server: the same load on both, in turns, on one model and its CPUs.

Both run the same llama.cpp (build_llama_server.py), with the same threads, slots and context for
each slot, and their own defaults for all else. Both are asked the same random prompts with the
same sampling; an idle server takes no CPU time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.figures import Aim, Figure, Series, count
from scripts.bench.job import Job, LlamaSizes, ratios, take_turns
from scripts.bench.loads import Clients, Load, longest_pause, run_in_rows
from scripts.bench.models import make_model
from scripts.bench.targets import OPENAI, STREAM, Asks, Target
from scripts.load.errors import BenchError, Skipped
from scripts.load.server import llama_server, tokenflume
from shared.errors import ConfigurationError
from workers.machine.topology import make_plan

SEED = 1
WARM_TOKENS = 10
"""That a stream must have had before it counts as decoding."""
LONG_TOKENS = 8
"""Of the answer to a long prompt."""
ROUNDING = 256
"""llama-server rounds the context of a slot up to a multiple of it."""


@dataclass(frozen=True)
class Pair:
    """The two servers, and the random requests of each: the same for both."""

    sizes: LlamaSizes
    llama: Target
    ours: Target
    llama_asks: Asks
    our_asks: Asks


@contextlib.contextmanager
def serve_both(job: Job, model: Path, *, threads: int, slots: int, context: int) -> Iterator[Pair]:
    """llama-server and tokenflume with that model, and so many tokens for each slot. Skipped."""
    if job.llama_server is None:
        raise Skipped("needs --llama-server PATH, which build_llama_server.py makes")
    try:
        (cpus,) = make_plan(job.machine, batches=True, threads=threads, workers=1).workers
    except ConfigurationError as error:
        raise Skipped(str(error)) from None
    options = ["--engine", "llama_cpp", "-m", str(model), "--workers", "1"]
    sizes = {"-t": threads, "--slots": slots, "-n": context}
    options += [str(part) for option in sizes.items() for part in option]
    with (
        llama_server(job.llama_server, model, cpus=cpus, slots=slots, context=context) as llama,
        tokenflume(*options) as ours,
    ):
        yield Pair(
            sizes=job.sizes.llama,
            llama=Target(llama.port, OPENAI),
            ours=Target(ours.port, STREAM),
            llama_asks=Asks(SEED),
            our_asks=Asks(SEED),
        )


# ---------------------------------------------------------------- llama, llama-small


def measure_llama(job: Job) -> Figure:
    """Tokens per second of some numbers of streams."""
    sizes = job.sizes.llama
    model = job.model(sizes.shape, sizes.kind)
    threads = job.threads or sizes.threads
    aims = {1: Aim("at least", 1.0)}
    others = Aim("at least", 1.15)
    rounds = {streams: aims.get(streams, others) for streams in sizes.streams}
    return compare_rates("llama", job, model, threads, rounds, sizes)


def measure_llama_deep(job: Job) -> Figure:
    """The same with long prompts, so that every token looks back at many others."""
    sizes = job.sizes.llama
    model = job.model(sizes.shape, sizes.kind)
    threads = job.threads or sizes.threads
    rounds = {sizes.deep_streams: Aim("at least", 1.15)}
    deep = dataclasses.replace(sizes, words=sizes.deep_words, requests=1, tokens=2 * sizes.tokens)
    return compare_rates("llama-deep", job, model, threads, rounds, deep)


def measure_llama_small(job: Job) -> Figure:
    """The same with a model so small that all that is no matrix counts."""
    sizes = job.sizes.llama
    model = make_model(job.models, sizes.small_shape, "F16")
    rounds = {sizes.small_streams: Aim("at least", 1.3)}
    return compare_rates("llama-small", job, model, 1, rounds, sizes)


def compare_rates(
    name: str, job: Job, model: Path, threads: int, rounds: dict[int, Aim], sizes: LlamaSizes
) -> Figure:
    """A figure with three series for each number of streams, the last with its aim."""
    runs = job.sizes.runs
    series: list[Series] = []
    tokens = 0
    context = room(sizes.words + sizes.tokens)
    with serve_both(job, model, threads=threads, slots=max(rounds), context=context) as pair:
        for streams, aim in rounds.items():
            theirs, ours = take_turns(
                runs,
                functools.partial(run_load, pair.llama, pair.llama_asks, sizes, streams),
                functools.partial(run_load, pair.ours, pair.our_asks, sizes, streams),
            )
            tokens += sum(load.tokens for load in (*theirs, *ours))
            label = count(streams, "stream")
            a, b = [load.rate for load in theirs], [load.rate for load in ours]
            series += [
                Series(f"{label}: A, llama-server", "tokens/s", a, 2),
                Series(f"{label}: B, tokenflume", "tokens/s", b, 2),
                Series(f"{label}: B/A", "", ratios(b, a), 3, aim),
            ]
    requests = (
        f"{count(sizes.requests, 'request')} a stream,"
        f" {sizes.words} words in and {sizes.tokens} tokens out each"
    )
    return Figure(
        title=f"{name}: {model.name}, {count(threads, 'thread')}, {requests}",
        series=series,
        tokens=tokens,
        notes=[describe_build()],
    )


def run_load(target: Target, asks: Asks, sizes: LlamaSizes, streams: int) -> Load:
    """So many clients at once, each with its requests one after the other."""
    rows = [
        [asks.draw(sizes.words, sizes.tokens) for _ in range(sizes.requests)]
        for _ in range(streams)
    ]
    return run_in_rows(target.open, rows)


# ---------------------------------------------------------------- stall


def measure_stall(job: Job) -> Figure:
    """What a long prompt does to streams that decode, and what they do to it."""
    sizes = job.sizes.llama
    model = job.model(sizes.shape, sizes.kind)
    threads, slots = job.threads or sizes.threads, sizes.decoding + 1
    with serve_both(job, model, threads=threads, slots=slots, context=sizes.long_context) as pair:
        a, b = take_turns(
            job.sizes.runs,
            lambda: stall_once(pair.llama, pair.llama_asks, sizes),
            lambda: stall_once(pair.ours, pair.our_asks, sizes),
        )
    return Figure(
        title=f"stall: {count(sizes.decoding, 'stream')} of {model.name} decode while a prompt of"
        f" {sizes.long_words} words arrives, {count(threads, 'thread')}",
        series=[
            Series("longest pause: A, llama-server", "ms", [stall.pause_ms for stall in a]),
            Series(
                "longest pause: B, tokenflume",
                "ms",
                [stall.pause_ms for stall in b],
                aim=Aim("at most", 250),
            ),
            Series("first token: A, llama-server", "ms", [stall.first_ms for stall in a]),
            Series("first token: B, tokenflume", "ms", [stall.first_ms for stall in b]),
            Series(
                "first token: B/A",
                "",
                ratios([stall.first_ms for stall in b], [stall.first_ms for stall in a]),
                3,
                Aim("at most", 1.35),
            ),
        ],
        tokens=sum(stall.tokens for stall in (*a, *b)),
        notes=[describe_build()],
    )


@dataclass(frozen=True)
class Stall:
    """One arrival of a long prompt."""

    pause_ms: float
    """The longest time between two tokens of a decoding stream until the prompt is done."""
    first_ms: float
    """From the long prompt's sending to its first token."""
    tokens: int
    """That came of all streams."""


def stall_once(target: Target, asks: Asks, sizes: LlamaSizes) -> Stall:
    """Let streams decode, send a long prompt, and leave them when it is done. BenchError."""
    endless = sizes.long_context // 2
    with Clients() as clients:
        decoding = [
            clients.start(target.open(asks.draw(sizes.words, endless)))
            for _ in range(sizes.decoding)
        ]
        clients.read_until(lambda: all(stream.received >= WARM_TOKENS for stream in decoding))
        sent = time.monotonic()
        long = clients.start(target.open(asks.draw(sizes.long_words, LONG_TOKENS)))
        # The long one to its end, so that the others have had a token after its first.
        clients.read_until(lambda: long.is_over)
    if any(stream.is_over for stream in decoding):
        raise BenchError("a decoding stream was over before the long prompt's answer")
    settle(target, asks)
    first = long.arrivals()[0]
    pauses = [longest_pause(stream.arrivals(), sent, first) for stream in decoding]
    return Stall(
        pause_ms=max(pauses) * 1000,
        first_ms=(first - sent) * 1000,
        tokens=sum(stream.received for stream in (*decoding, long)),
    )


def settle(target: Target, asks: Asks) -> None:
    """Wait until a server has noticed that clients have left: it does when it steps on."""
    run_in_rows(target.open, [[asks.draw(1, WARM_TOKENS)]])


# ---------------------------------------------------------------- leave


def measure_leave(job: Job) -> Figure:
    """How soon the only slot is free when its client leaves in the middle of a long prompt."""
    sizes = job.sizes.llama
    model = job.model(sizes.shape, sizes.kind)
    threads = job.threads or sizes.threads
    with serve_both(job, model, threads=threads, slots=1, context=sizes.long_context) as pair:
        a, b = take_turns(
            job.sizes.runs,
            lambda: leave_once(pair.llama, pair.llama_asks, sizes),
            lambda: leave_once(pair.ours, pair.our_asks, sizes),
        )
    return Figure(
        title=f"leave: a client of {model.name} leaves {sizes.leave_s:g} s after a prompt of"
        f" {sizes.long_words} words, {count(threads, 'thread')}",
        series=[
            Series("slot free: A, llama-server", "ms", a, 1),
            Series("slot free: B, tokenflume", "ms", b, 1, Aim("at most", 300)),
        ],
        tokens=2 * 2 * job.sizes.runs,
        notes=[describe_build()],
    )


def leave_once(target: Target, asks: Asks, sizes: LlamaSizes) -> float:
    """Milliseconds from the leaving until the slot is free. BenchError.

    It is the time to the first token of a tiny request that is sent at that moment, less what
    such a request takes when nothing is in its way.
    """
    alone = run_in_rows(target.open, [[asks.draw(1, 1)]]).seconds
    with Clients() as clients:
        long = clients.start(target.open(asks.draw(sizes.long_words, LONG_TOKENS)))
        clients.read_for(sizes.leave_s)
        if long.received:
            raise BenchError("the prompt was done before its client left: it needs more words")
        clients.leave(long)
        return (run_in_rows(target.open, [[asks.draw(1, 1)]]).seconds - alone) * 1000


# ---------------------------------------------------------------- what they share


def room(tokens: int) -> int:
    """The context of a slot for so many tokens, as both servers have it."""
    return -(-(tokens + 2) // ROUNDING) * ROUNDING


def describe_build() -> str:
    """Which llama.cpp tokenflume runs; llama-server should be built from the same."""
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return "llama-cpp-python is not installed"
    return f"B runs the llama.cpp of llama-cpp-python {version}; A should be built from it"
