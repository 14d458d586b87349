"""The figures that compare with llama-server: the same load on both servers, in turn.

Both run the same llama.cpp (see build_llama_server), with the same model, CPUs, threads, slots and
context of a slot, and with their own defaults for all other settings. Both get the same random
prompts with the same sampling. An idle server takes no CPU time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.figures import Aim, Figure, Series
from scripts.bench.job import Job, LlamaSizes, Skipped, ratios, take_turns
from scripts.bench.loads import SILENCE_S, Load, completed, longest_pause, run_in_rows, start
from scripts.bench.models import make_model
from scripts.bench.servers import llama_server, tokenflume
from scripts.bench.targets import RandomRequests, llama_target, our_target
from scripts.load.client import Client
from scripts.load.errors import MeasurementError
from scripts.load.interrupt import new_runner
from scripts.load.target import Target
from scripts.report.text import count
from shared.errors import ConfigurationError
from workers.machine.topology import make_plan

NEEDS_LLAMA_SERVER = "needs --llama-server PATH, which scripts.bench.build_llama_server builds"
SEED = 1
WARM_TOKENS = 10
"""Tokens after which a stream counts as decoding."""
LONG_TOKENS = 8
"""Length of the answer to a long prompt, in tokens."""
ROUNDING = 256
"""llama-server rounds the context of a slot up to a multiple of this."""


@dataclass(frozen=True)
class Pair:
    """The two servers, and the random requests for each, which are the same."""

    sizes: LlamaSizes
    llama: Target
    ours: Target
    llama_requests: RandomRequests
    our_requests: RandomRequests


@contextlib.contextmanager
def serve_both(job: Job, model: Path, *, threads: int, slots: int, context: int) -> Iterator[Pair]:
    """llama-server and tokenflume with this model, and `context` tokens for each slot.

    Raises Skipped without a llama-server or with too few CPUs, MeasurementError.
    """
    if job.llama_server is None:
        raise Skipped(NEEDS_LLAMA_SERVER)
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
            llama=llama_target(llama.url),
            ours=our_target(ours.url),
            llama_requests=RandomRequests(SEED),
            our_requests=RandomRequests(SEED),
        )


# ---------------------------------------------------------------- llama, llama-deep, llama-small


def measure_llama(job: Job) -> Figure:
    """Tokens per second of several numbers of streams."""
    sizes = job.sizes.llama
    model = job.model(sizes.shape, sizes.kind)
    threads = job.threads or sizes.threads
    aims = {1: Aim("at least", 1.0)}
    others = Aim("at least", 1.15)
    rounds = {streams: aims.get(streams, others) for streams in sizes.streams}
    return compare_rates("llama", job, model, threads, rounds, sizes)


def measure_llama_deep(job: Job) -> Figure:
    """The same with long prompts, so that every token attends to many others."""
    sizes = job.sizes.llama
    model = job.model(sizes.shape, sizes.kind)
    threads = job.threads or sizes.threads
    rounds = {sizes.deep_streams: Aim("at least", 1.15)}
    deep = dataclasses.replace(sizes, words=sizes.deep_words, requests=1, tokens=2 * sizes.tokens)
    return compare_rates("llama-deep", job, model, threads, rounds, deep)


def measure_llama_small(job: Job) -> Figure:
    """The same with a small model, where everything but the matrices counts."""
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
                functools.partial(run_load, pair.llama, pair.llama_requests, sizes, streams),
                functools.partial(run_load, pair.ours, pair.our_requests, sizes, streams),
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


def run_load(target: Target, requests: RandomRequests, sizes: LlamaSizes, streams: int) -> Load:
    """Run `streams` concurrent clients, each with its requests one after another."""
    rows = [
        [requests.draw(sizes.words, sizes.tokens) for _ in range(sizes.requests)]
        for _ in range(streams)
    ]
    return run_in_rows(target, rows)


# ---------------------------------------------------------------- stall


def measure_stall(job: Job) -> Figure:
    """How a long prompt delays streams that decode, and how they delay it."""
    sizes = job.sizes.llama
    model = job.model(sizes.shape, sizes.kind)
    threads, slots = job.threads or sizes.threads, sizes.decoding + 1
    with serve_both(job, model, threads=threads, slots=slots, context=sizes.long_context) as pair:
        a, b = take_turns(
            job.sizes.runs,
            lambda: stall_once(pair.llama, pair.llama_requests, sizes),
            lambda: stall_once(pair.ours, pair.our_requests, sizes),
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
    """The result of one long prompt."""

    pause_ms: float
    """Longest time between two tokens of a decoding stream, until the long prompt is processed."""
    first_ms: float
    """Time from the sending of the long prompt to its first token."""
    tokens: int
    """Tokens that were received of all streams."""


def stall_once(target: Target, requests: RandomRequests, sizes: LlamaSizes) -> Stall:
    """Let streams decode, send a long prompt, and disconnect the streams when it is processed.

    Raises MeasurementError.
    """
    with new_runner() as runner:
        stall = runner.run(_stall_once(target, requests, sizes))
    settle(target, requests)
    return stall


async def _stall_once(target: Target, requests: RandomRequests, sizes: LlamaSizes) -> Stall:
    endless = sizes.long_context // 2
    async with Client(target, SILENCE_S) as client, AsyncExitStack() as stack:
        decoding = [
            await start(client, stack, requests.draw(sizes.words, endless))
            for _ in range(sizes.decoding)
        ]
        for stream in decoding:
            await stream.until_tokens(WARM_TOKENS)
        sent = time.monotonic()
        long = await start(client, stack, requests.draw(sizes.long_words, LONG_TOKENS))
        # Wait for its end, so that the others have had a token after its first.
        await long.over
        completed([long.record])
        for stream in decoding:
            if stream.over.done():
                raise stream.record.failure or MeasurementError(
                    "a decoding stream was over before the long prompt's answer"
                )
    first = long.record.arrivals[0]
    pauses = [longest_pause(stream.record.arrivals, sent, first) for stream in decoding]
    return Stall(
        pause_ms=max(pauses) * 1000,
        first_ms=(first - sent) * 1000,
        tokens=client.tokens,
    )


def settle(target: Target, requests: RandomRequests) -> None:
    """Wait until a server has noticed disconnected clients, which it does in its next steps."""
    run_in_rows(target, [[requests.draw(1, WARM_TOKENS)]])


# ---------------------------------------------------------------- leave


def measure_leave(job: Job) -> Figure:
    """The time until the only slot is free after its client disconnects in prefill."""
    sizes = job.sizes.llama
    model = job.model(sizes.shape, sizes.kind)
    threads = job.threads or sizes.threads
    with serve_both(job, model, threads=threads, slots=1, context=sizes.long_context) as pair:
        a, b = take_turns(
            job.sizes.runs,
            lambda: leave_once(pair.llama, pair.llama_requests, sizes),
            lambda: leave_once(pair.ours, pair.our_requests, sizes),
        )
    return Figure(
        title=f"leave: a client of {model.name} disconnects {sizes.leave_s:g} s after a prompt of"
        f" {sizes.long_words} words, {count(threads, 'thread')}",
        series=[
            Series("slot free: A, llama-server", "ms", a, 1),
            Series("slot free: B, tokenflume", "ms", b, 1, Aim("at most", 300)),
        ],
        tokens=2 * 2 * job.sizes.runs,
        notes=[describe_build()],
    )


def leave_once(target: Target, requests: RandomRequests, sizes: LlamaSizes) -> float:
    """Milliseconds from the client's disconnection until the slot is free.

    It is the TTFT of a tiny request that is sent at that moment, less the TTFT of such a request
    on an idle server. Raises MeasurementError.
    """
    alone = run_in_rows(target, [[requests.draw(1, 1)]]).seconds
    with new_runner() as runner:
        return (runner.run(_leave_once(target, requests, sizes)) - alone) * 1000


async def _leave_once(target: Target, requests: RandomRequests, sizes: LlamaSizes) -> float:
    """Seconds from the disconnection to the first token of the next request."""
    long = dataclasses.replace(
        requests.draw(sizes.long_words, LONG_TOKENS), cancel_after_s=sizes.leave_s
    )
    async with Client(target, SILENCE_S) as client:
        record = await client.ask(long)
        if record.failure is not None:
            raise record.failure
        if record.arrivals:
            raise MeasurementError("the prompt was processed too early: it needs more words")
        following = await client.ask(requests.draw(1, 1))
    completed([following])
    return following.arrivals[-1] - record.ended


# ---------------------------------------------------------------- shared parts


def room(tokens: int) -> int:
    """The context of a slot for this number of tokens, with the rounding of both servers."""
    return -(-(tokens + 2) // ROUNDING) * ROUNDING


def describe_build() -> str:
    """The llama.cpp that tokenflume runs, from which llama-server should be built too."""
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return "llama-cpp-python is not installed"
    return f"B runs the llama.cpp of llama-cpp-python {version}; A should be built from it"
