"""Run the server under a mixed load, end its workers again and again, and check every answer.

    python -m scripts.soak                                  # one minute, a crash every ten seconds
    python -m scripts.soak --minutes 10 --kill-every 10 --report soak.html
    python -m scripts.soak -m model.gguf --minutes 60 -- --slots 8 --queue 32
    python -m scripts.soak --models 2 --clients 40

It starts the server, with the echo engine or with the models of -m. Options after -- are options of
the server. Clients ask for short and long answers, streamed and unstreamed, in all dialects, for
vectors and for tokens. They disconnect in the queue, in prefill and in decode, read slowly, send
malformed requests, and use cache ids and timeouts. Meanwhile workers are killed, stopped and
crashed by poison prompts, and the front gets a SIGHUP now and then.

Every answer is checked: an answer of the echo engine character by character, an answer of a model
for order, end and counts. These outcomes of a request are right:

  its answer                  complete and correct
  the client disconnected     as planned
  refused                     a malformed request; 429 and 503 only with Retry-After, and 503 only
                              while a worker is being replaced
  an error, or a cut stream   if a worker crashed at that moment, and only as many requests as that
                              worker has slots: a waiting request is served by another worker

A request with any other outcome is lost. After the load all slots must be free and all workers
ready, open files and entries of /dev/shm must be as before, and SIGTERM must end the server with
status 0. scripts/soak/growth.py says what counts as growth of memory, files and threads.

Exit status: 0 clean; 1 a request was lost, a quantity grows, or the server has another fault;
2 bad options or files; 3 the server did not start; 130 and 143 interrupted by SIGINT or SIGTERM,
after a report of the results until then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scripts.load.arguments import count, not_negative, positive
from scripts.load.errors import MeasurementError
from scripts.load.exit_status import BAD_FILE, FAILED, NO_SERVER, of_signal
from scripts.load.interrupt import interruptible, new_runner
from scripts.load.server import HOST, ServerProcess
from scripts.report.progress import Progress, progress_shown
from scripts.soak.html import report_html
from scripts.soak.judge import Outcome
from scripts.soak.report import report_text
from scripts.soak.results import Results
from scripts.soak.run import Load, Soak
from scripts.soak.server_state import explore

DEFAULT_MINUTES = 1.0
DEFAULT_KILL_S = 10.0
DEFAULT_HANG_UP_S = 15.0
DEFAULT_CLIENTS = 24
DEFAULT_SILENCE_S = 60.0
STEP_S = 0.004
"""Duration of a step of the echo engine."""
ECHO_SLOTS = 4
SERVER = (sys.executable, "-m", "server")
SERVER_OPTIONS = (
    "--queue", "18",
    "--progress-timeout", "5",
    "--restart-wait", "1",
    "--max-deaths", "1000000",
    "--cache-limit", "8M",
)  # fmt: skip
"""Options of the server with which it detects and survives many crashes."""
LOG_LINES = 15
"""Lines of the server's log that are shown if it has a fault."""


@dataclass(frozen=True, slots=True)
class Job:
    """The soak that the command line asks for."""

    load: Load
    models: Sequence[str]
    """Arguments of -m; empty: the echo engine."""
    echoes: int
    """Number of echo models."""
    command: Sequence[str]
    """Starts the server."""
    options: Sequence[str]
    """Further options of the server."""
    report: Path | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    job = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(of_signal(number)))
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            new_runner() as runner,
        ):
            return soak(job, Path(folder), runner)
    except MeasurementError as error:
        print(f"soak: {error}", file=sys.stderr)
        return NO_SERVER
    except OSError as error:
        print(f"soak: {error}", file=sys.stderr)
        return BAD_FILE
    except KeyboardInterrupt:  # while the server starts or ends
        return of_signal(signal.SIGINT)


def soak(job: Job, folder: Path, runner: asyncio.Runner) -> int:
    """Start the server, run the soak, end the server, and report. Returns the exit status.

    Raises MeasurementError, and OSError if a file cannot be written.
    """
    began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    command = [*job.command, *server_options(job, folder)]
    with ServerProcess(command, "/ready") as server:
        results, signal_number = runner.run(_soak(job, server))
        log = server.log_lines()
    if not results.faults and server.status != 0:
        results.faults.append(f"SIGTERM ended the server with status {server.status}")
    if results.faults:
        print("The end of the server's log:", *log[-LOG_LINES:], "", sep="\n  ")
    print(report_text(results))
    if job.report is not None:
        options = {
            "command": " ".join(command),
            "time": f"{job.load.seconds / 60:g} minutes",
            "clients": str(job.load.clients),
            "seed": job.load.seed,
        }
        job.report.write_text(report_html(results, began, options))
    if signal_number:
        return of_signal(signal_number)
    return 0 if results.is_clean else FAILED


