"""The load generator: its plans, its checks, and runs against servers that are good and bad."""

from __future__ import annotations

import io
import itertools
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.load.bodies import Expected
from scripts.load.dialects import DIALECTS
from scripts.load.errors import CONNECTION, CUT, ERROR_EVENT, TIMEOUT, WRONG, StreamFailure
from scripts.load.plan import (
    BadPlan,
    Entry,
    FilePrompts,
    Fixed,
    Lognormal,
    Plan,
    RandomWords,
    Uniform,
    arrivals,
    parse_lengths,
    read_prompts,
)
from scripts.loadtest import command as loadtest
from scripts.loadtest.run import Closed, turns
from scripts.loadtest.summary import Generator
from scripts.report.stats import (
    jain,
    latency_spread,
    log_histogram,
    per_bin,
    percentile,
    rate_spread,
)
from scripts.report.svg import linear_axis, log_axis
from tests.helpers.running import RunningServer

HOST = "127.0.0.1"

# ---------------------------------------------------------------- lengths, prompts, arrivals


def test_lengths_are_as_they_are_written() -> None:
    assert parse_lengths("50") == Fixed(50)
    assert parse_lengths("uniform:10-200") == Uniform(10, 200)
    assert parse_lengths("lognormal:100,0.8") == Lognormal(100, 0.8)
    assert parse_lengths("lognormal:100,0.8,300") == Lognormal(100, 0.8, 300)


@pytest.mark.parametrize(
    "text", ["0", "-1", "x", "", "1.5", "uniform:5", "uniform:9-3", "uniform:0-3", "lognormal:0,1",
             "lognormal:9", "lognormal:9,-1", "lognormal:9,1,0", "normal:3,4", "lognormal:9,nan"]
)  # fmt: skip
def test_lengths_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(BadPlan, match="is no length: write N, uniform:LOW-HIGH"):
        parse_lengths(text)


def test_lengths_are_distributed_as_they_say() -> None:
    chance = random.Random(1)
    uniform = [Uniform(3, 5).draw(chance) for _ in range(1000)]
    assert set(uniform) == {3, 4, 5}
    lognormal = [Lognormal(100, 0.8, 300).draw(chance) for _ in range(4000)]
    assert 90 < percentile(lognormal, 50) < 110
    assert max(lognormal) == 300
    assert min(lognormal) >= 1


def plan(seed: str = "1", leaving: float = 0.0, shared: int = 0) -> Plan:
    return Plan(RandomWords(Uniform(5, 50), Uniform(1, 100), shared), seed, leaving)


def test_a_seed_decides_every_request_in_whatever_order_they_are_drawn() -> None:
    forwards = [plan(leaving=0.5).ask(index) for index in range(-5, 20)]
    backwards = [plan(leaving=0.5).ask(index) for index in reversed(range(-5, 20))]
    assert forwards == backwards[::-1]
    assert len({ask.prompt for ask in forwards}) == 25
    assert plan("2").ask(0) != plan("1").ask(0)


def test_the_share_that_leaves_is_as_asked_and_nobody_leaves_after_the_end() -> None:
    asks = [plan(leaving=0.25).ask(index) for index in range(2000)]
    leaving = [ask for ask in asks if ask.leaves_after is not None]
    assert 0.22 < len(leaving) / len(asks) < 0.28
    assert all(0 <= (ask.leaves_after or 0) < ask.tokens for ask in leaving)
    assert [ask.prompt for ask in asks] == [plan().ask(index).prompt for index in range(2000)]


def test_shared_words_are_the_same_and_the_others_are_not() -> None:
    prompts = [plan(shared=30).ask(index).prompt.split() for index in range(10)]
    assert len({tuple(words[:30]) for words in prompts}) == 1
    assert len({tuple(words[30:]) for words in prompts}) == 10


def test_arrivals_are_random_but_the_same_for_a_seed_and_as_many_as_the_rate_says() -> None:
    def first(seconds: float, ramp_s: float, seed: str = "1") -> list[float]:
        return list(itertools.takewhile(lambda t: t < seconds, arrivals(20, ramp_s, seed)))

    assert first(50, 0) == first(50, 0) != first(50, 0, "2")
    assert 900 < len(first(50, 0)) < 1100
    assert 400 < len(first(50, 50)) < 600, "the rate grows from 0"
    assert len(first(10, 50)) < len(first(50, 50)) / 10
    gaps = [b - a for a, b in itertools.pairwise(first(50, 0))]
    assert max(gaps) > 5 * percentile(gaps, 50), "they come in crowds and with pauses"


