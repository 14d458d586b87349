"""The figures `again`, `chats` and `new`: how much of a prompt is processed a second time."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.bench.comparison import NEEDS_LLAMA_SERVER, describe_build
from scripts.bench.figures import Aim, Figure, Series
from scripts.bench.job import Job, LlamaSizes, Skipped, ratios, take_turns
from scripts.bench.loads import completed, run_in_rows
from scripts.bench.servers import llama_server, tokenflume
from scripts.bench.targets import SAMPLING, RandomRequests, llama_target, our_target
from scripts.load.client import Client
from scripts.load.dialects import STREAMING
from scripts.load.errors import MeasurementError
from scripts.load.interrupt import new_runner
from scripts.load.request import Request
from scripts.load.server import ServerProcess
from scripts.load.target import Target
from scripts.report.text import count
from shared.errors import ConfigurationError
from workers.machine.topology import make_plan

SEED = 7
ANSWER_TOKENS = 8
"""Length of an answer, where only the prompt counts."""
TIMEOUT_S = 600.0
"""Longest silence: until the first token of a long prompt on a slow machine."""


@dataclass(frozen=True)
class Reply:
    """A complete answer."""

    text: str
    first_s: float
    """Time to first token, in seconds."""
    prompt_tokens: int
    processed: int
    """Prompt tokens that were not cached."""


async def ask(client: Client, request: Request) -> Reply:
    """The answer to a request. Raises MeasurementError."""
    async with client.connect(replace(request, keeps_text=True)) as exchange:
        sent = time.monotonic()
        exchange.send()
        await exchange.over
    (record,) = completed([exchange.record])
    usage = record.usage
    if usage is None or usage.prompt is None or usage.cached is None:
        raise MeasurementError("the server does not report how many prompt tokens were cached")
    first_s = record.arrivals[0] - sent
    return Reply(record.text, first_s, usage.prompt, usage.prompt - usage.cached)


def counting_target(server: ServerProcess) -> Target:
    """tokenflume's POST /stream, in the format that reports cached tokens."""
    return Target(server.url, STREAMING["stream"], fields=SAMPLING)


# ---------------------------------------------------------------- again


def measure_again(job: Job) -> Figure:
    """The TTFT of a repeated prompt, at once and after a restart, over that of the first time."""
    sizes, requests, folder = job.sizes.llama, RandomRequests(SEED), job.scratch / "prompts"
    ids = itertools.count(1)
    runs = [_again(job, requests, folder, next(ids)) for _ in range(job.sizes.runs)]
    first, again, restarted = ([run[i] * 1000 for run in runs] for i in range(3))
    return Figure(
        title=f"again: TTFT of a repeated prompt of {sizes.long_words} words",
        series=[
            Series("the first time", "ms", first),
            Series("again", "ms", again, 1),
            Series("again, over the first", "", ratios(again, first), 4, Aim("at most", 0.05)),
            Series("after a restart, with `cache`", "ms", restarted, 1),
            Series(
                "after a restart, over the first",
                "",
                ratios(restarted, first),
                4,
                Aim("at most", 0.10),
            ),
        ],
        tokens=3 * job.sizes.runs * ANSWER_TOKENS,
    )


def _again(
    job: Job, requests: RandomRequests, folder: Path, prompt_id: int
) -> tuple[float, float, float]:
    """Seconds to the first token: the first time, again, and after a restart."""
    plain = requests.draw(job.sizes.llama.long_words, ANSWER_TOKENS)
    saved = replace(plain, fields={"cache": prompt_id})
    options = ("--cache-dir", str(folder))
    with serve(job, 1, *options) as server:
        first, again = ask_in_turn(server, [saved, plain])
    with serve(job, 1, *options) as server:
        (restarted,) = ask_in_turn(server, [saved])
    if first.processed < first.prompt_tokens - 1:
        raise MeasurementError("the prompt was cached before the first time")
    if max(again.processed, restarted.processed) > 1:
        raise MeasurementError("the prompt was processed again")
    return first.first_s, again.first_s, restarted.first_s


def ask_in_turn(server: ServerProcess, requests: Sequence[Request]) -> list[Reply]:
    """The answers of tokenflume to requests that are sent one after another."""

    async def run() -> list[Reply]:
        async with Client(counting_target(server), TIMEOUT_S) as client:
            return [await ask(client, request) for request in requests]

    with new_runner() as runner:
        return runner.run(run())


# ---------------------------------------------------------------- chats