async def _soak(job: Job, server: ServerProcess) -> tuple[Results, int]:
    """The results, and the number of the signal that ended the soak, or 0."""
    facts = await explore(server, is_echo=not job.models)
    soak = Soak(server, facts, job.load)
    with interruptible() as interrupt:
        async with progress_shown("soak", progress_of(soak.results, job.load.seconds)):
            results = await soak.run(interrupt.event)
    return results, interrupt.number


def progress_of(results: Results, seconds: float) -> Callable[[], Progress]:
    """Reads the progress of a soak that starts now and takes `seconds` seconds."""
    begun = time.monotonic()

    def read() -> Progress:
        passed_s = time.monotonic() - begun
        text = (
            f"{passed_s:.0f} s  {results.requests:,} requests,"
            f" {results.count(Outcome.COMPLETED):,} completed,"
            f" {len(results.broken):,} ended by crashes, {len(results.lost):,} lost"
        )
        return Progress(passed_s / seconds, text)

    return read


def server_options(job: Job, folder: Path) -> list[str]:
    """The options of the server. Those of the command line come last, so that they take effect."""
    options = [*SERVER_OPTIONS, "--cache-dir", str(folder / "prompts")]
    if job.models:
        for model in job.models:
            options += ["-m", model]
    else:
        echo = folder / "echo.json"
        echo.write_text(json.dumps({"step_s": STEP_S}))
        cpus = len(os.sched_getaffinity(0))
        workers = max(1, cpus // job.echoes)
        options += ["--engine", "echo", "--slots", str(ECHO_SLOTS), "-n", "4096"]
        options += ["-t", str(max(1, cpus)), "--workers", str(workers)]
        for number in range(1, job.echoes + 1):
            options += ["-m", f"echo-{number}={echo}"]
    return [*options, *job.options, "--host", HOST, "-P", "0"]


def parse_arguments(arguments: Sequence[str]) -> Job:
    """The job. Bad arguments end the program with status 2 and a message."""
    ours, servers = list(arguments), []
    if "--" in ours:
        index = ours.index("--")
        ours, servers = ours[:index], ours[index + 1 :]
    parser = _parser()
    given = parser.parse_args(ours)
    if given.model and given.models > 1:
        parser.error("--models is the number of echo models; use -m several times instead")
    load = Load(
        seconds=given.minutes * 60,
        clients=given.clients,
        seed=given.seed,
        silence_s=given.silence,
        kill_every_s=given.kill_every or None,
        hang_up_every_s=given.hang_up_every or None,
    )
    return Job(
        load, given.model or (), given.models, given.command or SERVER, servers, given.report
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [-- OPTIONS OF THE SERVER]",
    )
    add = parser.add_argument
    add(
        "--minutes",
        type=positive,
        default=DEFAULT_MINUTES,
        metavar="M",
        help=f"duration of the load in minutes (default: {DEFAULT_MINUTES:g})",
    )
    add(
        "--kill-every",
        type=not_negative,
        default=DEFAULT_KILL_S,
        metavar="S",
        help=f"seconds between two crashes of workers; 0: no crashes (default: {DEFAULT_KILL_S:g})",
    )
    add(
        "--hang-up-every",
        type=not_negative,
        default=DEFAULT_HANG_UP_S,
        metavar="S",
        help=f"seconds between two SIGHUPs; 0: no SIGHUPs (default: {DEFAULT_HANG_UP_S:g})",
    )
    add(
        "--clients",
        type=count,
        default=DEFAULT_CLIENTS,
        metavar="N",
        help=f"concurrent clients; each sends one request at a time (default: {DEFAULT_CLIENTS})",
    )
    add(
        "-m",
        "--model",
        action="append",
        metavar="[NAME=]FILE",
        help="a model to use instead of the echo engine; may be given several times",
    )
    add("--models", type=count, default=1, metavar="N", help="number of echo models (default: 1)")
    add(
        "--silence",
        type=positive,
        default=DEFAULT_SILENCE_S,
        metavar="S",
        help="seconds without a byte after which a request is lost, and in which a worker must be"
        f" replaced (default: {DEFAULT_SILENCE_S:g})",
    )
    add(
        "--seed", default="1", metavar="TEXT", help="seed of everything that is random (default: 1)"
    )
    add("--report", type=Path, metavar="FILE", help="write the report as an HTML page to this file")
    add(
        "--command",
        type=str.split,
        metavar="COMMAND",
        help="a command that starts another server; it gets the same options",
    )
    return parser