def test_prompts_are_read_from_lines_and_from_objects(tmp_path: Path) -> None:
    text, objects = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    text.write_text("Once upon\n\n{a time}\n")
    assert read_prompts(text) == [Entry("Once upon"), Entry("{a time}")]
    messages = [{"role": "user", "content": "Hi"}]
    lines = [{"prompt": "Once", "max_tokens": 7}, {"messages": messages}]
    objects.write_text("\n".join(map(json.dumps, lines)))
    entries = read_prompts(objects)
    assert entries == [Entry("Once", tokens=7), Entry("", tuple(messages))]
    asks = [Plan(FilePrompts(entries, Fixed(5)), "1").ask(index) for index in range(3)]
    assert [ask.tokens for ask in asks] == [7, 5, 7]
    assert asks[1].messages == tuple(messages)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 1: is not JSON"),
        ('{"prompt": "a", "messages": []}', "either prompt or messages"),
        ('{"prompt": ""}', "prompt must be a string that is not empty"),
        ('{"messages": [{"role": "user"}]}', "messages must be a list, not empty"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens must be an integer from 1"),
        ("", "has no prompts"),
    ],
)
def test_a_bad_file_of_prompts_is_refused_with_its_line(
    tmp_path: Path, line: str, complaint: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(line)
    with pytest.raises(BadPlan, match=complaint):
        read_prompts(path)


def test_two_servers_take_turns_and_each_is_first_as_often() -> None:
    order = [(turn.round, turn.target) for turn in turns([Closed(1)], targets=2, rounds=4)]
    assert order == [(0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1), (3, 1), (3, 0)]


# ---------------------------------------------------------------- statistics


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(
    values: list[float], percent: int
) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


def test_the_bad_end_of_latencies_is_high_and_that_of_rates_is_low() -> None:
    values = [float(value) for value in range(1, 101)]
    latency, rate = latency_spread(values), rate_spread(values)
    assert latency is not None
    assert (latency.p50, latency.p99, latency.worst) == (50, 99, 100)
    assert rate is not None
    assert (rate.p50, rate.p99, rate.worst) == (51, 2, 1)
    assert latency_spread([]) is None


def test_jains_index_is_1_for_equals_and_a_share_for_one_that_has_all() -> None:
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([1, 2, 3]) == pytest.approx(36 / (3 * 14))
    assert jain([]) is None
    assert jain([0, 0]) is None


@given(st.lists(st.floats(1e-6, 1e3)))
def test_a_histogram_has_every_value_once_and_no_gaps(values: list[float]) -> None:
    bins = log_histogram([0.0, *values])
    assert sum(each.count for each in bins) == len(values)
    for left, right in itertools.pairwise(bins):
        assert left.high == pytest.approx(right.low)


def test_times_are_counted_in_bins_and_those_outside_are_not() -> None:
    assert per_bin([0.9, 1.0, 1.4, 1.5, 2.9, 3.0], start=1.0, width=0.5, bins=4) == [2, 1, 0, 1]


@given(st.floats(1e-4, 1e7), st.floats(1.001, 1e5))
def test_axes_hold_their_values_between_a_few_ticks(low: float, factor: float) -> None:
    high = low * factor
    linear, log = linear_axis("", high), log_axis("", low, high)
    for axis in (linear, log):
        assert 0 <= axis.place(low) < axis.place(high) <= 1 + 1e-9
        assert len(axis.ticks) <= 12
        assert list(axis.ticks) == sorted(axis.ticks)


def test_a_busy_or_late_load_generator_is_doubted() -> None:
    assert Generator(0.5, 0.002, 0.2).doubt is None
    assert "took 85% of a core" in (Generator(0.85, 0.002, 0.2).doubt or "")
    assert "12 ms late" in (Generator(0.5, 0.012, 0.2).doubt or "")


# ---------------------------------------------------------------- bodies


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def events(*values: Any) -> bytes:
    return b"".join(
        b"data: " + (b"[DONE]" if value is None else json.dumps(value).encode()) + b"\n\n"
        for value in values
    )


def native(index: int) -> dict[str, Any]:
    return {"token": "a", "index": index, "id": 97}


def native_end(tokens: int, reason: str = "length") -> dict[str, Any]:
    usage = {"prompt_tokens": 5, "cached_tokens": 0, "completion_tokens": tokens}
    return {"done": True, "finish_reason": reason, "usage": usage}


def chunk(text: str, reason: str | None = None, answer: str = "x") -> dict[str, Any]:
    return {"id": answer, "choices": [{"index": 0, "text": text, "finish_reason": reason}]}


def usage(tokens: int) -> dict[str, Any]:
    return {"id": "x", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}}


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def generated(text: str) -> dict[str, Any]:
    return {"response": text, "done": False}


