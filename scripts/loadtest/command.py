"""Put a load on a server that streams tokens, and say how it bears it.

    python -m scripts.loadtest http://127.0.0.1:8080
    python -m scripts.loadtest URL --streams 1,4,16 --duration 20 --report load.html
    python -m scripts.loadtest URL --rates 0.5,1,2 --prompt-words lognormal:100,0.8 --cancel 0.1
    python -m scripts.loadtest URL --dialect openai --compare URL2 --rounds 5

Closed loop (--streams): so many clients, each sends its next request when the last one is over.
Open loop (--rate): requests arrive by themselves, at random (a Poisson process), however many
are still running; a request's times count from the moment when it was to begin.
Several numbers, with commas, are a sweep: one load after the other.

TTFT           time to first token: from when the request was to begin, its connection included
ITL            inter-token latency: between two tokens of a stream, as they were read
end to end     from the request to the end of the answer
tokens/s       of all streams, of the time that counts: without ramp-up, warm-up and what runs on

Every answer is checked: status, type, order, end mark, counts. A stream that fails and was not
to be cancelled is reported by kind: HTTP status, no connection, cut, error event, timeout, wrong
content. The seed decides prompts, lengths, arrivals and cancels: the same command, the same load.

A server with a cache of prompts knows those of an earlier run with the same seed.

The load generator says when it may itself have been the bottleneck: it took more than 80 % of a
core, or its event loop was late. It reads and checks more than 20,000 tokens/s on one core, most
of them one at a time: 34,000 of 32 streams with a third of a core of an Intel Xeon (Emerald
Rapids), which it shares with the server; 28,000 of --dialect openai-chat. See for yourself, with
an engine that makes a token of each stream every half millisecond:

    echo '{"step_s": 0.0005}' > echo.json
    python -m server --engine echo -m echo.json -n 4096 -P 8080 &
    taskset -c 0 python -m scripts.loadtest http://127.0.0.1:8080 --streams 32 --tokens 1500

Exit status: 0 all streams were as they should be; 1 a stream failed; 2 bad options or files;
3 no server there, or one that speaks something else; 130 and 143 interrupted (SIGINT, SIGTERM),
after what was measured until then.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import uvloop

from scripts.bench.figures import describe_machine
from scripts.load.client import BadTarget, Client, Target
from scripts.load.errors import CONNECTION, OTHER_FORMAT, status_kind
from scripts.loadtest.html import report_html
from scripts.loadtest.options import Job, parse_arguments
from scripts.loadtest.report import Point, Report, point_table, report_json
from scripts.loadtest.run import Run, Shape, Turn, run_load, seed_of, turns, unless_stopped
from scripts.loadtest.summary import compare, summarize
from scripts.report.progress import show_progress
from workers.machine.cores import read_machine

FAILED = 1
NO_FILE = 2
NO_SERVER = 3
SIGNALLED = 128
SIGNALS = (signal.SIGINT, signal.SIGTERM)
HINTS = {
    status_kind(401): "--api-key or LOADTEST_API_KEY",
    status_kind(403): "--api-key or LOADTEST_API_KEY",
    status_kind(400): "--model, --fields, the lengths",
    status_kind(404): "the address, --dialect, --model",
    status_kind(405): "the address, --dialect",
    status_kind(422): "--model, --fields",
    OTHER_FORMAT: "the address, --dialect",
}
"""What to look at when a server refuses the first request, by the kind of failure."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    job = parse_arguments(__doc__, arguments)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # a connection is one
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(measure(job))
        except BadTarget as error:
            print(f"loadtest: {error}", file=sys.stderr)
            return NO_SERVER
        except OSError as error:
            print(f"loadtest: {error}", file=sys.stderr)
            return NO_FILE


@dataclass(slots=True)
class Interrupt:
    """The signal that ended the measurement, if one did."""

    number: int = 0
    event: asyncio.Event = field(default_factory=asyncio.Event)


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """The first signal ends the measurement, a second one the program."""
    loop, interrupt = asyncio.get_running_loop(), Interrupt()

    def remove() -> None:
        for number in SIGNALS:
            loop.remove_signal_handler(number)

    def end(number: int) -> None:
        interrupt.number = number
        interrupt.event.set()
        remove()

    for number in SIGNALS:
        loop.add_signal_handler(number, end, number)
    try:
        yield interrupt
    finally:
        remove()


async def measure(job: Job) -> int:
    """All loads on all servers; print and write what came of them. Raises BadTarget, OSError."""
    report = Report(
        title=job.title,
        began=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        servers=job.names,
        settings=job.settings,
        machine=describe_machine(read_machine()),
        unit=job.unit,
        points=[],
    )
    points = []
    with interruptible() as interrupt:
        for target in job.targets:
            await unless_stopped(probe(job, target), interrupt.event)
        for shape in job.shapes:
            if not interrupt.event.is_set():
                points.append(await measure_point(job, shape, interrupt.event))
                print(point_table(report, points[-1]), end="\n\n", flush=True)
    report = replace(report, points=points)
    if job.json is not None:
        job.json.write_text(json.dumps(report_json(report), indent=2, ensure_ascii=False) + "\n")
    if job.report is not None:
        job.report.write_text(report_html(report))
    if interrupt.number:
        return SIGNALLED + interrupt.number
    return 0 if all(summary.is_clean for summary in report.summaries) else FAILED


async def probe(job: Job, target: Target) -> None:
    """Ask for one token, to see who answers. Raises BadTarget if nobody can be measured there.

    A server that is there, but busy or failing, can be.
    """
    ask = replace(job.plan.ask(-1), tokens=1, leaves_after=None)
    async with Client(target, job.timeout_s) as client:
        record = await client.ask(ask, stream=0, begun=0.0, counts=False)
    if (failure := record.failure) is None:
        return
    if failure.kind == CONNECTION:
        raise BadTarget(f"nobody answers at {target.url}: {failure.detail}")
    if hint := HINTS.get(failure.kind):
        path = target.dialect.path
        raise BadTarget(
            f"{target.url} does not take this load: POST {path}: {failure.kind}: {failure.detail}"
            f" (see {hint})"
        )


async def measure_point(job: Job, shape: Shape, stop: asyncio.Event) -> Point:
    """A load on each server, in turns."""
    runs: list[list[Run]] = [[] for _ in job.targets]
    for turn in turns([shape], len(job.targets), job.rounds):
        if not stop.is_set():
            runs[turn.target].append(await measure_turn(job, turn, stop))
    summaries = [summarize(of_target) for of_target in runs if of_target]
    ratios = compare(*runs) if len(summaries) > 1 else []
    return Point(shape, summaries, ratios)


async def measure_turn(job: Job, turn: Turn, stop: asyncio.Event) -> Run:
    """One run."""
    plan = replace(job.plan, seed=seed_of(job.plan.seed, turn))
    label = turn.shape.label
    if len(job.targets) > 1:
        label = f"{label}, {'AB'[turn.target]}, round {turn.round + 1} of {job.rounds}"
    async with Client(job.targets[turn.target], job.timeout_s) as client:
        showing = asyncio.create_task(show_progress(client, label, job.span))
        try:
            return await run_load(client, turn.shape, plan, job.span, stop)
        finally:
            showing.cancel()
            await asyncio.wait([showing])
