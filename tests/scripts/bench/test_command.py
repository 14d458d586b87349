"""The benchmark runs, its figures are there, and it counts right. How fast is not tested."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.bench import command as bench
from scripts.bench.client import Load, run_streams
from scripts.load.answers import LineCounter
from scripts.load.errors import BenchError
from scripts.load.servers import HOST

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = HEAD + b"3\r\na\n\n\r\n1\r\n\n\r\n6\r\n\\n\\r\xc3\n\r\n0\r\n\r\n"
"""Four tokens, two of them without text, in three chunks."""


def run_bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def figures_of(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    report = tmp_path / "report.json"
    done = run_bench("--quick", "--json", report, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(report.read_bytes())["figures"]
    for figure in figures.values():
        assert figure["title"] in done.stdout
        for series in figure["series"]:
            assert len(series["values"]) == bench.QUICK.runs
    return figures


def values_of(figure: dict[str, Any], name: str) -> list[float]:
    (values,) = (series["values"] for series in figure["series"] if series["name"] == name)
    return list(values)


def test_the_front_and_the_latency_are_measured_on_the_echo_engine(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, "front", "latency")
    quick = bench.QUICK
    front, latency = figures["front"], figures["latency"]
    assert front["tokens"] == quick.runs * quick.front_streams * quick.front_tokens
    assert min(values_of(front, "received by all clients")) > 0
    assert min(values_of(front, "left together")) >= 1
    assert latency["tokens"] == 2 * quick.runs * quick.latency_streams * quick.latency_tokens
    for streams in ("one stream", f"{quick.latency_streams} streams"):
        assert min(values_of(latency, f"{streams}: pace")) > 0
        slow = values_of(latency, f"{streams}: 99th percentile")
        usual = values_of(latency, f"{streams}: median")
        assert all(s >= u > 0 for s, u in zip(slow, usual, strict=True))


def test_ctransformers_is_measured_with_and_without_the_server(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, "ctransformers", "-t", "1", "--models", tmp_path)
    own, served, ratio = (series["values"] for series in figures["ctransformers"]["series"])
    assert min(own) > 0
    assert ratio == [b / a for a, b in zip(own, served, strict=True)]
    assert (tmp_path / "tiny-Q4_0.gguf").exists()


def test_a_step_is_taken_apart_into_the_parts_of_llama_cpp_and_ours(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    figures = figures_of(tmp_path, "step", "engine", "--models", tmp_path)
    for part in ("llama.cpp decodes", "llama.cpp samples", "our Python"):
        assert min(values_of(figures["step"], part)) > 0
    for kind in ("as we run it", "flash attention", "one cache for all"):
        assert min(values_of(figures["engine"], f"10 deep, 2 sequences: {kind}")) > 0


def test_what_is_processed_again_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    figures = figures_of(tmp_path, "again", "new", "--models", tmp_path)
    again = figures["again"]
    first, second = values_of(again, "the first time"), values_of(again, "again")
    assert values_of(again, "again, over the first") == [
        b / a for a, b in zip(first, second, strict=True)
    ]
    assert min(values_of(figures["new"], "B/A")) > 0


def test_a_server_that_does_not_start_is_a_failure_with_its_own_words(tmp_path: Path) -> None:
    done = run_bench("--quick", "ctransformers", "-t", "1", "-m", tmp_path / "no-such.gguf")
    assert done.returncode == 1
    assert "no-such.gguf cannot be read" in done.stdout


def test_an_unknown_figure_is_refused() -> None:
    done = run_bench("speed")
    assert done.returncode == 2
    assert "there is no figure speed" in done.stderr


@given(st.lists(st.integers(0, len(WHOLE))))
def test_tokens_are_counted_wherever_reads_cut_the_answer(cuts: list[int]) -> None:
    counter = LineCounter()
    edges = [0, *sorted(cuts), len(WHOLE)]
    for start, end in itertools.pairwise(edges):
        counter.feed(WHOLE[start:end])
    assert (counter.tokens, counter.http_lines) == (4, 3 + 3 * 2 + 2)


def load_from(answer: bytes, tokens: int) -> Load:
    """What `run_streams` makes of one answer, byte for byte."""
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        try:
            return run_streams(listener.getsockname()[1], {"prompt": "x"}, streams=1, tokens=tokens)
        finally:
            server.join()


def test_a_whole_answer_is_counted() -> None:
    load = load_from(WHOLE, tokens=4)
    assert (load.tokens, load.chunks, len(load.arrivals[0])) == (4, 3, 4)


@pytest.mark.parametrize(
    ("answer", "tokens", "complaint"),
    [
        (WHOLE[:-5], 4, "cut after 4 of 4 tokens"),
        (WHOLE[:-1], 4, "cut after 4 of 4 tokens"),
        (WHOLE, 5, "4 tokens instead of 5"),
        (WHOLE, 3, "4 tokens instead of 3"),
        (WHOLE.replace(b"200 OK", b"429 Too Many Requests"), 4, "refused a stream; .* 429"),
        (b"", 4, "refused a stream; it answered nothing"),
    ],
)
def test_anything_but_the_whole_answer_is_an_error(
    answer: bytes, tokens: int, complaint: str
) -> None:
    with pytest.raises(BenchError, match=complaint):
        load_from(answer, tokens)


@pytest.mark.parametrize(
    ("front", "generator", "sentence"),
    [
        (0.99, 0.1, "was not the bottleneck; what limited the rate: front"),
        (0.5, 0.95, "was the bottleneck; what limited the rate: load generator"),
        (0.8, 0.5, "was not the bottleneck; what limited the rate: the 2 cores, all busy"),
        (0.2, 0.1, "was not the bottleneck; what limited the rate: none of the three"),
    ],
)
def test_the_report_says_what_limited_the_front(
    front: float, generator: float, sentence: str
) -> None:
    shares = {"front": front, "workers": 0.6, "load generator": generator}
    assert sentence in bench.describe_limit(shares, cores=2)