def generated_end(tokens: int) -> dict[str, Any]:
    end = {"done": True, "done_reason": "length", "prompt_eval_count": 5, "eval_count": tokens}
    return {"response": "", **end}


def chatted(line: dict[str, Any]) -> dict[str, Any]:
    return {**line, "message": {"role": "assistant", "content": line.get("response")}}


GOOD = {
    "stream": lines(native(0), native(1), native(2), native_end(3)),
    "stream-plain": b"a\n\\n\n\xc3\xa4\n",
    "openai": events(chunk("a"), chunk("b"), chunk("ä"), chunk("", "length"), usage(3), None),
    "openai-chat": b": hello\n\n"
    + events(
        delta(role="assistant", content=""),
        *(delta(content=text) for text in "abc"),
        delta("length"),
        usage(3),
        None,
    ),
    "ollama": lines(*map(generated, "abc"), generated_end(3)),
    "ollama-chat": lines(*map(chatted, map(generated, "abc")), chatted(generated_end(3))),
}
"""Three tokens of each dialect."""


def feed(dialect: str, data: bytes, cuts: list[int] = [], **expected: Any) -> int:  # noqa: B006
    body = DIALECTS[dialect].body(Expected(**{"tokens": 3, **expected}))
    for start, end in itertools.pairwise([0, *sorted(cuts), len(data)]):
        body.feed(data[start:end])
    body.end()
    return body.tokens


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_a_good_answer_is_whole_wherever_reads_cut_it(dialect: str, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(GOOD[dialect]))))
    assert feed(dialect, GOOD[dialect], cuts) == 3


NATIVE = [native(0), native(1), native(2)]
TEXTS = [chunk("a"), chunk("b"), chunk("c")]
BAD: list[tuple[str, bytes, str, str]] = [
    ("stream", lines(*NATIVE), CUT, "without its last line after 3 tokens"),
    ("stream", lines(*NATIVE, native_end(3))[:-1], CUT, "within a line"),
    ("stream", lines(native(0), native(0), native(1), native_end(3)), WRONG, "has the index 0"),
    ("stream", lines(native(1), native(0), native(2), native_end(3)), WRONG, "has the index 1"),
    ("stream", lines(native(0), native(2), native_end(2)), WRONG, "has the index 2"),
    ("stream", lines(*NATIVE, native_end(4)), WRONG, "3 tokens came, but usage says 4"),
    ("stream", lines(*NATIVE[:2], native_end(2)), WRONG, "2 tokens instead of 3"),
    ("stream", lines(*NATIVE, native_end(3, "cancelled")), WRONG, "finish_reason is 'cancelled'"),
    ("stream", lines(*NATIVE, native_end(3), native(3)), WRONG, "a line after the last one"),
    ("stream", lines(native(0), {"error": {"message": "no more"}}), ERROR_EVENT, "no more"),
    ("stream", lines({"text": "a"}), WRONG, "not of this format"),
    ("stream", b"token\n", WRONG, "not JSON"),
    ("stream", b"[1]\n", WRONG, "not an object"),
    ("stream-plain", b"a\nb\n", WRONG, "2 tokens instead of 3"),
    ("stream-plain", b"a\nb\nc\nd\n", WRONG, "4 tokens instead of 3"),
    ("stream-plain", b"a\nb\nc", CUT, "within a line"),
    ("token-stream", b"", CUT, "without a text"),
    ("openai", events(*TEXTS, chunk("", "length"), usage(3)), CUT, r"without \[DONE\]"),
    ("openai", events(*TEXTS, usage(3), None), WRONG, "no finish reason"),
    ("openai", events(*TEXTS, chunk("", "length"), usage(2), None), WRONG, "usage says 2 tokens"),
    ("openai", events(*TEXTS, chunk("d", "length"), None), WRONG, "4 tokens instead of 3"),
    ("openai", events(chunk("a"), chunk("b", answer="y"), None), WRONG, "of another answer"),
    ("openai", events(chunk("a", "length"), chunk("b"), None), WRONG, "after the finish reason"),
    ("openai", events(chunk("a"), {"error": {"message": "no more"}}), ERROR_EVENT, "no more"),
    ("openai", events(*TEXTS, chunk("", "stop"), None, chunk("d")), WRONG, "after .DONE."),
    ("openai-chat", events(chunk("a")), WRONG, "not of this format"),
    ("ollama", lines(generated("a")), CUT, "without its last line"),
    ("ollama", lines(generated("a"), {"error": "no more"}), ERROR_EVENT, "no more"),
    ("ollama", lines(*map(generated, "abc"), generated_end(2)), WRONG, "usage says 2 tokens"),
    ("ollama-chat", lines(generated("a")), WRONG, "not of this format"),
]


