"""The comparison with llama-server, on a stand-in that speaks its words. How fast is not tested."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.bench import build_llama_server
from scripts.bench import command as bench
from scripts.bench.client import Load, longest_pause, run_in_rows
from scripts.bench.dialects import OPENAI, Ask, Asks, Target, native_fields, openai_fields
from scripts.bench.llama import leave_once, run_load, stall_once
from scripts.load.answers import EventAnswer
from scripts.load.errors import BenchError
from scripts.load.servers import HOST
from scripts.modelling.make_model import SHAPES, make_vocabulary, split
from shared.sampling import SamplingParams
from tests.helpers.paths import ROOT
from tests.scripts.bench.test_command import figures_of, run_bench, values_of

SIZES = bench.QUICK.llama
PACE_S = 0.005
PROMPT_S = 0.04
"""For a prompt of more than a few words."""


# ---------------------------------------------------------------- the stand-in


def event(text: str, tokens: int | None = None) -> bytes:
    """One of llama-server's; the last has a count instead of a text."""
    value: dict[str, Any] = {"choices": [{"text": text, "finish_reason": tokens and "length"}]}
    if tokens is not None:
        value["usage"] = {"completion_tokens": tokens}
        value["timings"] = {"cache_n": 20, "prompt_n": 100}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


class StandIn(BaseHTTPRequestHandler):
    """Sends each token after some time. Like llama-server, it sends the head at once."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self._answer(asked["max_tokens"], is_long=len(asked["prompt"].split()) > 20)
        self.close_connection = True

    def _answer(self, tokens: int, *, is_long: bool) -> None:
        time.sleep(PROMPT_S * is_long)
        for _ in range(tokens):
            time.sleep(PACE_S)
            self._chunk(event("x"))
        self._chunk(event("", tokens))
        self._chunk(b": a comment\n\ndata: [DONE]\n\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, *_: Any) -> None:
        pass


class StandInServer(ThreadingHTTPServer):
    request_queue_size = 64


@pytest.fixture
def target() -> Iterator[Target]:
    """The stand-in, in this process."""
    with StandInServer((HOST, 0), StandIn) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Target(server.server_address[1], OPENAI)
        server.shutdown()
        thread.join()


def serve() -> None:
    """The stand-in as a program."""
    with StandInServer((HOST, 0), StandIn) as server:
        sys.stderr.write(f"listening on http://{HOST}:{server.server_address[1]}\n")
        server.serve_forever()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The stand-in as an executable that takes any options."""
    path = tmp_path / "llama-server"
    folders = [str(ROOT), *sys.path]
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {folders!r}\n"
        "from tests.scripts.bench.test_comparison import serve\nserve()\n"
    )
    path.chmod(0o755)
    return path


# ---------------------------------------------------------------- the comparison


def test_both_servers_are_measured_in_pairs(tmp_path: Path, program: Path) -> None:
    pytest.importorskip("llama_cpp")
    names = ["llama", "llama-deep", "llama-small", "stall", "leave", "chats"]
    figures = figures_of(tmp_path, *names, "--llama-server", program, "--models", tmp_path)
    assert list(figures) == names
    quick = bench.QUICK
    for streams in ("1 stream", "2 streams"):
        a, b = (
            values_of(figures["llama"], f"{streams}: {server}")
            for server in ("A, llama-server", "B, tokenflume")
        )
        ratio = [ours / theirs for ours, theirs in zip(b, a, strict=True)]
        assert values_of(figures["llama"], f"{streams}: B/A") == ratio
    requests = quick.runs * sum(SIZES.streams) * SIZES.requests
    assert figures["llama"]["tokens"] == 2 * requests * SIZES.tokens
    assert min(values_of(figures["chats"], "processed / new: B, tokenflume")) > 0
    deep = quick.runs * SIZES.deep_streams * 2 * SIZES.tokens
    assert figures["llama-deep"]["tokens"] == 2 * deep
    assert min(values_of(figures["stall"], "first token: B/A")) > 0


def test_without_a_llama_server_the_comparison_is_skipped() -> None:
    done = run_bench("--quick", "stall", "-m", "never-read.gguf")
    assert done.returncode == 0
    assert "stall: skipped: needs --llama-server PATH" in done.stdout


def test_a_llama_server_that_cannot_be_run_is_a_failure(tmp_path: Path) -> None:
    missing = tmp_path / "llama-server"
    done = run_bench("--quick", "leave", "--llama-server", missing, "-m", "never-read.gguf")
    assert done.returncode == 1
    assert f"{missing} cannot be run: No such file" in done.stdout


def test_each_client_sends_its_next_request_when_its_answer_is_whole(target: Target) -> None:
    load = run_load(target, Asks(1), replace(SIZES, tokens=4, requests=3), streams=2)
    assert [len(times) for times in load.arrivals] == 6 * [4]
    first, second, *_, last = sorted(times[0] for times in load.arrivals)
    assert second - first < PACE_S * 4 < last - first
    assert load.seconds > 3 * 4 * PACE_S


def test_a_stall_is_the_longest_pause_until_the_prompt_is_done(target: Target) -> None:
    stall = stall_once(target, Asks(1), SIZES)
    assert PACE_S * 1000 <= stall.pause_ms <= 1000
    assert stall.first_ms >= PROMPT_S * 1000
    assert stall.tokens >= 3 * 10 + 8


def test_streams_that_end_before_the_long_prompt_are_an_error(target: Target) -> None:
    with pytest.raises(BenchError, match="over before the long prompt's answer"):
        stall_once(target, Asks(1), replace(SIZES, long_context=22))


