"""Load tests as they are run, on servers that are good and bad."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from scripts.load.dialects import STREAMING
from scripts.load.errors import CONNECTION, CUT, ERROR_EVENT, OTHER_FORMAT, TIMEOUT, WRONG
from scripts.loadtest import command as loadtest
from tests.helpers.canned_server import (
    HOST,
    LAST_CHUNK,
    Parts,
    canned_server,
    chunk,
    head,
    http,
)
from tests.helpers.running import RunningServer
from tests.scripts.load.answers import GOOD, NATIVE, lines, native, native_end

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


@pytest.mark.parametrize("dialect", STREAMING)
def test_each_dialect_is_measured(
    dialect: str, echo: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The echo engine writes a character a token: not one event may be missing."""
    options = ("--dialect", dialect, "--streams", "3", "--events", "exact")
    status, result = run_loadtest(tmp_path, echo.url, *options, *SHORT)
    assert status == 0
    server = the_server(result)
    assert server["requests"] == server["completed"] > 3
    assert server["failures"] == server["warm_up_failures"] == []
    assert 0 < server["ttft"]["p50"] <= server["ttft"]["worst"] <= server["e2e"]["worst"]
    assert server["e2e"]["count"] == server["completed"]
    assert len(server["stream_rates"]) == 3
    assert 0.5 < server["fairness"] <= 1
    if dialect != "token-stream":
        assert server["itl"]["count"] == 19 * server["completed"]
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
    assert (status, the_server(result)["completed"]) == (0, 7)


def test_a_host_is_found_at_whichever_of_its_addresses_it_listens(
    echo: RunningServer, tmp_path: Path
) -> None:
    url = echo.url.replace("127.0.0.1", "localhost")
    status, result = run_loadtest(tmp_path, url, "--requests", "2", "--warm-up", "0")
    assert (status, the_server(result)["completed"]) == (0, 2)


def test_requests_that_are_cancelled_as_planned_are_not_failures(
    echo: RunningServer, tmp_path: Path
) -> None:
    status, result = run_loadtest(tmp_path, echo.url, "--cancel", "0.5", *SHORT)
    server = the_server(result)
    assert status == 0
    assert server["cancelled"] > 0
    assert server["completed"] > 0
    assert server["cancelled"] + server["completed"] == server["requests"]
    echo.until_idle()


