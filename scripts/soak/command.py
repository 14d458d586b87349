"""Let the server live through minutes or days of real life, and see that no request is lost.

    python -m scripts.soak                                     # a minute, a death every ten seconds
    python -m scripts.soak --minutes 10 --kill-every 10 --report soak.html
    python -m scripts.soak -m model.gguf --minutes 60 -- --slots 8 --queue 32
    python -m scripts.soak --models 2 --clients 40

It starts the server itself, with the echo engine, or with the models of -m; what stands behind --
goes to the server. Clients ask for short and long answers, streamed and at once, in all formats,
for vectors and tokens; they leave in the queue, in prompt processing and in mid-stream, read
slowly, send nonsense, name cache ids and time limits. Meanwhile workers are killed, stopped and
poisoned, and the front gets a SIGHUP now and then.

Every answer is checked: the echo engine's to the character, a model's for order, end and counts.
What may become of a request:

  its answer                  whole and right
  its client left             as planned
  a refusal                   of nonsense; 429 and 503 only with Retry-After, and 503 only while a
                              worker is being replaced
  an error, told or a cut     if a worker died at that moment, and only as many requests as had a
                              slot of it: one that waits is served by another worker
  all else                    is lost

After the load nothing may hold a slot, all workers must be ready, files and entries of /dev/shm be
closed as before, and SIGTERM must end the server with status 0. scripts/soak/watch.py says what
counts as growth.

Exit status: 0 clean; 1 something was lost, grows, or the front died; 2 bad options; 3 the server
did not start; 130 and 143 interrupted (SIGINT, SIGTERM), after what there was until then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from scripts.load.errors import BenchError
from scripts.load.server import HOST, ServerProcess
from scripts.loadtest.command import FAILED, NO_FILE, NO_SERVER, SIGNALLED, interruptible
from scripts.loadtest.options import count, not_negative, positive
from scripts.soak.html import report_html
from scripts.soak.progress import show_progress
from scripts.soak.report import report_text
from scripts.soak.run import Account, Load, Soak, explore

DEFAULT_MINUTES = 1.0
DEFAULT_KILL_S = 10.0
DEFAULT_HANG_UP_S = 15.0
DEFAULT_CLIENTS = 24
DEFAULT_SILENCE_S = 60.0
STEP_S = 0.004
"""Of the echo engine."""
ECHO_SLOTS = 4
SERVER = (sys.executable, "-m", "server")
BEARABLE = (
    "--queue", "18",
    "--progress-timeout", "5",
    "--restart-wait", "1",
    "--max-deaths", "1000000",
    "--cache-limit", "8M",
)  # fmt: skip
"""What the server is started with, so that deaths are many and soon noticed."""


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked for."""

    load: Load
    models: Sequence[str]
    """Of -m; empty: the echo engine."""
    echoes: int
    """Echo models."""
    command: Sequence[str]
    flags: Sequence[str]
    report: Path | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    job = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(SIGNALLED + number))
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return soak(job, Path(folder), runner)
    except BenchError as error:
        print(f"soak: {error}", file=sys.stderr)
        return NO_SERVER
    except OSError as error:
        print(f"soak: {error}", file=sys.stderr)
        return NO_FILE
    except KeyboardInterrupt:  # while the server starts or ends
        return SIGNALLED + signal.SIGINT


def soak(job: Job, folder: Path, runner: asyncio.Runner) -> int:
    """Start the server, soak it, end it, and say what came of it. Raises BenchError, OSError."""
    began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    command = [*job.command, *server_flags(job, folder)]
    with ServerProcess(command, "/ready") as server:
        account, signalled = runner.run(_soak(job, server))
        log = server.log_lines()
    if not account.troubles and server.status != 0:
        account.troubles.append(f"SIGTERM ended the server with status {server.status}")
    if not account.is_clean and account.troubles:
        print("The end of the server's log:", *log[-15:], "", sep="\n  ")
    print(report_text(account))
    if job.report is not None:
        settings = {
            "command": " ".join(command),
            "time": f"{job.load.seconds / 60:g} minutes",
            "clients": str(job.load.clients),
            "seed": job.load.seed,
        }
        job.report.write_text(report_html(account, began, settings))
    if signalled:
        return SIGNALLED + signalled
    return 0 if account.is_clean else FAILED


