"""How much of a prompt is processed a second time: again, after a restart, in chats that go on."""

from __future__ import annotations

import http.client
import itertools
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.comparison import describe_build
from scripts.bench.figures import Aim, Figure, Series, count
from scripts.bench.job import Job, LlamaSizes, ratios, take_turns
from scripts.bench.loads import run_in_rows
from scripts.bench.targets import OPENAI, STREAM, Ask, Asks, Target
from scripts.load.errors import BenchError, Skipped
from scripts.load.server import HOST, OK, ServerProcess, llama_server, tokenflume
from shared.errors import ConfigurationError
from workers.machine.topology import make_plan

SEED = 7
ANSWER = 8
"""Tokens of an answer where only the prompt counts."""
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Reply:
    """An answer, read to its end."""

    text: str
    first_s: float
    """From the sending to the first token."""
    prompt_tokens: int
    processed: int
    """Of them, those that were not there already."""


def our_reply(port: int, prompt: str, tokens: int, cache: int = 0) -> Reply:
    fields = STREAM.fields(Ask(prompt, tokens, SEED)) | {"cache": cache}
    first_s, lines = _post(port, STREAM.path, fields, "application/x-ndjson")
    *pieces, last = map(json.loads, lines)
    usage = last["usage"]
    return Reply(
        "".join(piece["token"] for piece in pieces),
        first_s,
        usage["prompt_tokens"],
        usage["prompt_tokens"] - usage["cached_tokens"],
    )


def their_reply(port: int, prompt: str, tokens: int) -> Reply:
    fields = OPENAI.fields(Ask(prompt, tokens, SEED)) | {"cache_prompt": True}
    first_s, lines = _post(port, OPENAI.path, fields, "text/event-stream")
    events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    timings = next(event["timings"] for event in reversed(events) if "timings" in event)
    return Reply(
        "".join(choice["text"] for event in events for choice in event["choices"]),
        first_s,
        timings["cache_n"] + timings["prompt_n"],
        timings["prompt_n"],
    )


def _post(port: int, path: str, fields: dict[str, Any], accept: str) -> tuple[float, list[bytes]]:
    """Seconds to the answer's first line, and its lines that are not empty. BenchError."""
    connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    try:
        sent = time.monotonic()
        connection.request("POST", path, json.dumps(fields), {"Accept": accept})
        response = connection.getresponse()
        if response.status != OK:
            raise BenchError(f"{path} answered {response.status}: {response.read()!r:.200}")
        lines = [response.readline()]
        first_s = time.monotonic() - sent
        lines += response
        return first_s, [line for line in lines if line.strip()]
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"{path} was cut: {error}") from None
    finally:
        connection.close()


# ---------------------------------------------------------------- again


def measure_again(job: Job) -> Figure:
    """A prompt sent again, at once and after a restart, over its first time."""
    sizes, asks, scratch = job.sizes.llama, Asks(SEED), job.scratch / "prompts"
    ids = itertools.count(1)
    runs = [_again(job, asks, scratch, next(ids)) for _ in range(job.sizes.runs)]
    first, again, restarted = ([run[i] * 1000 for run in runs] for i in range(3))
    return Figure(
        title=f"again: the first token of a prompt of {sizes.long_words} words that comes again",
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
        tokens=3 * job.sizes.runs * ANSWER,
    )


def _again(job: Job, asks: Asks, folder: Path, prompt_id: int) -> tuple[float, float, float]:
    """Seconds to the first token: the first time, again, and after a restart."""
    prompt = asks.draw(job.sizes.llama.long_words, ANSWER).prompt
    flags = ("--cache-dir", str(folder))
    with serve(job, 1, *flags) as server:
        first = our_reply(server.port, prompt, ANSWER, prompt_id)
        again = our_reply(server.port, prompt, ANSWER)
    with serve(job, 1, *flags) as server:
        restarted = our_reply(server.port, prompt, ANSWER, prompt_id)
    if first.processed < first.prompt_tokens - 1:
        raise BenchError("the first time was none")
    if max(again.processed, restarted.processed) > 1:
        raise BenchError("the prompt was processed again")
    return first.first_s, again.first_s, restarted.first_s


# ---------------------------------------------------------------- chats