def test_a_load_without_a_request_is_not_a_success(
    echo: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "load.html"
    options = ("--rate", "0.001", "--duration", "0.1", "--warm-up", "0", "--report", str(page))
    status, result = run_loadtest(tmp_path, echo.url, *options)
    assert (status, the_server(result)["requests"]) == (1, 0)
    assert "NOTHING WAS MEASURED" in capsys.readouterr().out
    assert "Some loads were not measured" in page.read_text()


def test_words_that_all_prompts_share_are_cached(echo: RunningServer, tmp_path: Path) -> None:
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
    short = (*SHORT, "--duration", "0.2", "--report", str(page))
    status, result = run_loadtest(tmp_path, echo.url, *options, *short)
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
    assert re.search(r"[2-9] requests?: \d+ completed, 0 failed, 2 unfinished", out), out
    echo.until_idle()


def test_ctrl_c_ends_a_look_at_a_silent_server() -> None:
    with canned_server(lambda _: b"") as server:
        command = [sys.executable, "-m", "scripts.loadtest", server.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            server.asked.wait(20)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 128 + signal.SIGINT


def test_progress_is_plain_lines_where_there_is_no_terminal(
    echo: RunningServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("scripts.report.progress.LINES_S", 0.1)
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
    run_loadtest(tmp_path, echo.url, *SHORT)
    assert re.search(
        r"^loadtest: 8 streams: .* open, \d+ completed, 0 failed  ", shown.getvalue(), re.M
    )
    assert "\r" not in shown.getvalue()


# ---------------------------------------------------------------- against bad servers

PROBED = http(lines(native(0), native_end(1)))
"""The answer to the first request, which only checks that the server is there."""
COMPLETE = http(GOOD["stream"])
ONE = ("--streams", "1", "--warm-up", "0", "--tokens", "3")


def answering(*answers: Parts) -> Callable[[int], Parts]:
    """The answers to requests one after another, after the first one; the last is repeated."""
    return lambda number: [PROBED, *answers][min(number, len(answers))]


FAILED = [
    (http(lines(*NATIVE)), CUT, "without its last line"),
    (COMPLETE[:-5], CUT, "cut after 3 tokens"),
    (COMPLETE[:-60], CUT, "cut after 3 tokens"),
    (http(lines(native(0), native(0), native(1), native_end(3))), WRONG, "index 0"),
    (http(lines(native(0), native(2), native(1), native_end(3))), WRONG, "index 2"),
    (http(lines(native(0), {"error": {"message": "no more"}})), ERROR_EVENT, "no more"),
    (http(b'{"error": {"message": "full"}}', "503 No"), "HTTP 503", "full"),
    (http(b"slow down", "429 Too Many Requests"), "HTTP 429", "slow down"),
    (http(b"", "500 Internal Server Error"), "HTTP 500", "no message"),
    (http(b"{}", media_type="text/html"), OTHER_FORMAT, "text/html"),
    (b"hello\r\n\r\n", OTHER_FORMAT, "not HTTP"),
    (b"HTTP/1.1", CONNECTION, "closed before an answer"),
    (b"", TIMEOUT, "silent for 0.3 s"),
]
"""Answers, the kind of their failure, and its detail. tests/scripts/load has more of them."""


@pytest.fixture(scope="module")
def failed(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[int, dict[str, Any], str, str]:
    """One load with a complete answer and all those failures: status, JSON, output and page."""
    folder = tmp_path_factory.mktemp("failed")
    answers = [COMPLETE, *(answer for answer, _, _ in FAILED)]
    options = (*ONE, "--requests", str(len(answers)), "--timeout", "0.3")
    page = folder / "load.html"
    with canned_server(answering(*answers)) as server, redirect_stdout(io.StringIO()) as out:
        status, result = run_loadtest(folder, server.url, *options, "--report", str(page))
    return status, the_server(result), out.getvalue(), page.read_text()


def test_streams_that_fail_fail_the_command(
    failed: tuple[int, dict[str, Any], str, str],
) -> None:
    status, measured, _, page = failed
    assert status == 1
    assert (measured["completed"], measured["failed"]) == (1, len(FAILED))
    assert f"{len(FAILED)} streams failed: 3 × {CUT}" in page


@pytest.mark.parametrize("kind", sorted({kind for _, kind, _ in FAILED}))
def test_streams_that_fail_are_reported_by_their_kind(
    kind: str, failed: tuple[int, dict[str, Any], str, str]
) -> None:
    _, measured, out, page = failed
    details = [detail for _, each, detail in FAILED if each == kind]
    (failure,) = [each for each in measured["failures"] if each["kind"] == kind]
    assert failure["count"] == len(details)
    for detail in details:
        assert any(detail in example for example in failure["examples"])
    assert not any('{"error"' in example for example in failure["examples"])
    assert f"FAILED: {len(details)} × {kind}" in out
    assert f"{len(details)} × {kind}" in page


def test_times_are_those_at_which_tokens_come(tmp_path: Path) -> None:
    """The waits are the least that can be measured; how much longer they are, the machine says."""
    first, second, third, end = map(chunk, GOOD["stream"].splitlines(keepends=True))
    parts = (head(), 0.1, first, 0.05, second, 0.02, third + end, 0.08, LAST_CHUNK)
    with canned_server(answering(parts)) as server:
        status, result = run_loadtest(tmp_path, server.url, *ONE, "--requests", "2")
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
    with canned_server(answering(COMPLETE[:-9], COMPLETE)) as server:
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
    with canned_server(answering(COMPLETE)) as server:
        options = ("--model", "tales", "--fields", '{"temp": 0}', "--report", str(page))
        status, result = run_loadtest(tmp_path, server.url, *options, *ONE, "--requests", "1")
    assert status == 0
    start, _, body = server.requests[1].partition(b"\r\n\r\n")
    assert b"\r\nAuthorization: Bearer s3cret\r\n" in start
    fields = json.loads(body)
    assert (fields["model"], fields["temp"], fields["num_predict"]) == ("tales", 0, 3)
    captured = capsys.readouterr()
    for text in (json.dumps(result), page.read_text(), captured.out, captured.err):
        assert "s3cret" not in text


def test_a_server_that_does_not_answer_is_reported_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]
    assert loadtest.main([f"http://{HOST}:{port}"]) == 3
    assert "no server answers at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "other format: the answer is not HTTP.*--dialect"),
        (http(b"<html>", media_type="text/html"), "text/html, not application/x-ndjson.*--dialect"),
        (http(b"no such path", "404 Not Found"), "HTTP 404: no such path.*--dialect"),
        (http(b"who?", "401 Unauthorized"), "HTTP 401: who?.*--api-key"),
    ],
)
def test_a_server_that_speaks_another_protocol_is_reported_with_what_to_check(
    answer: bytes, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with canned_server(lambda _: answer) as server:
        assert loadtest.main([server.url]) == 3
    assert re.search(complaint, capsys.readouterr().err)