async def _soak(job: Job, server: ServerProcess) -> tuple[Account, int]:
    """The account, and the signal that ended it, or 0."""
    world = await explore(server, is_echo=not job.models)
    soak = Soak(server, world, job.load)
    with interruptible() as interrupt:
        showing = asyncio.create_task(show_progress(soak.account, job.load.seconds))
        try:
            account = await soak.run(interrupt.event)
        finally:
            showing.cancel()
            await asyncio.wait([showing])
    return account, interrupt.number


def server_flags(job: Job, folder: Path) -> list[str]:
    """What the server is started with. Flags of the command line come last, and so win."""
    flags = [*BEARABLE, "--cache-dir", str(folder / "prompts")]
    if job.models:
        for model in job.models:
            flags += ["-m", model]
    else:
        options = folder / "echo.json"
        options.write_text(json.dumps({"step_s": STEP_S}))
        cpus = len(os.sched_getaffinity(0))
        workers = max(1, cpus // job.echoes)
        flags += ["--engine", "echo", "--slots", str(ECHO_SLOTS), "-n", "4096"]
        flags += ["-t", str(max(1, cpus)), "--workers", str(workers)]
        for place in range(job.echoes):
            flags += ["-m", f"echo-{place + 1}={options}"]
    return [*flags, *job.flags, "--host", HOST, "-P", "0"]


def parse_arguments(arguments: Sequence[str]) -> Job:
    """Raises SystemExit for what is wrong."""
    ours, flags = list(arguments), []
    if "--" in ours:
        place = ours.index("--")
        ours, flags = ours[:place], ours[place + 1 :]
    parser = _parser()
    given = parser.parse_args(ours)
    if given.model and given.models > 1:
        parser.error("--models is the number of echo models; give several -m instead")
    load = Load(
        seconds=given.minutes * 60,
        clients=given.clients,
        seed=given.seed,
        silence_s=given.silence,
        kill_every_s=given.kill_every or None,
        hang_up_every_s=given.hang_up_every or None,
    )
    return Job(load, given.model or (), given.models, given.command or SERVER, flags, given.report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "soak.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="soak.py [options] [-- FLAGS OF THE SERVER]",
    )
    add = parser.add_argument
    add(
        "--minutes",
        type=positive,
        default=DEFAULT_MINUTES,
        metavar="M",
        help=f"how long ({DEFAULT_MINUTES:g})",
    )
    add(
        "--kill-every",
        type=not_negative,
        default=DEFAULT_KILL_S,
        metavar="S",
        help=f"seconds from one worker's death to the next; 0: none ({DEFAULT_KILL_S:g})",
    )
    add(
        "--hang-up-every",
        type=not_negative,
        default=DEFAULT_HANG_UP_S,
        metavar="S",
        help=f"seconds from one SIGHUP to the next; 0: none ({DEFAULT_HANG_UP_S:g})",
    )
    add(
        "--clients",
        type=count,
        default=DEFAULT_CLIENTS,
        metavar="N",
        help=f"that ask one thing after the other ({DEFAULT_CLIENTS})",
    )
    add(
        "-m",
        "--model",
        action="append",
        metavar="[NAME=]FILE",
        help="a model in the place of the echo engine; may be given several times",
    )
    add("--models", type=count, default=1, metavar="N", help="echo models (1)")
    add(
        "--silence",
        type=positive,
        default=DEFAULT_SILENCE_S,
        metavar="S",
        help="seconds without a byte after which a request is lost, or a worker not replaced"
        f" ({DEFAULT_SILENCE_S:g})",
    )
    add("--seed", default="1", metavar="TEXT", help="of everything that is random (1)")
    add("--report", type=Path, metavar="FILE", help="the account as a page of HTML")
    add(
        "--command",
        type=str.split,
        metavar="COMMAND",
        help="starts the server, in the place of this checkout's; gets the same flags",
    )
    return parser
