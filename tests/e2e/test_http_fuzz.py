"""Bytes that were a request, cut, doubled and mixed up: an answer or the end, and nothing else."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.running import RunningServer

BODY = b'{"prompt": "hello", "num_predict": 5}'
HOST = b"host: localhost\r\n"
JSON = b"content-type: application/json\r\n"
END = b"\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
CLOSE = b"connection: close\r\n"
CHUNKS = b"5\r\n%s\r\n%x;x=y\r\n%s\r\n0\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])
REQUESTS = (
    b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /ready HTTP/1.0\r\n\r\n",
    b"GET /ui/app.js HTTP/1.1\r\n" + HOST + b"range: bytes=0-10,20-\r\nif-range: x\r\n\r\n",
    b"GET /v1/models/a%2Fb?x=%00&y HTTP/1.1\r\n" + HOST + b"accept: */*\r\n\r\n",
    b"DELETE /cache/7?model=echo HTTP/1.1\r\n" + HOST + b"\r\n",
    b"OPTIONS /stream HTTP/1.1\r\n" + HOST + b"origin: http://localhost\r\n\r\n",
    b"POST /stream HTTP/1.1\r\n" + HOST + JSON + LENGTH + b"\r\n" + BODY,
    b"POST /stream HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n" + CHUNKS,
    b"POST /api/generate HTTP/1.1\r\n" + HOST + b"expect: 100-continue\r\n" + LENGTH + END + BODY,
    b"POST /v1/completions HTTP/1.1\r\n" + HOST + CLOSE + LENGTH + END + BODY,
)
HEADERS = (
    b"host: [::1",
    b"content-length: 5",
    b"content-length: -1",
    b"content-length: 18446744073709551616",
    b"transfer-encoding: chunked",
    b"transfer-encoding: gzip",
    b"upgrade: h2c",
    b"connection: upgrade",
    b"expect: 100-continue",
    b"origin: null",
    b"authorization: Bearer \xff",
    b"x-request-id: ",
    b"accept: application/x-ndjson",
    b"x: " + b"a" * 70_000,
    b"x: y\r\n" * 200,
    b"ffffffffffffffff",
)
PIECES = (
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b"\xff", b"\x80", b" ", b"\t", b":", b"%", b";"),
    *(b"HTTP/1.1", b"HTTP/9.9", b"GET ", b"CONNECT ", b"PRI * HTTP/2.0", b"0\r\n\r\n"),
    *(b"//", b"*", b"http://other/", b"/../../etc/passwd", b"/ui/%2e%2e/x", b"?model=%ff"),
    *(b'"\\ud800"', b"[" * 2000, b"1e999"),
    *(header + END for header in HEADERS),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """One or two requests with a few things done to them."""
    data = b"".join(draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=2)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(("insert", "delete", "double", "replace", "cut", "flip")))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=8))
        match kind:
            case "insert":
                data = data[:start] + piece + data[start:]
            case "delete":
                data = data[:start] + data[end:]
            case "double":
                data = data[:end] + data[start:]
            case "replace":
                data = data[:start] + piece + data[end:]
            case "cut":
                data = data[:start]
            case "flip":
                bit = 1 << draw(st.integers(0, 7))
                data = (
                    data[:start]
                    + bytes(b ^ bit for b in data[start : start + 1])
                    + data[start + 1 :]
                )
    return data


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--engine", "echo", "-n", "256", "--request-timeout", "2") as running:
        running.wait_for_log("has no chat template")  # all that is said of a start
        yield running


def answer_to(server: RunningServer, data: bytes, cut: int) -> bytes:
    """All that the server says to the bytes, sent in two parts, to the connection's end."""
    host, port = server.url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection.sendall(data[:cut])
            connection.sendall(data[cut:])
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has had enough: what it said is still there
        try:
            while part := connection.recv(65_536):
                answer += part
        except ConnectionResetError:
            pass  # it had not read all that was sent
    return answer


def test_mutated_requests_are_answered_or_closed_and_the_server_goes_on(
    server: RunningServer,
) -> None:
    front = psutil.Process(server.process.pid)
    lines, files = len(server.log), front.num_fds()
    sent = 0

    @settings(max_examples=250, suppress_health_check=list(HealthCheck))
    @given(mutated(), st.integers(0, 200))
    def check(data: bytes, cut: int) -> None:
        nonlocal sent
        sent += 1
        answer = answer_to(server, data, cut)
        if answer:
            statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
            assert answer.startswith(b"HTTP/1.1 ")
            assert all(status < 500 for status in statuses), answer
        if sent % 25 == 0:
            assert server.post(prompt="hello", num_predict=9).status_code == 200

    check()
    server.until_idle()
    assert server.post(prompt="hello", num_predict=9).status_code == 200
    new = server.log[lines:]
    assert len(new) < 4 * sent + 100
    assert all(len(line) < 1000 for line in new)
    assert not [line for line in new if re.search(r" (WARNING|ERROR) |Traceback", line)]
    assert front.num_fds() <= files + 5


# ---------------------------------------------------------------- what it has found


def slow_stream() -> bytes:
    body = b'{"prompt": "ab[[sleep 0.5]]c", "num_predict": 200, "ignore_eos": true}'
    return b"POST /stream HTTP/1.1\r\n" + HOST + b"content-length: %d\r\n\r\n" % len(body) + body


def begun(server: RunningServer, data: bytes) -> socket.socket:
    """A connection on which the bytes were sent, and an answer has begun."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(data)
    answer = b""
    while b"a\n" not in answer:
        answer += connection.recv(65_536)
    return connection


def test_a_refusal_is_not_written_into_the_answer_of_an_earlier_request(
    server: RunningServer,
) -> None:
    with begun(server, slow_stream()) as connection:
        connection.sendall(REQUESTS[0] + b"nonsense\r\n\r\n")
        rest = b""
        while part := connection.recv(65_536):
            rest += part
    assert b"HTTP/1.1" not in rest
    assert b"bad_http" not in rest


def test_a_client_that_leaves_with_requests_in_the_queue_is_noticed_quietly(
    server: RunningServer,
) -> None:
    lines = len(server.log)
    begun(server, slow_stream() + REQUESTS[0] * 2).close()
    server.until_idle()
    assert not [line for line in server.log[lines:] if "Traceback" in line]