def measure_chats(job: Job) -> Figure:
    """Chats that share a system prompt: prompt tokens that were processed, over new ones."""
    sizes = job.sizes.llama
    if job.llama_server is None:
        raise Skipped(NEEDS_LLAMA_SERVER)
    context = sizes.system_words + sizes.turns * (sizes.words + 3 * ANSWER_TOKENS) + 512
    program, model = job.llama_server, job.model(sizes.shape, sizes.kind)
    with (
        llama_server(
            program, model, cpus=cpus_of(job), slots=sizes.chats, context=context,
            saves_prompts=True,
        ) as llama,
        serve(job, sizes.chats, "-n", str(context)) as ours,
    ):  # fmt: skip
        theirs = llama_target(llama.url)
        theirs = replace(theirs, fields={**theirs.fields, "cache_prompt": True})
        a, b = take_turns(
            job.sizes.runs, _Chats(sizes, theirs), _Chats(sizes, counting_target(ours))
        )
    replies = 2 * job.sizes.runs * sizes.chats * sizes.turns
    return Figure(
        title=f"chats: {count(sizes.chats, 'concurrent chat')} of {count(sizes.turns, 'turn')},"
        f" a system prompt of {sizes.system_words} words",
        series=[
            Series("seconds: A, llama-server", "s", [run.seconds for run in a], 1),
            Series("seconds: B, tokenflume", "s", [run.seconds for run in b], 1),
            Series("processed / new: A, llama-server", "", [run.ratio for run in a], 3),
            Series(
                "processed / new: B, tokenflume",
                "",
                [run.ratio for run in b],
                3,
                Aim("at most", 1.1),
            ),
        ],
        tokens=replies * ANSWER_TOKENS,
        notes=[describe_build()],
    )


@dataclass(frozen=True)
class ChatsRun:
    """All chats, to their ends."""

    seconds: float
    processed: int
    """Prompt tokens that were not cached."""
    new: int
    """Tokens of the system prompt, and of each turn those that follow the turn before."""

    @property
    def ratio(self) -> float:
        return self.processed / self.new


class _Chats:
    """Runs the chats on a server, each time with a new system prompt, the same for each server."""

    def __init__(self, sizes: LlamaSizes, target: Target) -> None:
        self._sizes = sizes
        self._target = target
        self._requests = RandomRequests(SEED)

    def __call__(self) -> ChatsRun:
        sizes, requests = self._sizes, self._requests
        system = requests.draw(sizes.system_words, 1).prompt
        chats = [
            [requests.draw(sizes.words, ANSWER_TOKENS) for _ in range(sizes.turns)]
            for _ in range(sizes.chats)
        ]
        started = time.monotonic()
        with new_runner() as runner:
            replies = runner.run(self._run(system, chats))
        seconds = time.monotonic() - started
        new = sizes.system_words
        new += sum(chat[-1].prompt_tokens - sizes.system_words for chat in replies)
        processed = sum(reply.processed for chat in replies for reply in chat)
        return ChatsRun(seconds, processed, new)

    async def _run(self, system: str, chats: Sequence[Sequence[Request]]) -> list[list[Reply]]:
        async with Client(self._target, TIMEOUT_S) as client:
            return await asyncio.gather(*(self._chat(client, system, chat) for chat in chats))

    async def _chat(self, client: Client, system: str, turns: Sequence[Request]) -> list[Reply]:
        text, replies = system, []
        for turn in turns:
            text = f"{text} {turn.prompt}"
            replies.append(await ask(client, replace(turn, prompt=text)))
            text += replies[-1].text
        return replies


# ---------------------------------------------------------------- new


def measure_new(job: Job) -> Figure:
    """The cost of reuse where nothing can be reused: requests that share nothing, in one slot."""
    sizes = job.sizes.llama
    with serve(job, 1, "--cache-limit", "0") as without, serve(job, 1) as server:
        a, b = take_turns(job.sizes.runs, _rate_of(sizes, without), _rate_of(sizes, server))
    return Figure(
        title=f"new: requests of {sizes.words} words in one slot that share nothing",
        series=[
            Series("A, evicted states are dropped", "requests/s", a, 2),
            Series("B, evicted states are saved", "requests/s", b, 2),
            Series("B/A", "", ratios(b, a), 3, Aim("at least", 0.98)),
        ],
        tokens=2 * job.sizes.runs * sizes.new_requests * ANSWER_TOKENS,
    )


def _rate_of(sizes: LlamaSizes, server: ServerProcess) -> Callable[[], float]:
    """Measures requests per second."""
    requests = RandomRequests(SEED)

    def rate() -> float:
        row = [requests.draw(sizes.words, ANSWER_TOKENS) for _ in range(sizes.new_requests)]
        return sizes.new_requests / run_in_rows(our_target(server.url), [row]).seconds

    return rate


# ---------------------------------------------------------------- shared parts


def cpus_of(job: Job) -> tuple[int, ...]:
    """The CPUs of one worker. Raises Skipped if there are too few."""
    try:
        threads = job.threads or job.sizes.llama.threads
        (cpus,) = make_plan(job.machine, batches=True, threads=threads, workers=1).workers
    except ConfigurationError as error:
        raise Skipped(str(error)) from None
    return cpus


def serve(job: Job, slots: int, *options: str) -> ServerProcess:
    """tokenflume with llama.cpp and one worker."""
    sizes = job.sizes.llama
    threads = str(len(cpus_of(job)))
    model = str(job.model(sizes.shape, sizes.kind))
    fixed = ["--engine", "llama_cpp", "-m", model, "--workers", "1", "-t", threads]
    return tokenflume(*fixed, "--slots", str(slots), "-n", str(sizes.long_context), *options)
