"""Faults 27 to 32 and 34: requests that are slow, large, ambiguous, no HTTP at all, or too many."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.helpers.running import RunningServer, open_request
from tests.helpers.support import echo_options

CONTEXT = 4096
REQUEST_S = 2.0
HEAD = b"POST /stream HTTP/1.1\r\nhost: localhost\r\n"
BODY = b'{"prompt": "x"}'


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    flags = ("--engine", "echo", "-n", str(CONTEXT), "--request-timeout", str(REQUEST_S))
    with RunningServer(*flags) as running:
        yield running


def connect(server: RunningServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def answer_to(server: RunningServer, data: bytes) -> bytes:
    """All that the server says to these bytes, to the connection's end."""
    with connect(server) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # it has closed already: what it said is still there
            pass
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass  # it had not read all that was sent
    return b"".join(parts)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def still_serves(server: RunningServer) -> None:
    assert server.post(prompt="hello", num_predict=9).status_code == 200


def trickle(server: RunningServer, data: bytes, every_s: float) -> tuple[bytes, float]:
    """Send a byte at a time until the server has had enough; what it said, and after how long."""
    started = time.monotonic()
    with connect(server) as connection:
        connection.settimeout(every_s)
        for place in range(len(data)):
            try:
                connection.sendall(data[place : place + 1])
                answer = connection.recv(65_536)
            except TimeoutError:
                continue
            except OSError:
                answer = b""
            return answer, time.monotonic() - started
    raise AssertionError("the server took all of it")


def test_fault_27_a_body_that_comes_a_byte_at_a_time_is_closed_at_a_deadline(
    server: RunningServer,
) -> None:
    with connect(server) as connection:
        connection.sendall(HEAD + b"content-length: 100000\r\n\r\n")
        started = time.monotonic()
        connection.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - started < 20:
            try:
                connection.sendall(b" ")
                answer = connection.recv(65_536)
            except TimeoutError:
                continue
        seconds = time.monotonic() - started
    assert status_of(answer) == 408
    assert REQUEST_S - 0.2 < seconds < REQUEST_S + 5
    still_serves(server)


def test_fault_27_headers_that_come_a_byte_at_a_time_are_closed_at_a_deadline(
    server: RunningServer,
) -> None:
    answer, seconds = trickle(server, HEAD + b"x: " + b"y" * 1000, every_s=0.1)
    assert status_of(answer) == 408
    assert 9.5 < seconds < 16
    still_serves(server)


def test_fault_27_slow_requests_hold_up_nobody(server: RunningServer) -> None:
    connections = [connect(server) for _ in range(100)]
    for connection in connections:
        connection.sendall(HEAD)
    started = time.monotonic()
    still_serves(server)
    assert time.monotonic() - started < 2
    for connection in connections:
        connection.close()


def test_fault_28_a_body_that_is_too_large_is_refused_by_its_announced_length(
    server: RunningServer,
) -> None:
    answer = answer_to(server, HEAD + b"content-length: 2000000\r\n\r\n" + b"x" * 1000)
    assert status_of(answer) == 413
    assert b'"code":"body_too_large"' in answer


def test_fault_28_a_chunked_body_that_is_too_large_is_refused_when_it_is(
    server: RunningServer,
) -> None:
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    answer = answer_to(server, HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk * 31)
    assert status_of(answer) == 413
    still_serves(server)


@pytest.mark.parametrize(("path", "status"), [(b"/stream", 413), (b"/no/such/path", 404)])
def test_fault_28_a_client_that_sends_all_of_a_body_that_nobody_reads_sees_the_answer(
    server: RunningServer, path: bytes, status: int
) -> None:
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" % path
    size = 8 * 1024 * 1024
    with connect(server) as connection:
        connection.sendall(head + b"content-length: %d\r\n\r\n" % size + b"x" * size)
        with connection.makefile("rb") as answer:  # a reset would be an error, or no answer
            assert status_of(answer.read()) == status


@pytest.mark.parametrize(
    "headers",
    [
        b"x: " + b"y" * 4_000_000 + b"\r\n",
        b"".join(b"x-%d: y\r\n" % number for number in range(20_000)),
        b"x: y\r\n" * 129,
    ],
    ids=["one-of-4-MB", "20,000", "129"],
)
def test_fault_29_a_flood_of_headers_is_refused(server: RunningServer, headers: bytes) -> None:
    front = psutil.Process(server.process.pid)
    before = front.memory_info().rss
    answer = answer_to(server, HEAD + headers + b"content-length: 15\r\n\r\n" + BODY)
    assert status_of(answer) == 431
    assert front.memory_info().rss - before < 4 * 2**20
    still_serves(server)