def measure_chats(job: Job) -> Figure:
    """Chats that share a system prompt: tokens that were processed, over those that were new."""
    sizes = job.sizes.llama
    if job.llama_server is None:
        raise Skipped("needs --llama-server PATH, which build_llama_server.py makes")
    context = sizes.system_words + sizes.turns * (sizes.words + 3 * ANSWER) + 512
    program, model = job.llama_server, job.model(sizes.shape, sizes.kind)
    with (
        llama_server(
            program, model, cpus=cpus_of(job), slots=sizes.chats, context=context,
            saves_prompts=True,
        ) as llama,
        serve(job, sizes.chats, "-n", str(context)) as ours,
    ):  # fmt: skip
        a, b = take_turns(
            job.sizes.runs,
            _Chats(sizes, lambda prompt: their_reply(llama.port, prompt, ANSWER)),
            _Chats(sizes, lambda prompt: our_reply(ours.port, prompt, ANSWER)),
        )
    replies = 2 * job.sizes.runs * sizes.chats * sizes.turns
    return Figure(
        title=f"chats: {count(sizes.chats, 'chat')} of {count(sizes.turns, 'turn')} at once, a"
        f" system prompt of {sizes.system_words} words",
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
        tokens=replies * ANSWER,
        notes=[describe_build()],
    )


@dataclass(frozen=True)
class ChatsRun:
    """All chats to their ends."""

    seconds: float
    processed: int
    new: int
    """Tokens of the system prompt, and of each turn those that follow the prompt before."""

    @property
    def ratio(self) -> float:
        return self.processed / self.new


class _Chats:
    """Calling it runs the chats, each time with a new system prompt; the same for each server."""

    def __init__(self, sizes: LlamaSizes, reply: Callable[[str], Reply]) -> None:
        self._sizes = sizes
        self._reply = reply
        self._asks = Asks(SEED)

    def __call__(self) -> ChatsRun:
        sizes = self._sizes
        system = self._asks.draw(sizes.system_words, 1).prompt
        words = [
            [self._asks.draw(sizes.words, 1).prompt for _ in range(sizes.turns)]
            for _ in range(sizes.chats)
        ]
        started = time.monotonic()
        with ThreadPoolExecutor(sizes.chats) as clients:
            chats = list(clients.map(lambda turns: self._run(system, turns), words))
        new = sizes.system_words
        processed = 0
        for replies in chats:
            processed += sum(reply.processed for reply in replies)
            new += replies[-1].prompt_tokens - sizes.system_words
        return ChatsRun(time.monotonic() - started, processed, new)

    def _run(self, system: str, turns: list[str]) -> list[Reply]:
        text, replies = system, []
        for turn in turns:
            text = f"{text} {turn}"
            replies.append(self._reply(text))
            text += replies[-1].text
        return replies


# ---------------------------------------------------------------- new


def measure_new(job: Job) -> Figure:
    """What reuse costs where nothing can be reused: requests that share nothing, one by one."""
    sizes = job.sizes.llama

    def rate(server: ServerProcess, asks: Asks) -> float:
        rows = [[asks.draw(sizes.words, ANSWER) for _ in range(sizes.new_requests)]]
        return sizes.new_requests / run_in_rows(Target(server.port, STREAM).open, rows).seconds

    with serve(job, 1, "--cache-limit", "0") as without, serve(job, 1) as server:
        a, b = take_turns(
            job.sizes.runs, _with(rate, without, Asks(SEED)), _with(rate, server, Asks(SEED))
        )
    return Figure(
        title=f"new: requests of {sizes.words} words in one slot that share nothing",
        series=[
            Series("A, nothing is saved", "requests/s", a, 2),
            Series("B, all that the slot gives up is", "requests/s", b, 2),
            Series("B/A", "", ratios(b, a), 3, Aim("at least", 0.98)),
        ],
        tokens=2 * job.sizes.runs * sizes.new_requests * ANSWER,
    )


def _with(
    rate: Callable[[ServerProcess, Asks], float], server: ServerProcess, asks: Asks
) -> Callable[[], float]:
    return lambda: rate(server, asks)


# ---------------------------------------------------------------- what they share


def cpus_of(job: Job) -> tuple[int, ...]:
    try:
        threads = job.threads or job.sizes.llama.threads
        (cpus,) = make_plan(job.machine, batches=True, threads=threads, workers=1).workers
    except ConfigurationError as error:
        raise Skipped(str(error)) from None
    return cpus


def serve(job: Job, slots: int, *flags: str) -> ServerProcess:
    """tokenflume with llama.cpp and one worker."""
    sizes = job.sizes.llama
    threads = str(len(cpus_of(job)))
    model = str(job.model(sizes.shape, sizes.kind))
    options = ["--engine", "llama_cpp", "-m", model, "--workers", "1", "-t", threads]
    return tokenflume(*options, "--slots", str(slots), "-n", str(sizes.long_context), *flags)