@pytest.mark.parametrize(("dialect", "data", "kind", "complaint"), BAD)
def test_anything_else_is_a_failure_of_its_kind(
    dialect: str, data: bytes, kind: str, complaint: str
) -> None:
    with pytest.raises(StreamFailure, match=complaint) as caught:
        feed(dialect, data)
    assert caught.value.kind == kind


def test_events_that_are_missing_are_counted_by_the_rule_that_was_asked_for() -> None:
    merged = events(chunk("a" * 9), chunk("", "length"), usage(9), None)
    split = events(*[chunk("äöü")] * 3, chunk("", "length"), usage(9), None)
    assert feed("openai", merged, tokens=9, events="merged") == 1
    assert feed("openai", split, tokens=9) == 3, "each character may be of two tokens"
    for data, rule in ((merged, "usual"), (merged, "exact"), (split, "exact")):
        with pytest.raises(StreamFailure, match="events came, but usage says 9 tokens"):
            feed("openai", data, tokens=9, events=rule)


# ---------------------------------------------------------------- against the real server


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = tmp_path_factory.mktemp("echo") / "echo.json"
    options.write_text(json.dumps({"slots": 8, "step_s": 0.0005}))
    with RunningServer("--engine", "echo", "-m", str(options)) as server:
        yield server


SHORT = ("--warm-up", "0.1", "--duration", "0.4", "--tokens", "20", "--prompt-words", "10")