def test_fault_29_a_request_line_without_end_is_refused(server: RunningServer) -> None:
    answer = answer_to(server, b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert status_of(answer) == 431


BAD_JSON = {
    "empty": b"",
    "blank": b" \n",
    "truncated": b'{"prompt": "x"',
    "not UTF-8": b'{"prompt": "\xff"}',
    "brackets": b"[" * 100_000,
    "braces": b'{"a":' * 100_000,
    "long integer": b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    "NaN": b'{"prompt": "x", "temp": NaN}',
    "Infinity": b'{"prompt": "x", "temp": Infinity}',
    "1e999": b'{"prompt": "x", "temp": 1e999}',
    "true for a number": b'{"prompt": "x", "top_k": true}',
    "duplicate keys": b'{"prompt": "x", "prompt": "y"}',
    "array": b'[{"prompt": "x"}]',
    "text": b'"x"',
    "null": b"null",
}
BAD_TEXT = {
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "NUL": b'{"prompt": "a\\u0000b"}',
    "2**64": b'{"prompt": "x", "seed": 18446744073709551616}',
    "2**64 as a cache": b'{"prompt": "x", "cache": 18446744073709551616}',
    "a text that is no text": b'{"prompt": {"a": 1}}',
}
PATHS = ("/stream", "/token_stream", "/v1/completions", "/v1/chat/completions", "/v1/embeddings")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_fault_30_bad_json_is_a_400_with_a_sentence(
    server: RunningServer, path: str, body: bytes
) -> None:
    answer = server.client.post(path, content=body)
    assert answer.status_code == 400
    assert message_of(answer.json())


@pytest.mark.parametrize("body", BAD_TEXT.values(), ids=BAD_TEXT.keys())
def test_fault_31_bad_text_is_a_400_before_any_worker_sees_it(
    server: RunningServer, body: bytes
) -> None:
    # A worker that is stopped answers nothing: what is refused was not sent to it.
    (worker,) = server.workers()
    worker.suspend()
    try:
        answer = server.client.post("/stream", content=body)
    finally:
        worker.resume()
    assert answer.status_code == 400
    assert message_of(answer.json())


def message_of(error: dict[str, Any]) -> str:
    found = error["error"]
    return str(found if isinstance(found, str) else found["message"])


SMUGGLED = {
    "length and chunks": b"content-length: 15\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"transfer-encoding: chunked\r\ncontent-length: 15\r\n\r\n0\r\n\r\n",
    "two lengths": b"content-length: 15\r\ncontent-length: 16\r\n\r\n" + BODY,
    "the same length twice": b"content-length: 15\r\ncontent-length: 15\r\n\r\n" + BODY,
    "a list of lengths": b"content-length: 15, 15\r\n\r\n" + BODY,
    "a signed length": b"content-length: +15\r\n\r\n" + BODY,
    "another coding": b"transfer-encoding: gzip, chunked, x\r\n\r\n0\r\n\r\n",
    "bare line feeds": b"content-length: 15\n\n" + BODY,
    "a folded header": b"x: a\r\n b\r\ncontent-length: 15\r\n\r\n" + BODY,
    "a blank before the colon": b"content-length : 15\r\n\r\n" + BODY,
    "two hosts": b"host: localhost\r\ncontent-length: 15\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("rest", SMUGGLED.values(), ids=SMUGGLED.keys())
def test_fault_32_what_two_readers_could_understand_differently_is_refused(
    server: RunningServer, rest: bytes
) -> None:
    answer = answer_to(server, HEAD + rest)
    assert status_of(answer) == 400
    assert answer.count(b"HTTP/1.1") == 1  # no second request was found in it
    still_serves(server)


@pytest.mark.parametrize(
    "data",
    [
        b"POST /stream HTTP/1.1\r\ncontent-length: 15\r\n\r\n" + BODY,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"\0" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ],
    ids=["no-host", "tls", "version", "blank", "zeros", "http2", "upgrade"],
)
def test_what_is_no_request_is_a_400_or_the_end(server: RunningServer, data: bytes) -> None:
    answer = answer_to(server, data)
    assert not answer or status_of(answer) == 400
    still_serves(server)


def test_a_refusal_is_json_and_closes_the_connection(server: RunningServer) -> None:
    head, _, body = answer_to(server, b"nonsense\r\n\r\n").partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert json.loads(body) == {
        "error": {"code": "bad_http", "message": "the request is not valid HTTP"}
    }


def test_a_connection_serves_many_requests_and_pipelined_ones(server: RunningServer) -> None:
    request = HEAD + b"content-length: 15\r\n\r\n" + BODY
    last = HEAD + b"connection: close\r\ncontent-length: 15\r\n\r\n" + BODY
    with connect(server) as connection:
        connection.sendall(request * 5 + last)
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200") == 6


def test_an_idle_connection_without_a_request_is_closed(server: RunningServer) -> None:
    with connect(server) as connection:
        started = time.monotonic()
        answer = read_all(connection)
        assert status_of(answer) == 408
        assert 9 < time.monotonic() - started < 16


# ---------------------------------------------------------------- 34


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One slot, 20 ms a step, a queue of one."""
    path = echo_options(tmp_path_factory.mktemp("slow"), slots=1, step_s=0.02)
    with RunningServer("--engine", "echo", "-m", str(path), "--queue", "1") as running:
        yield running


def test_fault_34_a_full_queue_is_a_429_with_retry_after_and_health_still_answers(
    slow: RunningServer,
) -> None:
    with (
        slow.stream(prompt="run ", num_predict=1000, ignore_eos=True) as running,
        open_request(slow.url, prompt="wait") as waiting,
    ):
        lines = running.iter_lines()  # kept: httpx closes the connection of a dropped one
        next(lines)
        slow.until(lambda state: state["waiting"] == 1)

        response = slow.post(prompt="too many")

        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1
        assert slow.client.get("/health").json() == {"status": "ok"}
        running.close()
        assert waiting.recv(1000).startswith(b"HTTP/1.1 200")
    slow.until_idle()
