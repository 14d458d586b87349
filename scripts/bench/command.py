"""Measure tokenflume on this machine: its front, its engines, and against llama-server.

    pip install -e '.[bench]'
    python -m scripts.bench                         # everything, some minutes
    python -m scripts.bench front latency           # no model needed
    python -m scripts.bench pool -m model.gguf --json pool.json
    python -m scripts.bench llama llama-deep llama-small stall leave step \\
        --llama-server "$(python -m scripts.bench.build_llama_server)"

front          tokens/s that one front process sends: the echo engine at full speed, 32 concurrent
               clients on loopback. From the first request to the last token, including requests.
latency        milliseconds from the moment when a worker has a token to its arrival at the
               client: queue, front and HTTP together. At almost 1,000 tokens/s: of one stream, and
               of 10 streams, whose tokens leave the worker ten at a time and wait for each other
               in the front.
ctransformers  tokens/s of decoding one stream, over the rate of ctransformers' own loop without a
               server, on the same cores and threads, with the same prompt and sampling.
pool           tokens/s of two concurrent streams: two workers of one thread each, over one worker
               of two threads.
step           milliseconds that our Python adds to a decode step of 16 streams, beside the time of
               llama.cpp's functions: scheduling, batch, text, frame. 24 million weights.
engine         milliseconds of llama.cpp alone, for steps of one and of many sequences and for a
               chunk of a prompt, at two depths: with our settings, with flash attention, and with
               one KV cache for all sequences.

Five compare with llama-server of the same llama.cpp, with the same model, threads, slots, context,
prompts and sampling (they need --llama-server):

llama          tokens/s of 1, 8 and 16 concurrent streams of a model of 1.1 billion weights on two
               threads. From the first request to the last token, including requests.
llama-deep     the same of 8 streams with prompts of 300 words, so that each token attends to many
               others.
llama-small    the same of 16 streams of a model of 24 million weights on one thread.
stall          three streams decode when a prompt of 900 words arrives: the longest time between
               two tokens of any of the three until the first token of that prompt, and the time
               to that first token.
leave          a client disconnects half a second after it sent a prompt of 900 words to a server
               with one slot: the time until the slot is free. Measured by the TTFT of a tiny
               request that is sent at that moment, less the TTFT of such a request otherwise.

Three are about prompts that have been processed before:

again          a prompt of 900 words is sent again, and, after a restart of the server, once more
               with its `cache` id: its TTFT, over that of the first time.
chats          8 concurrent chats of 10 turns, which share a system prompt of 500 words: the prompt
               tokens that were processed, over those that were new. The prompt of a turn is the
               chat so far. Compared with llama-server with its cache of prompts.
new            requests in one slot that share nothing: the cost of saving the last one's state.

Each measurement has a warm-up that does not count, then --runs runs. Two things that are compared
take turns. A figure is the median of the runs, with the lowest and the highest in brackets. A ratio
is the median of the ratios within each pair of turns.

`latency` runs the server's own code and command line, but its worker records the time whenever it
is about to send the tokens of a step. The client records when it has read each token. Both read
CLOCK_MONOTONIC, which all processes of a machine share, and no two streams start at the same time,
so both times of each token are known exactly. With an unchanged server, arrivals could only be
compared with those of a steady pace, and the pace drifts by more than the latency.

The load generator of `front` lets bytes gather in its sockets for some milliseconds, and only
counts the tokens, so that it takes little CPU time, which is printed. Every stream is checked: it
must end properly, with exactly as many tokens as were asked for. Only the streams that `stall` and
`leave` disconnect have no end.

In comparisons with llama-server, prompts are random words, each one token of the made models, so
that no cache of prompts can help. The compute threads of llama-server are pinned to the CPUs of
tokenflume's worker, and its in-memory cache of prompts is off. Both servers run while either is
measured; an idle one takes no CPU time. All other settings, such as batch sizes, are each server's
defaults.

The models are made once, by scripts.modelling.make_model, with random weights. They stay in
--models.
Exit status: 0 all measurements ran (a missed aim is not an error); 1 a stream was cut, a count was
wrong or a process failed; 2 bad options.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
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
from scripts.bench.decode import measure_ctransformers, measure_pool
from scripts.bench.engine import measure_engine
from scripts.bench.figures import Figure, figure_json, figure_table
from scripts.bench.front import measure_front
from scripts.bench.job import FULL, QUICK, Job, Skipped
from scripts.bench.latency import measure_latency
from scripts.bench.models import MODELS
from scripts.bench.step import measure_step
from scripts.load.arguments import LARGEST, count, integer
from scripts.load.errors import MeasurementError
from scripts.report.machine import describe_machine, machine_table
from shared.errors import ConfigurationError
from workers.machine.cores import Machine, read_machine

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parse_arguments(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        # As an exception, so that the servers are ended.
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
    """Run and print the measurements.

    Returns their figures as JSON values, and whether one failed.
    """
    figures: dict[str, Any] = {}
    failed = False
    for name in names:
        say(f"measuring {name}")
        try:
            figure = MEASUREMENTS[name](job)
        except Skipped as reason:
            print(f"\n{name}: skipped: {reason}", flush=True)
        except (MeasurementError, ConfigurationError) as error:
            failed = True
            print(f"\n{name}: failed: {error}", flush=True)
        else:
            figures[name] = figure_json(figure)
            print(f"\n{figure_table(figure)}", flush=True)
    return figures, failed


def say(line: str) -> None:
    """Print progress, which is not a part of the report."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def make_job(options: argparse.Namespace, machine: Machine, scratch: Path) -> Job:
    """The job of these options."""
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
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "figures",
        nargs="*",
        metavar="FIGURE",
        help=f"{', '.join(MEASUREMENTS)} or all (default: all)",
    )
    add(
        "--runs",
        type=count,
        metavar="N",
        help=f"runs that count (default: {FULL.runs}, with --quick {QUICK.runs})",
    )
    add("--quick", action="store_true", help="small sizes, to check that everything works")
    add("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    add = parser.add_argument_group("all measurements but front and latency").add_argument
    add(
        "-m",
        "--model",
        type=Path,
        metavar="FILE",
        help="a GGUF model to measure; llama-small and step have their own",
    )
    add("--shape", help=f"otherwise the shape of the model to make (default: {FULL.shape})")
    add(
        "--type",
        help=f"and the type of its matrices (default: {FULL.kind}; compared with llama-server"
        f" {FULL.llama.kind})",
    )
    add(
        "--models",
        type=Path,
        metavar="DIR",
        default=MODELS,
        help="the folder of the made models (default: %(default)s)",
    )
    add(
        "--tokens",
        type=at_least_two,
        metavar="N",
        help=f"tokens of an answer (default: {FULL.decode_tokens}; compared with llama-server"
        f" {FULL.llama.tokens})",
    )
    add(
        "-t",
        "--threads",
        type=count,
        metavar="N",
        help="threads (default: the usable physical cores; compared with llama-server"
        f" {FULL.llama.threads})",
    )
    add = parser.add_argument_group("comparison with llama-server").add_argument
    add(
        "--llama-server",
        type=Path,
        metavar="PATH",
        help="the binary, which scripts.bench.build_llama_server builds; without it the comparisons"
        " are skipped",
    )
    add(
        "--requests",
        type=count,
        metavar="N",
        help=f"requests of each client, one after another (default: {FULL.llama.requests})",
    )
    options = parser.parse_args(arguments)
    unknown = set(options.figures) - {*MEASUREMENTS, "all"}
    if unknown:
        parser.error(f"unknown figure {', '.join(sorted(unknown))}; see --help")
    if not options.figures or "all" in options.figures:
        options.figures = list(MEASUREMENTS)
    return options


def at_least_two(text: str) -> int:
    """A number of tokens. Decoding is timed from the first token to the last."""
    return integer(text, 2, LARGEST)
