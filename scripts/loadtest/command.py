"""Put a load on a server that streams tokens, and measure latency and throughput.

    python -m scripts.loadtest http://127.0.0.1:8080
    python -m scripts.loadtest URL --streams 1,4,16 --duration 20 --report load.html
    python -m scripts.loadtest URL --rates 0.5,1,2 --prompt-words lognormal:100,0.8 --cancel 0.1
    python -m scripts.loadtest URL --dialect openai --compare URL2 --rounds 5

Closed loop (--streams): each client sends its next request when its last one is over.
Open loop (--rate): requests arrive at random (a Poisson process), whether or not earlier ones are
over. The times of a request count from the moment when it was due.
Several numbers, separated by commas, are a sweep: one load after another.

TTFT           time to first token, from when the request was due; it includes the connection
ITL            inter-token latency: the time between two tokens of a stream, as they were read
end to end     time from the request to the end of its answer
tokens/s       throughput of all streams in the time that counts: without the ramp-up, the warm-up
               and the time after the last request began

Every answer is checked: status, media type, order, end mark and counts. Streams that fail are
reported by kind: HTTP status, no connection, cut, error event, timeout, wrong content, other
format. The seed determines prompts, lengths, arrivals and cancellations: the same command makes
the same load. A server that caches prompts may have cached those of an earlier run.

The load generator warns if it may have been the bottleneck: if it took more than 80 % of a core,
or if its event loop lagged. It reads and checks more than 20,000 tokens/s on one core, most of them
one at a time: 34,000 tokens/s of 32 streams took a third of a core of an Intel Xeon (Emerald
Rapids) that it shared with the server; --dialect openai-chat reached 28,000. To measure it, use an
engine that makes one token of each stream every half millisecond:

    echo '{"step_s": 0.0005}' > echo.json
    python -m server --engine echo -m echo.json -n 4096 -P 8080 &
    taskset -c 0 python -m scripts.loadtest http://127.0.0.1:8080 --streams 32 --tokens 1500

Exit status: 0 all answers were complete, or cancelled as planned; 1 a stream failed; 2 bad options
or files; 3 no server answers, or it speaks another protocol; 130 and 143 interrupted by SIGINT or
SIGTERM, after a report of what was measured until then.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from scripts.load.client import Client
from scripts.load.errors import CONNECTION, OTHER_FORMAT, status_kind
from scripts.load.exit_status import BAD_FILE, FAILED, NO_SERVER, of_signal
from scripts.load.interrupt import interruptible, new_runner, unless_stopped
from scripts.load.target import BadTarget, Target
from scripts.loadtest.html import report_html
from scripts.loadtest.options import Job, parse_arguments
from scripts.loadtest.progress import progress_of
from scripts.loadtest.report import Point, Report, point_table, report_json
from scripts.loadtest.run import Run, Shape, Turn, run_load, seed_of, turns
from scripts.loadtest.summary import compare, summarize
from scripts.report.machine import describe_machine
from scripts.report.progress import progress_shown
from workers.machine.cores import read_machine

HINTS = {
    status_kind(401): "--api-key or LOADTEST_API_KEY",
    status_kind(403): "--api-key or LOADTEST_API_KEY",
    status_kind(400): "--model, --fields, the lengths",
    status_kind(404): "the URL, --dialect, --model",
    status_kind(405): "the URL, --dialect",
    status_kind(422): "--model, --fields",
    OTHER_FORMAT: "the URL, --dialect",
}
"""What to check if a server refuses the first request, by the kind of the failure."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    job = parse_arguments(__doc__, arguments)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # for connections
    with new_runner() as runner:
        try:
            return runner.run(measure(job))
        except BadTarget as error:
            print(f"loadtest: {error}", file=sys.stderr)
            return NO_SERVER
        except OSError as error:
            print(f"loadtest: {error}", file=sys.stderr)
            return BAD_FILE


async def measure(job: Job) -> int:
    """Run all loads on all servers, and report. Returns the exit status.

    Raises BadTarget, and OSError if a file cannot be written.
    """
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
        return of_signal(interrupt.number)
    return 0 if all(summary.is_clean for summary in report.summaries) else FAILED


async def probe(job: Job, target: Target) -> None:
    """Ask for one token. Raises BadTarget if the server cannot be measured.

    A server that is busy or fails can be measured.
    """
    request = replace(job.plan.request(-1), tokens=1, cancel_after_tokens=None)
    async with Client(target, job.timeout_s) as client:
        record = await client.ask(request)
    if (failure := record.failure) is None:
        return
    if failure.kind == CONNECTION:
        raise BadTarget(f"no server answers at {target.url}: {failure.detail}")
    if hint := HINTS.get(failure.kind):
        path = target.dialect.path
        raise BadTarget(
            f"{target.url} refuses this load: POST {path}: {failure.kind}: {failure.detail}"
            f" (check {hint})"
        )


async def measure_point(job: Job, shape: Shape, stop: asyncio.Event) -> Point:
    """Run a load on each server, in turn."""
    runs: list[list[Run]] = [[] for _ in job.targets]
    for turn in turns([shape], len(job.targets), job.rounds):
        if not stop.is_set():
            runs[turn.target].append(await measure_turn(job, turn, stop))
    summaries = [summarize(of_target) for of_target in runs if of_target]
    ratios = compare(*runs) if len(summaries) > 1 else []
    return Point(shape, summaries, ratios)


async def measure_turn(job: Job, turn: Turn, stop: asyncio.Event) -> Run:
    """Run a load on one server."""
    plan = replace(job.plan, seed=seed_of(job.plan.seed, turn))
    label = turn.shape.label
    if len(job.targets) > 1:
        label = f"{label}, {'AB'[turn.target]}, round {turn.round + 1} of {job.rounds}"
    async with (
        Client(job.targets[turn.target], job.timeout_s) as client,
        progress_shown("loadtest", progress_of(client, label, job.span)),
    ):
        return await run_load(client, turn.shape, plan, job.span, stop)