def run_loadtest(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and what it wrote as JSON."""
    path = tmp_path / "load.json"
    status = loadtest.main([*arguments, "--json", str(path)])
    result: dict[str, Any] = json.loads(path.read_bytes())
    return status, result


def the_server(result: dict[str, Any]) -> dict[str, Any]:
    ((server,),) = ([*point["servers"]] for point in result["points"])
    return dict(server)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_dialect_is_measured(
    dialect: str, echo: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The echo engine writes a character a token: not one event may be missing."""
    options = ("--dialect", dialect, "--streams", "3", "--events", "exact")
    status, result = run_loadtest(tmp_path, echo.url, *options, *SHORT)
    assert status == 0
    server = the_server(result)
    assert server["requests"] == server["whole"] > 3
    assert server["failures"] == server["warm_up_failures"] == []
    assert 0 < server["ttft"]["p50"] <= server["ttft"]["worst"] <= server["e2e"]["worst"]
    assert server["e2e"]["count"] == server["whole"]
    assert len(server["stream_rates"]) == 3
    assert 0.5 < server["fairness"] <= 1
    if dialect != "token-stream":
        assert server["itl"]["count"] == 19 * server["whole"]
    out = capsys.readouterr().out
    assert re.search(r"3 streams, http://127.0.0.1:\d+", out)
    assert re.search(r"TTFT, ms( +[\d,.]+){5}\n", out)


def test_an_open_loop_is_swept_over_its_rates_and_becomes_a_page(
    echo: RunningServer, tmp_path: Path
) -> None:
    page = tmp_path / "load.html"
    options = ("--rates", "20,60", "--ramp-up", "0.1", "--report", str(page), *SHORT)
    status, result = run_loadtest(tmp_path, echo.url, *options)
    assert status == 0
    slow, fast = result["points"]
    assert (slow["load"], fast["load"]) == ("20 requests/s", "60 requests/s")
    assert slow["servers"][0]["requests"] < fast["servers"][0]["requests"]
    html = page.read_text()
    assert html.count("<svg") > 10
    assert "Latency against load" in html
    assert set(re.findall(r"https?://[^ )<]+", html)) == {echo.url}, "no other address"
    assert "<script" not in html
    assert "nan" not in re.sub(r"<[a-z]+ ?|font[^;]*;", "", html).split("</style>")[1]


def test_so_many_requests_are_counted_and_the_warm_up_is_not(
    echo: RunningServer, tmp_path: Path
) -> None:
    options = ("--requests", "7", "--streams", "3", "--warm-up", "0.1", "--tokens", "5")
    status, result = run_loadtest(tmp_path, echo.url, *options)
    assert (status, the_server(result)["whole"]) == (0, 7)


def test_a_host_is_found_at_whichever_of_its_addresses_it_listens(
    echo: RunningServer, tmp_path: Path
) -> None:
    url = echo.url.replace("127.0.0.1", "localhost")
    status, result = run_loadtest(tmp_path, url, "--requests", "2", "--warm-up", "0")
    assert (status, the_server(result)["whole"]) == (0, 2)


def test_clients_that_leave_as_asked_are_no_failures(echo: RunningServer, tmp_path: Path) -> None:
    status, result = run_loadtest(tmp_path, echo.url, "--cancel", "0.5", *SHORT)
    server = the_server(result)
    assert status == 0
    assert server["left"] > 0
    assert server["whole"] > 0
    assert server["left"] + server["whole"] == server["requests"]
    echo.until_idle()


def test_a_load_without_a_request_is_no_success(
    echo: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "load.html"
    options = ("--rate", "0.001", "--duration", "0.1", "--warm-up", "0", "--report", str(page))
    status, result = run_loadtest(tmp_path, echo.url, *options)
    assert (status, the_server(result)["requests"]) == (1, 0)
    assert "NOTHING WAS MEASURED" in capsys.readouterr().out
    assert "nothing was measured" in page.read_text()


def test_a_prompt_that_all_share_is_cached(echo: RunningServer, tmp_path: Path) -> None:
    options = ("--shared-words", "60", "--seed", "99", *SHORT)
    status, result = run_loadtest(tmp_path, echo.url, *options)
    server = the_server(result)
    assert status == 0
    assert server["cached_tokens"] > server["prompt_tokens"] / 2


def test_two_servers_are_compared_round_by_round(
    echo: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "load.html"
    options = ("--compare", echo.url, "--compare-dialect", "stream-plain", "--rounds", "2")
    status, result = run_loadtest(tmp_path, echo.url, *options, "--report", str(page), *SHORT)
    assert status == 0
    (point,) = result["points"]
    first, second = point["servers"]
    assert first["rounds"] == second["rounds"] == 2
    ratios = {ratio["name"]: ratio["values"] for ratio in point["ratios"]}
    assert len(ratios["tokens/s"]) == len(ratios["TTFT p50"]) == 2
    assert re.search(r"TTFT p50 +[\d.]+ +\([\d.]+ … [\d.]+\)", capsys.readouterr().out)
    assert "B over A" in page.read_text()


def test_ctrl_c_prints_what_was_measured_so_far(echo: RunningServer) -> None:
    command = [
        sys.executable,
        "-m",
        "scripts.loadtest",
        echo.url,
        "--streams",
        "2",
        "--warm-up",
        "0",
    ]
    process = subprocess.Popen(
        [*command, "--duration", "600", "--tokens", "2000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    echo.until(lambda state: bool(state["active"] == 2))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT, err
    assert "interrupted: these are the figures until then" in out
    assert re.search(r"[2-9] requests?: \d+ whole, 0 failed, 2 unfinished", out), out
    echo.until_idle()


def test_ctrl_c_ends_a_look_at_a_silent_server() -> None:
    with bad_server(lambda _: b"", first=b"") as server:
        command = [sys.executable, "-m", "scripts.loadtest", server.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            server.asked.wait(20)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 128 + signal.SIGINT


# ---------------------------------------------------------------- against bad servers


def http(body: bytes, status: str = "200 OK", kind: str = "application/x-ndjson") -> bytes:
    """A chunked answer, to its end."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n" if body else b""
    return head.encode() + chunk + b"0\r\n\r\n"


PROBED = http(lines(native(0), native_end(1)))
WHOLE = http(GOOD["stream"])


Parts = bytes | Sequence[bytes | float]
"""What a server sends, and how many seconds it waits in between."""


class BadServer:
    """Answers the first request, which only looks who is there, and all others as it is told."""

    def __init__(self, answer: Callable[[int], Parts], first: Parts) -> None:
        self.requests: list[bytes] = []
        self.asked = threading.Event()
        self._answer = answer
        self._first = first
        self._listener = socket.create_server((HOST, 0))
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(read_request(connection))
                self.asked.set()
                number = len(self.requests) - 2
                answer = self._first if number < 0 else self._answer(number)
                for part in [answer] if isinstance(answer, bytes) else answer:
                    if isinstance(part, bytes):
                        connection.sendall(part)
                    else:
                        time.sleep(part)
                if answer == b"":
                    connection.recv(1)  # until the client leaves


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
    while len(body) < length:
        body += connection.recv(1 << 16)
    return head + b"\r\n\r\n" + body


@contextmanager
def bad_server(answer: Callable[[int], Parts], first: Parts = PROBED) -> Iterator[BadServer]:
    server = BadServer(answer, first)
    try:
        yield server
    finally:
        server.close()


ONE = ("--streams", "1", "--requests", "2", "--warm-up", "0", "--tokens", "3")


@pytest.mark.parametrize(
    ("answer", "kind", "detail"),
    [
        (http(lines(*NATIVE)), CUT, "without its last line"),
        (WHOLE[:-5], CUT, "cut after 3 tokens"),
        (WHOLE[:-60], CUT, "cut after 3 tokens"),
        (http(lines(native(0), native(0), native(1), native_end(3))), WRONG, "index 0"),
        (http(lines(native(0), native(2), native(1), native_end(3))), WRONG, "index 2"),
        (http(lines(native(0), {"error": {"message": "no more"}})), ERROR_EVENT, "no more"),
        (http(b'{"error": {"message": "full"}}', "503 No"), "HTTP 503", "full"),
        (http(b'{"error": "full"}', "503 No"), "HTTP 503", "full"),
        (http(b"slow down", "429 Too Many Requests"), "HTTP 429", "slow down"),
        (http(b"", "500 Internal Server Error"), "HTTP 500", "without a reason"),
        (http(b"{}", kind="text/html"), "other format", "text/html"),
        (b"hello\r\n\r\n", "other format", "not HTTP"),
        (b"HTTP/1.1", CONNECTION, "closed before an answer"),
        (b"", TIMEOUT, "silent for 0.3 s"),
    ],
)
def test_a_stream_that_fails_is_reported_by_its_kind_and_fails_the_command(
    answer: bytes, kind: str, detail: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "load.html"
    with bad_server(lambda number: WHOLE if number == 0 else answer) as server:
        options = (*ONE, "--timeout", "0.3", "--report", str(page))
        status, result = run_loadtest(tmp_path, server.url, *options)
    assert status == 1
    measured = the_server(result)
    assert (measured["whole"], measured["failed"]) == (1, 1)
    ((failure),) = measured["failures"]
    assert (failure["kind"], failure["count"]) == (kind, 1)
    assert detail in failure["examples"][0]
    assert '{"error"' not in failure["examples"][0]
    assert f"FAILED: 1 × {kind}" in capsys.readouterr().out
    assert f"1 stream failed: 1 × {kind}" in page.read_text()


def test_times_are_those_at_which_tokens_come(tmp_path: Path) -> None:
    """The waits are the least that can be measured; how much more is the machine's own affair."""
    head, _, _ = WHOLE.partition(b"\r\n\r\n")
    first, second, third, end = (
        b"%x\r\n%b\r\n" % (len(line), line) for line in GOOD["stream"].splitlines(keepends=True)
    )
    parts = (head + b"\r\n\r\n", 0.1, first, 0.05, second, 0.02, third + end, 0.08, b"0\r\n\r\n")
    with bad_server(lambda _: parts) as server:
        status, result = run_loadtest(tmp_path, server.url, *ONE)
    measured = the_server(result)
    assert status == 0
    assert measured["ttft"]["p50"] >= 0.1
    assert measured["itl"]["count"] == 4
    assert measured["itl"]["worst"] >= 0.05
    assert measured["itl"]["p50"] >= 0.02
    assert measured["e2e"]["p50"] >= 0.25
    assert measured["tokens"] == 6
    assert measured["token_rate"] <= 6 / (2 * 0.25)


def test_a_failure_in_the_warm_up_fails_the_command_too(tmp_path: Path) -> None:
    with bad_server(lambda number: WHOLE if number else WHOLE[:-9]) as server:
        options = ("--streams", "1", "--requests", "1", "--warm-up", "0.05", "--tokens", "3")
        status, result = run_loadtest(tmp_path, server.url, *options)
    assert status == 1
    assert the_server(result)["failures"] == []
    assert the_server(result)["warm_up_failures"][0]["kind"] == CUT


def test_the_key_and_the_fields_are_sent_and_the_key_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOADTEST_API_KEY", "s3cret")
    page = tmp_path / "load.html"
    with bad_server(lambda _: WHOLE) as server:
        options = ("--model", "tales", "--fields", '{"temp": 0}', "--report", str(page))
        status, result = run_loadtest(tmp_path, server.url, *options, *ONE)
    assert status == 0
    head, _, body = server.requests[1].partition(b"\r\n\r\n")
    assert b"\r\nAuthorization: Bearer s3cret\r\n" in head
    fields = json.loads(body)
    assert (fields["model"], fields["temp"], fields["num_predict"]) == ("tales", 0, 3)
    captured = capsys.readouterr()
    for text in (json.dumps(result), page.read_text(), captured.out, captured.err):
        assert "s3cret" not in text


def test_nobody_there_is_told_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]
    assert loadtest.main([f"http://{HOST}:{port}"]) == 3
    assert "nobody answers at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "other format: the answer is not HTTP.*--dialect"),
        (http(b"<html>", kind="text/html"), "text/html, not application/x-ndjson.*--dialect"),
        (http(b"no such path", "404 Not Found"), "HTTP 404: no such path.*--dialect"),
        (http(b"who?", "401 Unauthorized"), "HTTP 401: who?.*--api-key"),
    ],
)
def test_a_server_that_speaks_something_else_is_told_with_what_to_look_at(
    answer: bytes, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with bad_server(lambda _: b"", first=answer) as server:
        assert loadtest.main([server.url]) == 3
    assert re.search(complaint, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["127.0.0.1:80"], "must be like http://HOST:PORT"),
        (["http://h", "--streams", "0"], "each must be an integer from 1"),
        (["http://h", "--rates", "1,0"], "must be a number > 0"),
        (["http://h", "--rate", "1", "--streams", "2"], "not allowed with"),
        (["http://h", "--duration", "-1"], "must be a number > 0"),
        (["http://h", "--cancel", "1.5"], "must be a number from 0 to 1"),
        (["http://h", "--tokens", "many"], "is no length"),
        (["http://h", "--fields", "[]"], "must be a JSON object"),
        (["http://h", "--dialect", "french"], "invalid choice"),
        (["http://h", "--prompts", "no-such-file"], "no-such-file cannot be read"),
        (["http://h", "--compare-model", "a"], "need --compare"),
        (["http://h", "--api-key", "a\nb"], "printable ASCII"),
        (["http://h", "--json", "no/such/folder/x.json"], "there is no folder"),
    ],
)
def test_bad_options_are_refused_with_their_range(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        loadtest.main(options)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_messages_are_refused_where_the_dialect_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}')
    with pytest.raises(SystemExit):
        loadtest.main(["http://h", "--prompts", str(path)])
    assert "these do: openai-chat, ollama-chat" in capsys.readouterr().err


def test_progress_is_plain_lines_where_there_is_no_terminal(
    echo: RunningServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("scripts.loadtest.progress.LINES_S", 0.1)
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
    run_loadtest(tmp_path, echo.url, *SHORT)
    assert re.search(
        r"^loadtest: 8 streams: .* open, \d+ whole, 0 failed  ", shown.getvalue(), re.M
    )
    assert "\r" not in shown.getvalue()
