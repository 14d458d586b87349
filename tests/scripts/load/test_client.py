"""The HTTP client: times, chunks, and failures by their kind, against raw sockets."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.load.client import Client
from scripts.load.dialects import STREAMING
from scripts.load.errors import CONNECTION, CUT, ERROR_EVENT, OTHER_FORMAT, TIMEOUT, WRONG
from scripts.load.exchange import Exchange
from scripts.load.interrupt import new_runner
from scripts.load.record import Record, State
from scripts.load.request import Request
from scripts.load.target import Target
from tests.helpers.canned_server import LAST_CHUNK, Parts, canned_server, chunk, head, http
from tests.scripts.load.answers import GOOD, NATIVE, lines, native, native_end

TIMEOUT_S = 0.3
COMPLETE = http(GOOD["stream"])
CHUNKED = (
    head(media_type="text/plain") + chunk(b"a\n\n") + chunk(b"\n") + chunk(b"\\n\\r\xc3\n")
) + LAST_CHUNK
"""Four tokens, two of them without text, in three chunks."""


def ask(answer: Parts, dialect: str = "stream", **request: Any) -> Record:
    """What becomes of one request that is answered so."""

    async def run(url: str) -> Record:
        async with Client(Target(url, STREAMING[dialect]), TIMEOUT_S) as client:
            return await client.ask(Request(**{"prompt": "x", "tokens": 3, "seed": 1, **request}))

    with canned_server(lambda _: answer) as server, new_runner() as runner:
        return runner.run(run(server.url))


def test_a_complete_answer_is_counted() -> None:
    record = ask(CHUNKED, "stream-plain", tokens=4)
    assert record.state is State.COMPLETED
    assert len(record.arrivals) == 4
    assert record.chunks == 3 + 1


@given(st.lists(st.integers(0, len(CHUNKED))))
def test_tokens_and_chunks_are_counted_wherever_reads_cut_the_answer(cuts: list[int]) -> None:
    async def receive() -> Record:
        target = Target("http://h", STREAMING["stream-plain"])
        exchange = Exchange(target, Request("x", 4, 1), Record(0, 4, 0.0, counts=True))
        for start, end in itertools.pairwise([0, *sorted(cuts), len(CHUNKED)]):
            exchange.data_received(CHUNKED[start:end])
        return exchange.record

    record = asyncio.run(receive())
    assert (record.state, len(record.arrivals), record.chunks) == (State.COMPLETED, 4, 4)


@pytest.mark.parametrize(
    ("answer", "kind", "detail"),
    [
        (http(lines(*NATIVE)), CUT, "without its last line"),
        (COMPLETE[:-5], CUT, "cut after 3 tokens"),
        (COMPLETE[:-1], CUT, "cut after 3 tokens"),
        (COMPLETE[:-60], CUT, "cut after 3 tokens"),
        (http(lines(native(0), native(0), native(1), native_end(3))), WRONG, "index 0"),
        (http(lines(native(0), {"error": {"message": "no more"}})), ERROR_EVENT, "no more"),
        (http(b'{"error": {"message": "full"}}', "503 No"), "HTTP 503", "full"),
        (http(b'{"error": "full"}', "503 No"), "HTTP 503", "full"),
        (http(b"slow down", "429 Too Many Requests"), "HTTP 429", "slow down"),
        (http(b"", "500 Internal Server Error"), "HTTP 500", "no message"),
        (http(b"{}", media_type="text/html"), OTHER_FORMAT, "text/html"),
        (b"hello\r\n\r\n", OTHER_FORMAT, "not HTTP"),
        (b"HTTP/1.1", CONNECTION, "closed before an answer"),
        ((), CONNECTION, "closed before an answer"),
        (b"", TIMEOUT, "silent for 0.3 s"),
    ],
)
def test_anything_else_is_a_failure_of_its_kind(answer: Parts, kind: str, detail: str) -> None:
    record = ask(answer)
    assert record.state is State.FAILED
    assert record.failure is not None
    assert record.failure.kind == kind
    assert detail in record.failure.detail


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n" + GOOD["stream"]
    assert ask(answer).state is State.COMPLETED


def test_each_token_has_the_time_of_its_arrival() -> None:
    """The waits are the least that can be measured; how much longer they are, the machine says."""
    first, second, third, end = map(chunk, GOOD["stream"].splitlines(keepends=True))
    parts = (head(), 0.05, first, 0.03, second, 0.02, third + end, 0.04, LAST_CHUNK)
    begun = time.monotonic()
    record = ask(parts)
    times = record.arrivals
    assert times[0] - begun >= 0.05
    assert times[1] - times[0] >= 0.02
    assert times[2] - times[1] >= 0.01
    assert record.ended - times[2] >= 0.03


def test_a_client_disconnects_after_tokens_or_after_a_time() -> None:
    first, *rest = map(chunk, GOOD["stream"].splitlines(keepends=True))
    record = ask((head(), first, 0.1, b"".join(rest)), cancel_after_tokens=1)
    assert (record.state, len(record.arrivals)) == (State.CANCELLED, 1)
    assert ask(b"", cancel_after_tokens=0).state is State.CANCELLED
    record = ask((head(), 0.1, *rest), cancel_after_s=0.02)
    assert (record.state, len(record.arrivals)) == (State.CANCELLED, 0)


def test_a_slow_reader_pauses_between_two_reads() -> None:
    many = lines(*map(native, range(2000)), native_end(2000))
    record = ask(http(many), tokens=2000, read_pause_s=0.02, receive_buffer_bytes=4096)
    assert record.state is State.COMPLETED
    times = sorted(set(record.arrivals))
    assert len(times) > 3
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) > 0.015


def test_a_request_is_sent_when_that_is_asked_for_and_its_tokens_can_be_waited_for() -> None:
    first, *rest = map(chunk, GOOD["stream"].splitlines(keepends=True))

    async def run(url: str) -> None:
        async with (
            Client(Target(url, STREAMING["stream"]), timeout_s=5) as client,
            client.connect(Request("x", 3, 1)) as exchange,
        ):
            assert not server.asked.is_set()
            exchange.send()
            await exchange.until_tokens(1)
            assert len(exchange.record.arrivals) == 1
            assert client.open == client.tokens == 1
            await exchange.until_tokens(99)  # it ends before
            assert exchange.record.state is State.COMPLETED
        assert (client.open, client.tokens) == (0, 3)

    parts = (head(), first, 0.1, b"".join(rest) + LAST_CHUNK)
    with canned_server(lambda _: parts) as server, new_runner() as runner:
        runner.run(run(server.url))


def test_a_connection_that_cannot_be_made_is_a_failure() -> None:
    with canned_server(lambda _: b"") as server:
        url = server.url

    async def run() -> Record:
        async with Client(Target(url, STREAMING["stream"]), TIMEOUT_S) as client:
            return await client.ask(Request("x", 3, 1))

    with new_runner() as runner:
        record = runner.run(run())
    assert record.failure is not None
    assert record.failure.kind == CONNECTION


def test_what_a_target_has_is_in_every_request() -> None:
    target = Target("http://h:1/base/", STREAMING["openai"], "tales", "key", {"a": 1, "b": 1})
    request = Request("x", 3, 7, fields={"b": 2})
    start, _, body = target.encode(request).partition(b"\r\n\r\n")
    assert start.startswith(b"POST /base/v1/completions HTTP/1.1\r\nHost: h:1\r\n")
    assert b"\r\nAuthorization: Bearer key\r\n" in start
    fields = json.loads(body)
    assert (fields["model"], fields["a"], fields["b"]) == ("tales", 1, 2)
    assert fields["ignore_eos"] is True