def test_a_slot_is_free_at_once_where_nobody_is_in_the_way(target: Target) -> None:
    assert leave_once(target, Asks(1), replace(SIZES, leave_s=0.01)) < 1000


def test_a_prompt_that_is_done_before_its_client_leaves_is_an_error(target: Target) -> None:
    with pytest.raises(BenchError, match="it needs more words"):
        leave_once(target, Asks(1), replace(SIZES, leave_s=0.5))


@pytest.mark.parametrize(
    ("times", "pause"),
    [
        ([0, 1, 2, 3, 9], 1),  # the pause after the end does not count
        ([0, 4, 5], 4),  # one that encloses all of it does, as a whole
        ([0, 2.5, 6, 20], 3.5),  # and one that goes on beyond the end
        ([0, 0.5], 2),  # no token at all
    ],
)
def test_a_pause_counts_as_a_whole_if_a_part_of_it_does(times: list[float], pause: float) -> None:
    assert longest_pause(times, start=1, end=3) == pause


# ---------------------------------------------------------------- what is asked


def test_both_dialects_ask_for_the_same() -> None:
    ask = Asks(7).draw(words=3, tokens=5)
    native, openai = native_fields(ask), openai_fields(ask)
    assert native.pop("num_predict") == openai.pop("max_tokens") == 5
    assert native.items() <= openai.items()
    del native["prompt"]
    assert SamplingParams().from_fields(native).seed == ask.seed


def test_the_same_seed_asks_the_same_and_no_two_prompts_are_alike() -> None:
    one, other = ([asks.draw(10, 1) for _ in range(100)] for asks in (Asks(1), Asks(1)))
    assert one == other
    assert len({ask.prompt for ask in one}) == 100


@pytest.mark.parametrize("shape", ["tiny", "small-24m"])
def test_a_word_is_a_token(shape: str) -> None:
    vocabulary = make_vocabulary(SHAPES[shape].vocabulary)
    ranks = {piece.decode(): rank for rank, piece in enumerate(vocabulary.pieces)}
    prompt = " " + Asks(1).draw(200, 1).prompt
    assert len(split(prompt.replace(" ", "\u2581"), ranks)) == 200


# ---------------------------------------------------------------- what is answered


def chunked(*parts: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


DONE = b"data: [DONE]\n\n"
WHOLE = chunked(event("a"), event("b") + event("\n\n"), event("", 3), DONE, b"")


@given(st.lists(st.integers(0, len(WHOLE))))
def test_events_are_counted_wherever_reads_cut_the_answer(cuts: list[int]) -> None:
    answer = EventAnswer()
    edges = [0, *sorted(cuts), len(WHOLE)]
    for start, end in itertools.pairwise(edges):
        answer.feed(WHOLE[start:end])
    answer.end(asked=3)


def load_from(answer: bytes, tokens: int) -> Load:
    """What a client makes of one answer, byte for byte."""
    with socket.create_server((HOST, 0)) as listener:

        def send() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        server = threading.Thread(target=send)
        server.start()
        try:
            return run_in_rows(
                Target(listener.getsockname()[1], OPENAI).open, [[Ask("x", tokens, seed=1)]]
            )
        finally:
            server.join()


def test_a_whole_completion_is_counted() -> None:
    assert load_from(WHOLE, tokens=3).tokens == 3


@pytest.mark.parametrize(
    ("answer", "tokens", "complaint"),
    [
        (WHOLE[:-5], 3, "cut after 3 of 3 tokens"),
        (WHOLE.replace(DONE, b"data: [none]\n\n"), 3, "none of a completion"),
        (chunked(event("a"), event("", 1), b""), 1, "cut after 1 of 1 tokens"),
        (chunked(event("a")), 2, "cut after 1 of 2 tokens"),
        (WHOLE, 4, "3 tokens instead of 4"),
        (WHOLE, 2, "3 tokens instead of 2"),
        (chunked(event("a"), event("", 2), DONE, b""), 1, "1 tokens, but its usage says 2"),
        (chunked(event("a"), DONE, b""), 1, "1 tokens, but its usage says None"),
        (chunked(b'data: {"error": {"code": 500}}\n\n', b""), 1, "none of a completion"),
        (WHOLE.replace(b"200 OK", b"400 Bad Request"), 3, "refused a stream; .* 400"),
        (b"hello\r\n\r\n", 1, "is not HTTP"),
        (b"", 3, "refused a stream; it answered nothing"),
    ],
)
def test_anything_but_the_whole_completion_is_an_error(
    answer: bytes, tokens: int, complaint: str
) -> None:
    with pytest.raises(BenchError, match=complaint):
        load_from(answer, tokens)


# ---------------------------------------------------------------- build_llama_server.py


def run_build(output: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.bench.build_llama_server", "-o", str(output)]
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_binary_that_is_there_is_not_built_again(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    version = build_llama_server.installed_version()
    binary = tmp_path / f"llama-server-{version}" / "build" / "bin" / "llama-server"
    binary.parent.mkdir(parents=True)
    binary.touch()
    done = run_build(tmp_path, PATH="")
    assert (done.returncode, done.stdout) == (0, f"{binary}\n")


def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    done = run_build(tmp_path, PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("build_llama_server: there is no cmake")
    (tmp_path / "cmake").touch(mode=0o755)
    done = run_build(tmp_path, PATH=str(tmp_path), CXX="no-such-compiler")
    assert done.stderr.startswith("build_llama_server: there is no C++ compiler: none of no-such")
